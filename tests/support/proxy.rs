//! A network that fails on command, between a client and its server.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What the network does with the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Carries them.
    Fine,
    /// Takes connections, carries nothing, closes nothing.
    BlackHole,
    /// Carries requests; the first reply ends the connection unseen.
    CutAtReply,
}

/// A TCP proxy on a port of its own; ends with this value.
pub(crate) struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    /// Port of the server that new connections go to.
    server: watch::Sender<u16>,
    task: AbortHandle,
}

impl Proxy {
    pub(crate) async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free loopback port");
        let port = listener.local_addr().expect("its address").port();
        let network = watch::Sender::new(Network::Fine);
        let server = watch::Sender::new(server_port);
        let (seen, target) = (network.subscribe(), server.subscribe());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), seen.clone()));
            }
        });
        Self { port, network, server, task: task.abort_handle() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections; new ones go to another server.
    pub(crate) fn lead_to(&self, server_port: u16) {
        self.server.send_replace(server_port);
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, mut target: watch::Receiver<u16>, network: watch::Receiver<Network>) {
    let server_port = *target.borrow_and_update();
    let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else {
        return;
    };
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // The first direction that ends ends both.
    tokio::select! {
        () = requests(client_reads, server_writes, network.clone()) => {}
        () = replies(server_reads, client_writes, network) => {}
        _ = target.changed() => {}
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut network: watch::Receiver<Network>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let open = network.wait_for(|network| *network != Network::BlackHole).await.is_ok();
        if !open || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

async fn replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut network: watch::Receiver<Network>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        let network = network.wait_for(|network| *network != Network::BlackHole).await.map(|network| *network);
        if !matches!(network, Ok(Network::Fine)) || to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
