//! The client's end of a connection to a web server that is none of the mesh's, such as an OIDC issuer.

use super::{HandshakeError, VERSIONS, provider};
use crate::contract::{ALPN_HTTP1, HANDSHAKE_TIMEOUT};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The handshake with the web server `host`, a DNS name or an address, whose certificate must verify under `roots` for just
/// that. It is told no client certificate. A server that knows no ALPN is taken for one that speaks HTTP/1.1.
///
/// # Errors
/// The server took too long, has no such certificate, or speaks neither TLS 1.3 nor HTTP/1.1.
pub async fn connect_web<S>(stream: S, roots: Arc<RootCertStore>, host: &str) -> Result<TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = config(roots).map_err(HandshakeError::Tls)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        HandshakeError::Tls(rustls::Error::General(
            "the host is neither a DNS name nor an address".into(),
        ))
    })?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    Ok(stream.map_err(|_| HandshakeError::TimedOut)??)
}

fn config(roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_secret_extraction = false;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_server_is_spoken_to_in_tls_1_3_and_told_its_name() {
        let config = config(Arc::new(RootCertStore::empty())).unwrap();
        let suites = &config.crypto_provider().cipher_suites;
        assert!(suites.iter().all(|suite| suite.version() == &rustls::version::TLS13));
        assert_eq!(config.alpn_protocols, [ALPN_HTTP1]);
        assert!(config.enable_sni && config.check_selected_alpn);
        assert!(!config.enable_early_data && !config.enable_secret_extraction);
    }
}
