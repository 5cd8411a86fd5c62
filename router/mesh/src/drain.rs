//! How a process ends: everybody who still works holds a [`Draining`], and [`Drain::finish`] waits for them all.

use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The side that starts a drain and waits for it.
#[derive(Debug)]
pub struct Drain {
    started: watch::Sender<bool>,
    alive: mpsc::Receiver<Infallible>,
}

/// The side that works. A drain is over once every clone has been dropped.
#[derive(Debug, Clone)]
pub struct Draining {
    started: watch::Receiver<bool>,
    _alive: mpsc::Sender<Infallible>,
}

/// Whether a drain has started, for somebody whose work nobody waits for.
#[derive(Debug, Clone)]
pub struct DrainState(watch::Receiver<bool>);

/// A new drain that hasn't started.
pub fn channel() -> (Drain, Draining) {
    let (start, started) = watch::channel(false);
    let (held, alive) = mpsc::channel(1);
    (Drain { started: start, alive }, Draining { started, _alive: held })
}

impl Drain {
    /// Tells everybody to finish what they do and to begin nothing new.
    pub fn start(&self) {
        self.started.send_replace(true);
    }

    /// Starts the drain if need be and waits until everybody is done, at most for `budget`. Says whether they were.
    pub async fn finish(mut self, budget: Duration) -> bool {
        self.start();
        tokio::time::timeout(budget, self.alive.recv()).await.is_ok()
    }

    /// A view that nobody waits for.
    pub fn state(&self) -> DrainState {
        DrainState(self.started.subscribe())
    }
}

impl Draining {
    /// Completes when the drain starts.
    pub async fn started(&mut self) {
        // An error means that the other side is gone: the process is ending all the more.
        let _ = self.started.wait_for(|started| *started).await;
    }

    /// Whether the drain has started.
    pub fn has_started(&self) -> bool {
        *self.started.borrow()
    }
}

impl DrainState {
    /// Whether the drain has started.
    pub fn has_started(&self) -> bool {
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_everybody_who_works() {
        let (drain, mut draining) = channel();
        let state = drain.state();
        let worker = tokio::spawn(async move {
            draining.started().await;
            draining
        });
        assert!(!state.has_started());
        drain.start();
        let still_working = worker.await.unwrap();
        assert!(state.has_started() && still_working.has_started());
        let finish = tokio::spawn(drain.finish(Duration::from_secs(5)));
        tokio::task::yield_now().await;
        assert!(!finish.is_finished());
        drop(still_working);
        assert!(finish.await.unwrap());
    }

    #[tokio::test]
    async fn a_drain_gives_up_after_its_budget() {
        let (drain, draining) = channel();
        assert!(!drain.finish(Duration::from_millis(10)).await);
        drop(draining);
    }
}
