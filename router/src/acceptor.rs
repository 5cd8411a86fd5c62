//! Accepted connections on their way to a worker, and what those hear that are one too many.

use crate::certificates::FrontTls;
use crate::config::Config;
use crate::metrics::Metrics;
use prometheus::IntCounter;
use sandgate_mesh::drain::Draining;
use sandgate_mesh::listener::{self, ConnectionCount, ConnectionSlot, Full};
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::overflow::{Overflow, Refusal};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What a client hears that is one too many.
const TOO_MANY: &str = "The router has too many connections; try again.";
/// What a client hears whose address has one too many.
const TOO_MANY_OF_PEER: &str = "The router has too many connections from this address; try again.";
/// What a client hears that connects while the memory budget is spent.
const SHORT_OF_MEMORY: &str = "The router is short of memory; try again.";

/// A connection on its way to a worker.
pub(crate) struct Accepted {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) tls: Option<FrontTls>,
    pub(crate) slot: ConnectionSlot,
}

/// Hands accepted connections to the workers in turn.
#[derive(Clone)]
pub(crate) struct Acceptor {
    workers: Arc<[mpsc::Sender<Accepted>]>,
    next: Arc<AtomicUsize>,
    count: ConnectionCount,
    overflow: Overflow,
    too_many: Refusal,
    too_many_of_peer: Refusal,
    short_of_memory: Refusal,
    config: Arc<Config>,
    memory: MemoryBudget,
    metrics: Arc<Metrics>,
}

impl Acceptor {
    /// One for `workers`, with nobody accepted yet.
    pub(crate) fn new(
        workers: Vec<mpsc::Sender<Accepted>>,
        config: &Arc<Config>,
        memory: MemoryBudget,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            workers: Arc::from(workers),
            next: Arc::default(),
            count: ConnectionCount::new(config.connection_limits()),
            overflow: Overflow::default(),
            too_many: Refusal::unavailable(TOO_MANY, None),
            too_many_of_peer: Refusal::too_many(TOO_MANY_OF_PEER),
            short_of_memory: Refusal::unavailable(SHORT_OF_MEMORY, None),
            config: Arc::clone(config),
            memory,
            metrics: Arc::clone(metrics),
        }
    }

    /// Accepts connections until the drain starts; over TLS where it is given.
    pub(crate) async fn accept(self, listener: TcpListener, tls: Option<FrontTls>, mut draining: Draining) {
        while let Some((stream, peer)) = listener::accept(&listener, &mut draining).await {
            let slot = match self.admit(peer.ip()) {
                Ok(slot) => slot,
                Err((answer, counter)) => {
                    counter.inc();
                    if tls.is_none() {
                        self.overflow.answer(stream, answer);
                    }
                    continue;
                }
            };
            let Ok(stream) = stream.into_std() else { continue };
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
            if let Some(worker) = self.workers.get(turn) {
                let _ = worker
                    .send(Accepted {
                        stream,
                        peer,
                        tls: tls.clone(),
                        slot,
                    })
                    .await;
            }
        }
    }

    /// A place for a connection from `peer`, or what it hears instead and where that is counted. A trusted proxy may have
    /// all places: it speaks for many.
    fn admit(&self, peer: IpAddr) -> Result<ConnectionSlot, (&Refusal, &IntCounter)> {
        let refused = &self.metrics.refused;
        if self.memory.is_exhausted() {
            return Err((&self.short_of_memory, &refused.memory));
        }
        let entered = if self.config.trusts(peer) {
            self.count.enter_trusted(peer)
        } else {
            self.count.enter(peer)
        };
        entered.map_err(|full| match full {
            Full::Total => (&self.too_many, &refused.connections),
            Full::Peer => (&self.too_many_of_peer, &refused.connections_of_peer),
        })
    }
}
