//! Networks that fail on command, for tests without a runtime of their own.

use tokio::runtime::Runtime;

use crate::proxy::{Network, Proxy};

/// A proxy and what it runs on.
pub(crate) struct Wire {
    proxy: Proxy,
    _runtime: Runtime,
}

impl Wire {
    pub(crate) fn to(server_port: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for the proxy");
        Self { proxy: runtime.block_on(Proxy::to(server_port)), _runtime: runtime }
    }

    pub(crate) fn port(&self) -> u16 {
        self.proxy.port()
    }

    pub(crate) fn redis_url(&self) -> String {
        self.proxy.url()
    }

    pub(crate) fn set(&self, network: Network) {
        self.proxy.set(network);
    }

    pub(crate) fn lead_to(&self, server_port: u16) {
        self.proxy.lead_to(server_port);
    }
}
