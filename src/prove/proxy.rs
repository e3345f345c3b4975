//! The network between the workers and Redis: a TCP proxy that can be cut. Only the workers of the run go through it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::plan::Cut;

/// Carries bytes, unless it is cut; ends with this value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    cut: watch::Sender<Option<Cut>>,
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
        let cut = watch::Sender::new(None);
        let seen = cut.subscribe();
        let task = tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, server.clone(), seen.clone()));
                }
            }
        });
        Ok(Self { port, cut, task: task.abort_handle() })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts, or mends with `None`.
    pub fn set(&self, cut: Option<Cut>) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: String, mut cut: watch::Receiver<Option<Cut>>) {
    if *cut.borrow() == Some(Cut::Refuse) {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    // Small requests and replies: nothing may wait for company.
    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
        return;
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // The first direction that ends ends both.
    tokio::select! {
        () = one_way(client_reads, server_writes, cut.clone()) => {}
        () = one_way(server_reads, client_writes, cut.clone()) => {}
        _ = cut.wait_for(|cut| *cut == Some(Cut::Refuse)) => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<Option<Cut>>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let open = cut.wait_for(|cut| *cut != Some(Cut::BlackHole)).await.is_ok();
        if !open || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
