//! What a Service does for its clients, on loopback: each new connection goes to one of the pods that are ready.

use crate::injector::{Replica, get};
use http::StatusCode;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How long a change of readiness takes to arrive, about as in a cluster.
const PROBE_PERIOD: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
struct Endpoint {
    webhook: SocketAddr,
    admin: SocketAddr,
    ready: bool,
}

/// A Service for replicas of the injector. It is gone when dropped.
pub struct Service {
    address: SocketAddr,
    endpoints: Arc<Mutex<Vec<Endpoint>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Service {
    /// A Service without endpoints.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoints = Arc::default();
        let tasks = [
            tokio::spawn(forward(listener, Arc::clone(&endpoints))),
            tokio::spawn(probe(Arc::clone(&endpoints))),
        ];
        Self {
            address,
            endpoints,
            tasks,
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Adds a replica, which gets connections once it is ready.
    pub fn add(&self, replica: &Replica) {
        self.endpoints.lock().unwrap().push(Endpoint {
            webhook: replica.webhook,
            admin: replica.admin,
            ready: false,
        });
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn probe(endpoints: Arc<Mutex<Vec<Endpoint>>>) {
    loop {
        let known = endpoints.lock().unwrap().clone();
        for endpoint in known {
            let ready = matches!(get(endpoint.admin, "/readyz").await, Ok((StatusCode::OK, _)));
            let mut endpoints = endpoints.lock().unwrap();
            endpoints
                .iter_mut()
                .filter(|other| other.admin == endpoint.admin)
                .for_each(|other| other.ready = ready);
        }
        tokio::time::sleep(PROBE_PERIOD).await;
    }
}

async fn forward(listener: TcpListener, endpoints: Arc<Mutex<Vec<Endpoint>>>) {
    let (turn, mut connections) = (AtomicUsize::new(0), JoinSet::new());
    loop {
        let Ok((mut near, _)) = listener.accept().await else {
            return;
        };
        let ready: Vec<_> = endpoints
            .lock()
            .unwrap()
            .iter()
            .filter(|endpoint| endpoint.ready)
            .map(|e| e.webhook)
            .collect();
        let Some(chosen) = ready
            .get(turn.fetch_add(1, Ordering::Relaxed) % ready.len().max(1))
            .copied()
        else {
            continue;
        };
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(chosen).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
