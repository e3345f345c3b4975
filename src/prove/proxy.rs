//! A network that fails on command: a TCP proxy between a client and its server.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How a server is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Connections are closed, new ones at once.
    Refuse,
    /// Connections stay and carry nothing.
    BlackHole,
    /// Requests arrive; the first reply ends the connection unseen.
    AtReply,
}

/// Carries bytes, unless it is cut; ends with this value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    cut: watch::Sender<Option<Cut>>,
    server: watch::Sender<String>,
    task: AbortHandle,
}

impl Proxy {
    /// A proxy to `server` (`host:port`) on a free loopback port.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(server: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let (cut, server) = (watch::Sender::new(None), watch::Sender::new(server));
        let (seen, target) = (cut.subscribe(), server.subscribe());
        let task = tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, target.clone(), seen.clone()));
                }
            }
        });
        Ok(Self { port, cut, server, task: task.abort_handle() })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its url, for a client of Redis.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts, or mends with `None`.
    pub fn set(&self, cut: Option<Cut>) {
        self.cut.send_replace(cut);
    }

    /// Ends all connections; new ones go to another server.
    pub fn lead_to(&self, server: String) {
        self.server.send_replace(server);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, mut target: watch::Receiver<String>, mut cut: watch::Receiver<Option<Cut>>) {
    if *cut.borrow() == Some(Cut::Refuse) {
        return;
    }
    let server = target.borrow_and_update().clone();
    let Ok(server) = TcpStream::connect(server).await else { return };
    // Small requests and replies: nothing may wait for company.
    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
        return;
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // The first direction that ends ends both.
    tokio::select! {
        () = one_way(client_reads, server_writes, cut.clone(), false) => {}
        () = one_way(server_reads, client_writes, cut.clone(), true) => {}
        _ = cut.wait_for(|cut| *cut == Some(Cut::Refuse)) => {}
        _ = target.changed() => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<Option<Cut>>,
    replies: bool,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let Ok(cut) = cut.wait_for(|cut| *cut != Some(Cut::BlackHole)).await.map(|cut| *cut) else { return };
        if (replies && cut == Some(Cut::AtReply)) || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
