//! A worker thread, and the connections that it serves.

use crate::acceptor::Accepted;
use crate::authenticate::{Authenticated, certificate_caller};
use crate::certificates::FrontTls;
use crate::client::Client;
use crate::proof::Proof;
use crate::request;
use crate::worker::Worker;
use anyhow::Context;
use sandgate_mesh::caller::Caller;
use sandgate_mesh::drain::{self, Draining};
use sandgate_mesh::http2::{HttpVersion, Windows};
use sandgate_mesh::listener::ConnectionSlot;
use sandgate_mesh::pool::LINGER;
use sandgate_mesh::serve::ExtendedConnects;
use sandgate_mesh::tls::FrontPeer;
use sandgate_mesh::{listener, serve, tls};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

/// Accepted connections that may wait for a worker.
const HANDOVER: usize = 1024;

/// Starts a thread that serves connections on a runtime of its own: nothing on a request's way changes threads.
pub(crate) fn start(number: usize, worker: Worker, draining: Draining) -> anyhow::Result<mpsc::Sender<Accepted>> {
    let (sender, mut accepted) = mpsc::channel::<Accepted>(HANDOVER);
    let runtime = serve::runtime()?;
    let work = async move {
        let worker = Arc::new(worker);
        let sweeping = Arc::clone(&worker);
        let sweeper = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LINGER).await;
                sweeping.forwarder.sweep();
            }
        });
        let (inner, inner_draining) = drain::channel();
        let mut outer = draining;
        let serve = |connection| {
            let (worker, draining) = (Arc::clone(&worker), inner_draining.clone());
            tokio::spawn(async move { Box::pin(serve_connection(worker, connection, draining)).await });
        };
        loop {
            tokio::select! {
                connection = accepted.recv() => match connection {
                    Some(connection) => serve(connection),
                    None => break,
                },
                () = outer.started() => break,
            }
        }
        // They were accepted before the drain began.
        while let Ok(connection) = accepted.try_recv() {
            serve(connection);
        }
        drop(inner_draining);
        // The budget is the process's: whoever waits for `outer` ends it.
        inner.finish(Duration::from_secs(86_400)).await;
        sweeper.abort();
        drop(outer);
    };
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || runtime.block_on(work))
        .context("a worker thread can't be started")?;
    Ok(sender)
}

async fn serve_connection(worker: Arc<Worker>, accepted: Accepted, mut draining: Draining) {
    let Accepted {
        stream,
        peer,
        tls,
        slot,
    } = accepted;
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let first_bytes = tokio::select! {
        biased;
        first_bytes = listener::first_bytes(&stream, worker.framing.idle_time, worker.framing.head_time) => first_bytes,
        () = draining.started() => None,
    };
    let Some(version) = first_bytes else { return };
    match tls {
        None => {
            let client = Client::new(&worker.config, peer.ip(), "http", None, slot, draining.clone());
            Box::pin(serve_stream(worker, version, stream, Arc::new(client), draining)).await;
        }
        Some(front) => Box::pin(serve_front(worker, front, stream, peer, slot, draining)).await,
    }
}

/// Serves a client that is to speak TLS.
async fn serve_front(
    worker: Arc<Worker>,
    front: FrontTls,
    stream: TcpStream,
    peer: SocketAddr,
    slot: ConnectionSlot,
    draining: Draining,
) {
    let Some(now) = front.borrow().clone() else { return };
    let (stream, certificate) = match Box::pin(tls::accept_front(stream, Arc::clone(&now.config))).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::info!(%peer, %error, "handshake refused");
            return;
        }
    };
    let Ok(certificate) = named(&worker, peer, certificate.as_ref()) else {
        return;
    };
    let version = tls::agreed_version(stream.get_ref().1);
    let mut client = Client::new(&worker.config, peer.ip(), "https", certificate, slot, draining.clone());
    let chain = tls::front_peer_chain(stream.get_ref().1);
    client.proof = chain.map(|chain| Proof::new(chain, front, Arc::clone(&now.clients)));
    drop(now);
    Box::pin(serve_tls(worker, version, stream, Arc::new(client), draining)).await;
}

/// A client certificate that can't be used.
struct Unusable;

/// The caller that a client's certificate names, if it has one.
fn named(
    worker: &Worker,
    peer: SocketAddr,
    certificate: Option<&FrontPeer>,
) -> Result<Option<Authenticated>, Unusable> {
    let Some(certificate) = certificate else {
        return Ok(None);
    };
    // A certificate that names nobody must not pass for no certificate.
    let Some(caller) = certificate_caller(certificate) else {
        tracing::info!(%peer, "the client certificate's name can't be a caller's");
        return Err(Unusable);
    };
    // Whoever vouches for clients doesn't vouch for the mesh: its own names are the mesh's to give.
    if matches!(&*caller.caller, Caller::Spiffe(id) if id.is_in(&worker.config.trust_domain)) {
        tracing::info!(%peer, "the client certificate claims a name in the mesh's own trust domain");
        return Err(Unusable);
    }
    Ok(Some(caller))
}

/// Serves a client whose handshake is done. When what its certificate proves is over, so is the connection: it drains then, as it
/// does when the process ends, and within the same time.
async fn serve_tls(
    worker: Arc<Worker>,
    version: HttpVersion,
    stream: TlsStream<TcpStream>,
    client: Arc<Client>,
    mut draining: Draining,
) {
    let Some(proof) = &client.proof else {
        return serve_stream(worker, version, stream, client, draining).await;
    };
    let budget = worker.config.shutdown_timeout;
    let (end, ending) = drain::channel();
    let mut serving = pin!(serve_stream(worker, version, stream, Arc::clone(&client), ending));
    let mut over = tokio::select! {
        biased;
        // Before the next request is read.
        over = proof.over() => Some(over),
        () = draining.started() => None,
        () = &mut serving => return,
    };
    end.start();
    // What is still to come on a connection that drains isn't let in by less.
    if over.is_none() {
        over = tokio::select! {
            biased;
            over = proof.over() => Some(over),
            () = &mut serving => return,
        };
    }
    tracing::info!(ip = %client.ip, ?over, "what the client certificate of a connection proved is over");
    // What is still under way then is cut.
    let _ = tokio::time::timeout(budget, serving).await;
}

async fn serve_stream<S>(worker: Arc<Worker>, version: HttpVersion, stream: S, client: Arc<Client>, draining: Draining)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let framing = Arc::clone(&worker.framing);
    let handle = move |request, switch| {
        let (worker, client) = (Arc::clone(&worker), Arc::clone(&client));
        // Boxed, or each future that it passes through would have room for it.
        let request = Box::new(request);
        async move { request::handle(&worker, &client, request, switch).await }
    };
    match version {
        HttpVersion::Http1 => serve::http1(stream, &framing, draining, handle).await,
        HttpVersion::Http2 => {
            let front = (Windows::FRONT, ExtendedConnects::Served);
            Box::pin(serve::http2(stream, &framing, front, draining, handle)).await;
        }
    }
}
