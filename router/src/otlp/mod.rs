//! Traces and metrics by OTLP (<https://opentelemetry.io/docs/specs/otlp/>). Hides the collector: requests hand over what is
//! known of them at their end, and a thread of its own does the rest, so that a collector that is slow or away slows nobody.
//!
//! [`tracer`] is a request's side, [`export`] the thread's; [`messages`] says it in OTLP's terms and [`collector`] sends it.

mod collector;
mod export;
mod messages;
mod tracer;

pub(crate) use tracer::{End, OpenSpan, Tracer};

use crate::config::OtlpSettings;
use crate::metrics::Metrics;
use anyhow::Context;
use collector::Collector;
use export::{Exports, Stop};
use messages::Resource;
use prometheus::{IntCounter, IntCounterVec, Registry};
use sandgate_mesh::metrics::counters;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tracer::Ended;

/// Spans that may wait to be exported; each is a few hundred bytes, and a few thousand if its client wants that.
const QUEUE: usize = 2048;
/// How long the end of the process may wait for the last export.
const FINISH: Duration = Duration::from_secs(3);

/// Spans that nobody will see, by reason.
#[derive(Debug, Clone)]
struct Dropped {
    /// The queue was full.
    queue: IntCounter,
    /// The collector couldn't be reached, or refused them for now.
    failed: IntCounter,
    /// The collector doesn't want them.
    rejected: IntCounter,
}

/// What exports. It ends with this value.
#[derive(Debug)]
pub(crate) struct Otlp {
    tracer: Option<Arc<Tracer>>,
    stop: watch::Sender<bool>,
    done: oneshot::Receiver<()>,
}

/// Counters of spans that were dropped, by reason, and of exports, by signal and outcome. Only a router with a collector has
/// them.
pub(crate) fn metrics_of(registry: &Registry) -> prometheus::Result<(IntCounterVec, IntCounterVec)> {
    let dropped = counters(
        registry,
        "sandbox_router_otlp_dropped_spans_total",
        "Spans that no collector took, by reason.",
        &["reason"],
    )?;
    let exports = counters(
        registry,
        "sandbox_router_otlp_exports_total",
        "Exports by OTLP, by signal and outcome.",
        &["signal", "outcome"],
    )?;
    Ok((dropped, exports))
}

impl Otlp {
    /// Starts the thread.
    ///
    /// # Errors
    /// Roots that can't be used, or no thread.
    pub(crate) fn start(settings: &OtlpSettings, metrics: &Metrics) -> anyhow::Result<Self> {
        let registry = &metrics.registry;
        let (dropped, exports) = metrics_of(registry)?;
        let dropped = Dropped {
            queue: dropped.with_label_values(&["queue"]),
            failed: dropped.with_label_values(&["failed"]),
            rejected: dropped.with_label_values(&["rejected"]),
        };
        let resource = Resource::new(&settings.resource);
        let (stop, stopped) = watch::channel(false);
        let (mut tracer, mut spans) = (None, None);
        if let Some(traces) = &settings.traces {
            let (sender, queue) = mpsc::channel::<Ended>(QUEUE);
            tracer = Some(Arc::new(Tracer::new(traces.sampler, sender, dropped.queue.clone())));
            let collector = Collector::new(&traces.export).context("traces can't be exported")?;
            let exports = Exports::new("traces", collector, &exports);
            spans = Some(export::Spans::new(
                queue,
                traces.delay,
                exports,
                dropped,
                resource.clone(),
            ));
        }
        let metrics = settings.metrics.as_ref().map(|metrics| {
            let collector = Collector::new(&metrics.export).context("metrics can't be exported")?;
            let exports = Exports::new("metrics", collector, &exports);
            anyhow::Ok(export::Series::new(
                registry.clone(),
                metrics.interval,
                exports,
                resource,
            ))
        });
        let done = export::start(spans, metrics.transpose()?, Stop::new(stopped))?;
        Ok(Self { tracer, stop, done })
    }

    /// What traces requests, if any are.
    pub(crate) fn tracer(&self) -> Option<Arc<Tracer>> {
        self.tracer.clone()
    }

    /// Exports what there still is, if that can be done in a moment.
    pub(crate) async fn finish(self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(FINISH, self.done).await.is_err() {
            tracing::warn!("the last traces and metrics could not be exported in time");
        }
    }
}
