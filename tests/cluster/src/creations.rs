//! A loop of creations, to notice when one fails.

use crate::chart::sandbox_pod;
use crate::{Namespace, until};
use serde_json::{Value, json};
use std::cell::{Ref, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;

/// Whether a stored pod has its gate first.
pub fn has_gate(pod: &Value) -> bool {
    pod["spec"]["initContainers"][0]["name"] == "sandgate"
}

/// Creates sandbox pods one after the other until it is stopped.
pub struct Creations {
    made: Rc<RefCell<Vec<Result<Value, String>>>>,
    answered: Rc<RefCell<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Creations {
    /// Starts creating.
    pub fn start(namespace: &Namespace) -> Self {
        let (made, namespace) = (Rc::<RefCell<Vec<_>>>::default(), namespace.clone());
        let answered = Rc::<RefCell<Vec<_>>>::default();
        let (results, times) = (Rc::clone(&made), Rc::clone(&answered));
        let task = spawn_local(async move {
            let mut pod = sandbox_pod("");
            pod["metadata"] = json!({"generateName": "loop-", "labels": pod["metadata"]["labels"]});
            loop {
                let answer = namespace.create(&pod).await;
                times.borrow_mut().push(Instant::now());
                results.borrow_mut().push(answer.map_err(|status| status.message));
            }
        });
        Self { made, answered, task }
    }

    /// What came of each so far: the stored pod, or why there is none.
    pub fn made(&self) -> Ref<'_, Vec<Result<Value, String>>> {
        self.made.borrow()
    }

    /// How many were answered.
    pub fn count(&self) -> usize {
        self.made().len()
    }

    /// How many failed, and the time from the first that did to the first success after the last that did.
    pub fn outage(&self) -> (usize, Duration) {
        let (made, answered) = (self.made(), self.answered.borrow());
        let failed = |made: &Result<Value, String>| made.is_err();
        let Some((first, last)) = made.iter().position(failed).zip(made.iter().rposition(failed)) else {
            return (0, Duration::ZERO);
        };
        let end = answered.get(last + 1).copied().unwrap_or_else(Instant::now);
        (made.iter().filter(|made| failed(made)).count(), end - answered[first])
    }

    /// Waits for some more.
    pub async fn more(&self, count: usize) {
        let wanted = self.count() + count;
        until("further pods are created", async || {
            (self.count() >= wanted).then_some(()).ok_or(self.count())
        })
        .await;
    }

    /// Not one creation may have failed so far, and every pod has its gate.
    pub fn none_failed(&self) {
        let made = self.made();
        assert!(made.len() > 20, "only {} pods", made.len());
        let bad: Vec<_> = made.iter().filter(|made| !made.as_ref().is_ok_and(has_gate)).collect();
        assert!(
            bad.is_empty(),
            "{} of {} failed: {:?}",
            bad.len(),
            made.len(),
            bad.first()
        );
    }
}

impl Drop for Creations {
    fn drop(&mut self) {
        self.task.abort();
    }
}
