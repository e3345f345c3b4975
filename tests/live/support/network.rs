//! Networks that fail on command, for tests without a runtime of their own.

use retry_ladder::prove::proxy::{Cut, Proxy};
use tokio::runtime::Runtime;

/// A proxy and what it runs on.
pub(crate) struct Wire {
    proxy: Proxy,
    _runtime: Runtime,
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Wire {
    pub(crate) fn to(server_port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for the proxy");
        let proxy = runtime.block_on(Proxy::start(local(server_port))).expect("a free port");
        Self { proxy, _runtime: runtime }
    }

    pub(crate) fn port(&self) -> u16 {
        self.proxy.port()
    }

    pub(crate) fn redis_url(&self) -> String {
        self.proxy.url()
    }

    pub(crate) fn set(&self, cut: Option<Cut>) {
        self.proxy.set(cut);
    }

    pub(crate) fn lead_to(&self, server_port: u16) {
        self.proxy.lead_to(local(server_port));
    }
}
