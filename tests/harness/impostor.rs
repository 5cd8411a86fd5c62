//! Who stands where the router expects a gate.

use crate::ok;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// What came to an impostor in the clear or through TLS.
pub type Heard = Arc<Mutex<Vec<u8>>>;

/// Stands where a gate is expected, answers every handshake with this configuration, or speaks no TLS without one, and
/// would answer a request with 200.
pub async fn impostor(config: Option<Arc<ServerConfig>>) -> (SocketAddr, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, heard) = (listener.local_addr().unwrap(), Heard::default());
    let record = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let record = Arc::clone(&record);
            match &config {
                None => {
                    let _ = stream.write_all(&ok("impostor")).await;
                    let mut bytes = Vec::new();
                    let _ = stream.read_buf(&mut bytes).await;
                    record.lock().unwrap().extend(bytes);
                }
                Some(config) => {
                    let Ok(mut stream) = TlsAcceptor::from(Arc::clone(config)).accept(stream).await else {
                        continue;
                    };
                    let mut bytes = Vec::new();
                    let _ = stream.read_buf(&mut bytes).await;
                    record.lock().unwrap().extend(bytes);
                    let _ = stream.write_all(&ok("impostor")).await;
                    let _ = stream.shutdown().await;
                }
            }
        }
    });
    (address, heard)
}
