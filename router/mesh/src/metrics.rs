//! Making metrics that are scraped: none is made and then left out of its registry, or out of the reference of all metrics,
//! docs/metrics.md.

use prometheus::core::Collector;
use prometheus::proto::MetricType;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result};
use std::cell::RefCell;
use std::fmt;

/// What a metric is, whether or not it has been counted yet: a registry tells of those only that have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
}

/// As the reference begins its row.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = match &self.labels[..] {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        write!(f, "| `{}{labels}` | {} |", self.name, self.kind)
    }
}

thread_local! {
    /// What this thread has registered, while somebody wants to know.
    static REGISTERED: RefCell<Option<Vec<Description>>> = const { RefCell::new(None) };
}

/// What `make` registers on this thread, for those who hold the reference against the code.
pub fn registered_by(make: impl FnOnce()) -> Vec<Description> {
    REGISTERED.set(Some(Vec::new()));
    make();
    REGISTERED.take().unwrap_or_default()
}

/// How the rows of the reference begin that are about metrics of this `prefix`: each as its [`Description`] is displayed.
pub fn rows_of<'a>(page: &'a str, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    let rows = page
        .lines()
        .filter(move |line| line.starts_with(&format!("| `{prefix}")));
    rows.map(|row| row.split_inclusive('|').take(3).collect())
}

/// Puts a metric into `registry`.
///
/// # Errors
/// Another of its name is there.
#[expect(clippy::disallowed_methods, reason = "this is what is to be called instead")]
pub fn register(registry: &Registry, metric: impl Collector + 'static) -> Result<()> {
    REGISTERED.with_borrow_mut(|registered| {
        if let Some(all) = registered {
            all.extend(descriptions(&metric));
        }
    });
    registry.register(Box::new(metric))
}

fn descriptions(metric: &impl Collector) -> Vec<Description> {
    let of = |family: &prometheus::proto::MetricFamily| match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::HISTOGRAM => "histogram",
        _ => "gauge",
    };
    let kinds: Vec<_> = metric.collect().iter().map(of).collect();
    let described = metric.desc().into_iter().zip(kinds);
    described
        .map(|(desc, kind)| Description {
            name: desc.fq_name.clone(),
            labels: desc.variable_labels.clone(),
            kind,
        })
        .collect()
}

/// A metric that was just made, in `registry` from now on.
///
/// # Errors
/// It couldn't be made, or another of its name is there.
pub fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: Result<C>) -> Result<C> {
    let metric = made?;
    register(registry, metric.clone())?;
    Ok(metric)
}

/// A counter.
///
/// # Errors
/// See [`registered`].
pub fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter> {
    registered(registry, IntCounter::new(name, help))
}

/// A counter for each combination of the labels' values.
///
/// # Errors
/// See [`registered`].
pub fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

/// A gauge.
///
/// # Errors
/// See [`registered`].
pub fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge> {
    registered(registry, IntGauge::new(name, help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{HistogramOpts, HistogramVec};

    #[test]
    fn what_is_registered_is_described_before_it_is_counted() {
        let registry = Registry::new();
        let described = registered_by(|| {
            counters(&registry, "a_total", "A.", &["x", "y"]).unwrap();
            gauge(&registry, "b", "B.").unwrap();
            let durations = HistogramVec::new(HistogramOpts::new("c_seconds", "C."), &["z"]);
            registered(&registry, durations).unwrap();
        });
        let rows: Vec<_> = described.iter().map(ToString::to_string).collect();
        assert_eq!(
            rows,
            [
                "| `a_total{x,y}` | counter |",
                "| `b` | gauge |",
                "| `c_seconds{z}` | histogram |"
            ]
        );
        let page = "| `b` | gauge | b | B |\n| `c{d}` | counter | C |\n";
        assert!(rows_of(page, "b").eq(["| `b` | gauge |"]) && rows_of(page, "c").eq(["| `c{d}` | counter |"]));
        assert!(counter(&registry, "b", "B.").is_err(), "one of its name is there");
        assert!(registered_by(|| {}).is_empty());
    }
}
