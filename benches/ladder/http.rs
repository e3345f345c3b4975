//! A server that answers at once, in a process of its own, and a bare loop of requests to it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::future::join_all;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, redirect};
use retry_ladder::handlers::http::{HttpHandler, HttpOptions};
use retry_ladder::stage::clock::SystemClock;
use retry_ladder::stage::ports::Handler;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::load::{self, Bench, usage};
use crate::raw::Raw;

pub struct Server {
    url: String,
    process: Child,
}

impl Server {
    pub fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let mut process = child.arg("answer").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { url: format!("http://127.0.0.1:{}/orders", port.trim()), process }
    }

    pub fn handler(&self) -> Arc<dyn Handler> {
        Arc::new(HttpHandler::new(HttpOptions::new(&self.url), Arc::new(SystemClock)).unwrap())
    }

    pub fn bare(&self, bench: &Bench) -> Bare {
        // As the handler's.
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .pool_max_idle_per_host(1024)
            .build();
        let headers =
            HEADERS.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let headers = headers.collect();
        Bare { url: self.url.clone(), client: client.unwrap(), headers, connections: bench.concurrency }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

/// What the handler says of an event, as long as it says it.
const HEADERS: [(&str, &str); 12] = [
    ("content-type", "application/x-protobuf"),
    ("ce-specversion", "1.0"),
    ("user-agent", "retry-ladder/0.1.0"),
    ("ce-id", "event-123456"),
    ("idempotency-key", "event-123456"),
    ("ce-type", "shop.v1.OrderPlaced"),
    ("ce-source", "/bench12345678-1/3"),
    ("ce-time", "2026-11-21T12:00:00.123Z"),
    ("x-ladder-attempt", "1"),
    ("x-ladder-stage", "main"),
    ("x-ladder-fence", "123456"),
    ("x-ladder-key", "key-123"),
];

/// As many requests at a time as the stage has handlers, the same requests.
pub struct Bare {
    url: String,
    client: Client,
    headers: HeaderMap,
    connections: usize,
}

impl Bare {
    pub async fn run(&self, requests: usize) -> Raw {
        let left = AtomicUsize::new(requests);
        let body = load::value();
        let one_by_one = async || {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                let response = self
                    .client
                    .post(&self.url)
                    .headers(self.headers.clone())
                    .body(Bytes::clone(&body))
                    .send()
                    .await
                    .unwrap();
                assert!(response.status().is_success());
                response.bytes().await.unwrap();
            }
        };
        let (cpu, start) = (usage().cpu, Instant::now());
        join_all((0..self.connections).map(|_| one_by_one())).await;
        let wall = start.elapsed().as_secs_f64();
        Raw { rate: requests as f64 / wall, cpu_us: (usage().cpu - cpu) * 1e6 / requests as f64 }
    }
}

/// The server. It reads each request to its end and knows nothing of HTTP but where that is.
pub async fn answer() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(connection(stream));
        }
    };
    tokio::select! {
        _ = ended => {}
        () = serve => {}
    }
}

async fn connection(mut stream: TcpStream) {
    let (mut buffer, mut filled) = (vec![0; 64 * 1024], 0);
    loop {
        match stream.read(&mut buffer[filled..]).await {
            Ok(n) if n > 0 => filled += n,
            _ => return,
        }
        while let Some(length) = request(&buffer[..filled]) {
            buffer.copy_within(length..filled, 0);
            filled -= length;
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
    }
}

/// The bytes of the first request, if it is there to its end.
fn request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).unwrap().to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let whole = head + length.unwrap_or(0);
    (bytes.len() >= whole).then_some(whole)
}
