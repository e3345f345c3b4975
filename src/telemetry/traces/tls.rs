//! TLS to the collector by the OpenSSL that every other client of this process uses: the exporter brings no TLS of its
//! own, so that there are not two of them.

use std::io;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use native_tls::{Certificate, Protocol};
use tokio::net::TcpStream;
use tokio_native_tls::{TlsConnector, TlsStream};
use tonic::codegen::http::Uri;
use tonic::codegen::{Service, StdError};
use tonic::transport::{Channel, Endpoint};

use super::EXPORT;

/// A connection that is made, and made again, when spans are to be sent. `ca` holds authorities in PEM that are trusted
/// beside the system's.
pub(super) fn channel(endpoint: &str, ca: Option<&[u8]>) -> Result<Channel, StdError> {
    let mut tls = native_tls::TlsConnector::builder();
    // Collectors refuse a client that does not offer HTTP/2 in the handshake.
    tls.min_protocol_version(Some(Protocol::Tlsv12)).request_alpns(&["h2"]);
    for certificate in ca.map(Certificate::stack_from_pem).transpose()?.into_iter().flatten() {
        tls.add_root_certificate(certificate);
    }
    let connector = Connector(tls.build()?.into());
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    Ok(endpoint.connect_timeout(EXPORT).connect_with_connector_lazy(connector))
}

struct Connector(TlsConnector);

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = StdError;
    type Future = BoxFuture<'static, Result<Self::Response, StdError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.0.clone();
        Box::pin(async move {
            let host = uri.host().ok_or_else(|| io::Error::other("no host"))?;
            let host = host.trim_start_matches('[').trim_end_matches(']'); // an IPv6 address
            let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(host, tcp).await?))
        })
    }
}
