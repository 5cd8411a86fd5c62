//! What the API server was asked, by its own count.

use sandgate_cluster_tests::Cluster;
use std::collections::BTreeMap;
use std::fmt;

/// The API server's counter of requests.
const REQUESTS: &str = "apiserver_request_total{";

/// Requests by verb and resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// All so far.
    pub(crate) async fn read(cluster: &Cluster) -> Self {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = cluster.client().request_text(request).await.unwrap();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let Some((labels, count)) = line.strip_prefix(REQUESTS).and_then(|line| line.rsplit_once("} ")) else {
                continue;
            };
            let label = |name: &str| {
                let value = labels.split_once(&format!("{name}=\""));
                value
                    .and_then(|(_, rest)| rest.split_once('"'))
                    .map_or("", |(value, _)| value)
            };
            let (verb, resource, part) = (label("verb"), label("resource"), label("subresource"));
            let slash = if part.is_empty() { "" } else { "/" };
            *counts.entry(format!("{verb} {resource}{slash}{part}")).or_default() += count.parse::<u64>().unwrap();
        }
        Self(counts)
    }

    /// Those since then.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = |what: &str| before.0.get(what).copied().unwrap_or_default();
        let counts = self.0.iter().map(|(what, count)| (what.clone(), count - earlier(what)));
        Self(counts.filter(|(_, count)| *count > 0).collect())
    }

    /// Those that are made for each gate, as often as that is.
    pub(crate) fn for_each(&self, gates: usize) -> PerGate<'_> {
        PerGate(self, gates)
    }
}

/// Shows requests as so many for a gate, and leaves out those that aren't made for gates.
pub(crate) struct PerGate<'a>(&'a Requests, usize);

impl fmt::Display for PerGate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
        let per_gate = |count: u64| count as f64 / self.1 as f64;
        let counts = self.0.0.iter().map(|(what, count)| (what, per_gate(*count)));
        let mut all = 0.0;
        for (what, count) in counts.filter(|(_, count)| *count >= 0.05) {
            write!(f, "{what} {count:.2}, ")?;
            all += count;
        }
        write!(f, "together {all:.2}")
    }
}
