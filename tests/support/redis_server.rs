//! A real Redis of a test's own: a process on a free loopback port without persistence, ended by its pid on drop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The server; `kill` and `restart` keep its port.
pub(crate) struct RedisServer {
    port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    /// When there is no `redis-server`, or it does not start.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments, as on its command line.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let mut server = Self {
            port,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            folder: tempfile::tempdir().expect("a folder for redis-server"),
            process: None,
        };
        server.restart();
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A port that it was given by this argument: `--cluster-port` is where nodes of a cluster talk to each other.
    pub(crate) fn port_of(&self, argument: &str) -> u16 {
        let at = self.arguments.iter().position(|a| a == argument).expect("it was given");
        self.arguments[at + 1].parse().expect("a port")
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Sends one command and returns the reply as it came.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("redis-server takes connections");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(request.as_bytes()).expect("redis-server reads");
        let mut reply = vec![0; 1 << 16];
        let n = stream.read(&mut reply).expect("redis-server answers");
        let reply = String::from_utf8_lossy(&reply[..n]).into_owned();
        assert!(!reply.starts_with('-'), "{words:?}: {reply}");
        reply
    }

    /// Ends the process as a crash would (SIGKILL); its data is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("redis-server can be killed");
            process.wait().expect("redis-server ends");
        }
    }

    /// Starts it again, empty, on the same port.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = self.folder.path().join("redis.log");
        let process = Command::new(binary())
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(self.folder.path())
            .arg("--logfile")
            .arg(&log)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server can be started");
        let process = self.process.insert(process);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !answers(self.port) {
            let ended = process.try_wait().expect("redis-server can be watched");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "redis-server did not come up on port {}: {}",
                self.port,
                std::fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
    listener.local_addr().expect("its address").port()
}

fn binary() -> PathBuf {
    let cache = std::env::var_os("LADDER_CACHE")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".ladder-cache"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([cache.join("bin")])
        .map(|folder| folder.join("redis-server"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!("no redis-server in PATH nor in {}: run `scripts/services setup`", cache.join("bin").display())
        })
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut answer = [0; 1];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(b"PING\r\n").is_ok()
        && stream.read(&mut answer).is_ok_and(|n| n > 0)
}
