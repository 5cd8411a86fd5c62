//! The client's end of a connection to a web server that is none of the mesh's, such as an OIDC issuer or a collector.

use super::{TlsError, VERSIONS, provider};
use crate::contract::{ALPN_HTTP1, ALPN_HTTP2};
use crate::http2::HttpVersion;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// For connections to web servers for requests in this `version` of HTTP. The server's certificate must verify under `roots`
/// for just the name that is dialed, and it is told no client certificate. A server that knows no ALPN is taken for one that
/// speaks that version.
///
/// # Errors
/// rustls refuses it.
pub fn web_client_config(version: HttpVersion, roots: Arc<RootCertStore>) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let alpn = match version {
        HttpVersion::Http1 => ALPN_HTTP1,
        HttpVersion::Http2 => ALPN_HTTP2,
    };
    config.alpn_protocols = vec![alpn.to_vec()];
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
        for (version, alpn) in [(HttpVersion::Http1, ALPN_HTTP1), (HttpVersion::Http2, ALPN_HTTP2)] {
            let config = web_client_config(version, Arc::new(RootCertStore::empty())).unwrap();
            let suites = &config.crypto_provider().cipher_suites;
            assert!(suites.iter().all(|suite| suite.version() == &rustls::version::TLS13));
            assert_eq!(config.alpn_protocols, [alpn]);
            assert!(config.enable_sni && config.check_selected_alpn);
            assert!(!config.enable_early_data && !config.enable_secret_extraction);
        }
    }
}
