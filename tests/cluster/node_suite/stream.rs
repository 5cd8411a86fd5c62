//! A constant stream of requests through the router, and what became of each.

use crate::pods::APP_PORT;
use sandgate_cluster_tests::router::ask;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

/// So often a request is sent, to one sandbox after the other.
const INTERVAL: Duration = Duration::from_millis(20);

/// What became of a request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) sandbox: String,
    pub(crate) sent: Instant,
    pub(crate) took: Duration,
    pub(crate) status: u16,
    /// The UID of the pod that answered, or the router's reason.
    pub(crate) body: String,
}

/// What a request asks for.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) sandbox: String,
    /// Header lines besides its name, namespace and port.
    pub(crate) fields: String,
}

impl Target {
    /// A sandbox by its name.
    pub(crate) fn named(sandbox: &str) -> Self {
        Self {
            sandbox: sandbox.to_owned(),
            fields: String::new(),
        }
    }
}

/// A stream that flows until it is stopped.
pub(crate) struct Stream {
    stop: oneshot::Sender<()>,
    sending: JoinHandle<()>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl Stream {
    /// Starts to ask for these in turn.
    pub(crate) fn start(router: SocketAddr, namespace: &str, targets: Vec<Target>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
        let sending = send(router, namespace.to_owned(), targets, Arc::clone(&answers), stopped);
        let sending = tokio::spawn(sending);
        Self { stop, sending, answers }
    }

    /// Stops, and waits for what is under way.
    pub(crate) async fn stop(self) -> Vec<Answer> {
        let _ = self.stop.send(());
        self.sending.await.unwrap();
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

async fn send(
    router: SocketAddr,
    namespace: String,
    targets: Vec<Target>,
    answers: Arc<Mutex<Vec<Answer>>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut under_way = JoinSet::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    for target in targets.iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut stopped => break,
        }
        let (namespace, target, answers) = (namespace.clone(), target.clone(), Arc::clone(&answers));
        under_way.spawn(async move {
            let sent = Instant::now();
            let (status, body) = ask(router, &namespace, &target.sandbox, APP_PORT, &target.fields).await;
            let body = body.trim_end().to_owned();
            let took = sent.elapsed();
            answers.lock().unwrap().push(Answer {
                sandbox: target.sandbox,
                sent,
                took,
                status,
                body,
            });
        });
    }
    under_way.join_all().await;
}
