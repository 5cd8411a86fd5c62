//! The admin port on a thread of its own: a kubelet's probes are answered however busy the webhook is.

use sandgate_mesh::admin::Admin;
use sandgate_mesh::drain::Draining;
use sandgate_mesh::serve;
use std::io;
use tokio::net::TcpListener;

/// Serves the admin port until the drain starts.
///
/// # Errors
/// The system has no thread or no file for it.
pub(crate) fn start(admin: Admin, listener: TcpListener, draining: Draining) -> io::Result<()> {
    let (listener, runtime) = (listener.into_std()?, serve::runtime()?);
    let work = async move {
        match TcpListener::from_std(listener) {
            Ok(listener) => admin.serve(listener, draining).await,
            Err(error) => tracing::error!(%error, "health and metrics can't be served"),
        }
    };
    std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || runtime.block_on(work))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::PATIENCE;
    use sandgate_mesh::drain;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Arc;

    /// The one thread of this test's runtime does nothing else while it asks.
    #[tokio::test]
    async fn probes_are_answered_while_the_runtime_is_busy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admin = Admin {
            readiness: Some(Arc::new(|| Ok(()))),
            ..Admin::default()
        };
        let (_drain, draining) = drain::channel();
        start(admin, listener, draining).unwrap();
        let mut probe = TcpStream::connect(address).unwrap();
        probe.set_read_timeout(Some(PATIENCE)).unwrap();
        probe.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).expect("no answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
