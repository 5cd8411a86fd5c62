//! Making metrics that are scraped: none is made and then left out of its registry.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result};

/// A metric that was just made, in `registry` from now on.
///
/// # Errors
/// It couldn't be made, or another of its name is there.
pub fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: Result<C>) -> Result<C> {
    let metric = made?;
    registry.register(Box::new(metric.clone()))?;
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
