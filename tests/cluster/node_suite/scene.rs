//! Sandboxes under a constant stream of requests, and what became of them as a line of the table of events.

use crate::pods::{Running, router, start_sandbox, team, until_answered};
use crate::stream::{Answer, Stream, Target};
use sandgate_cluster_tests::runner::note;
use sandgate_cluster_tests::{Cluster, Namespace};
use std::net::SocketAddr;
use std::time::Duration;

/// How long the stream flows before an event and after it.
pub(crate) const CALM: Duration = Duration::from_secs(3);
/// No request takes longer, also one whose pod has just gone: far beyond the two seconds that are aimed at, for machines that run
/// tests are busy, and less than every attempt to reach an address takes where nobody is.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// Sandboxes with a stream of requests to them.
pub(crate) struct Scene {
    pub(crate) team: Namespace,
    pub(crate) pods: Vec<Running>,
    stream: Stream,
}

impl Scene {
    pub(crate) async fn set(cluster: &Cluster) -> Self {
        Self::set_at(router(cluster).await, cluster).await
    }

    pub(crate) async fn set_at(router: SocketAddr, cluster: &Cluster) -> Self {
        let team = team(cluster).await;
        let mut pods = Vec::new();
        for name in ["first", "second", "third"] {
            let pod = start_sandbox(&team, name).await;
            until_answered(&team, name, &pod).await;
            pods.push(pod);
        }
        let targets = pods.iter().map(|pod| Target::named(&pod.name)).collect();
        let stream = Stream::start(router, team.name(), targets);
        tokio::time::sleep(CALM).await;
        Self { team, pods, stream }
    }

    /// Lets the stream flow on for a while and returns what became of all requests.
    pub(crate) async fn end(self) -> (Vec<Running>, Vec<Answer>) {
        tokio::time::sleep(CALM).await;
        (self.pods, self.stream.stop().await)
    }
}

/// The requests that failed during an event.
pub(crate) struct Failed(Vec<Answer>);

/// Counts, and tells it as a line of the table of events. Each sandbox has these pods, one after the other: fails when another
/// has answered, and when a request hung.
pub(crate) fn count(event: &str, answers: &[Answer], pods: &[Running]) -> Failed {
    let is_wrong = |answer: &&Answer| {
        let mut meant = pods.iter().filter(|pod| pod.name == answer.sandbox);
        answer.status == 200 && !meant.any(|pod| pod.uid == answer.body)
    };
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status != 200).cloned().collect();
    let slowest = answers.iter().map(|answer| answer.took).max().unwrap_or_default();
    note(&format!(
        "{event:<28} {:>5} requests {:>4} failed {:>2} delivered wrongly, slowest {:.2} s",
        answers.len(),
        failed.len(),
        answers.iter().filter(is_wrong).count(),
        slowest.as_secs_f64()
    ));
    assert!(answers.len() > 100, "only {} requests", answers.len());
    no_answer(answers.iter().filter(is_wrong));
    no_answer(answers.iter().filter(|answer| answer.took > ANSWERED_WITHIN));
    Failed(failed)
}

/// Fails when there are such answers, and shows some.
fn no_answer<'a>(answers: impl Iterator<Item = &'a Answer>) {
    const SHOWN: usize = 5;
    let answers: Vec<_> = answers.collect();
    let shown: Vec<_> = answers.iter().take(SHOWN).collect();
    assert!(answers.is_empty(), "{} answers, such as {shown:?}", answers.len());
}

impl Failed {
    /// Fails when a request failed that isn't excused.
    pub(crate) fn none_but(&self, excused: impl Fn(&Answer) -> bool) {
        no_answer(self.0.iter().filter(|answer| !excused(answer)));
    }

    /// Fails when a request failed.
    pub(crate) fn none(&self) {
        self.none_but(|_| false);
    }
}
