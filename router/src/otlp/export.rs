//! The thread that exports: collects spans into batches, reads the metrics now and then, and tries again where that may help.

use super::Dropped;
use super::collector::{Collector, Failure};
use super::messages::{self, Resource};
use super::tracer::Ended;
use anyhow::Context;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prometheus::{IntCounter, IntCounterVec, Registry};
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// Requests whose spans are sent together.
const BATCH: usize = 512;
/// Pauses before further attempts to send a batch. The queue takes what comes meanwhile, for as long as it has room.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// Says when the process ends.
#[derive(Debug, Clone)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(super) fn new(stopped: watch::Receiver<bool>) -> Self {
        Self(stopped)
    }

    /// Completes when it does.
    async fn wait(&mut self) {
        // Whoever would say so may be gone, too.
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }

    fn is_now(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// The exports of one signal: what came of them is counted, and told when it changes.
#[derive(Debug)]
pub(super) struct Exports {
    signal: &'static str,
    collector: Collector,
    done: IntCounter,
    failed: IntCounter,
    is_failing: AtomicBool,
}

impl Exports {
    pub(super) fn new(signal: &'static str, collector: Collector, exports: &IntCounterVec) -> Self {
        Self {
            done: exports.with_label_values(&[signal, "ok"]),
            failed: exports.with_label_values(&[signal, "failed"]),
            signal,
            collector,
            is_failing: AtomicBool::new(false),
        }
    }

    fn tell<A>(&self, outcome: &Result<A, Failure>) {
        let (signal, collector) = (self.signal, self.collector.name());
        match outcome {
            Ok(_) => {
                self.done.inc();
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(signal, collector, "the collector takes exports again");
                }
            }
            Err(failure) => {
                self.failed.inc();
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    let error = &failure.text;
                    tracing::warn!(
                        signal,
                        collector,
                        error,
                        "the collector takes no exports; told once until it does"
                    );
                }
            }
        }
    }
}

/// The export of spans.
#[derive(Debug)]
pub(super) struct Spans {
    queue: mpsc::Receiver<Ended>,
    /// How long a span waits for others.
    delay: Duration,
    exports: Exports,
    dropped: Dropped,
    resource: Resource,
}

impl Spans {
    pub(super) fn new(
        queue: mpsc::Receiver<Ended>,
        delay: Duration,
        exports: Exports,
        dropped: Dropped,
        resource: Resource,
    ) -> Self {
        Self {
            queue,
            delay,
            exports,
            dropped,
            resource,
        }
    }

    async fn run(mut self, mut stop: Stop) {
        let mut batch = Vec::with_capacity(BATCH);
        while !stop.is_now() {
            self.gather(&mut batch, &mut stop).await;
            self.export(&mut batch, &mut stop).await;
        }
        self.queue.close();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            self.export(&mut batch, &mut stop).await;
        }
    }

    /// Waits for a span, and then a moment for more.
    async fn gather(&mut self, batch: &mut Vec<Ended>, stop: &mut Stop) {
        let mut until = None;
        while batch.len() < BATCH {
            let due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                taken = self.queue.recv_many(batch, BATCH - batch.len()) => if taken == 0 { return },
                () = due => return,
                () = stop.wait() => return,
            }
            until.get_or_insert_with(|| Instant::now() + self.delay);
        }
    }

    async fn export(&self, batch: &mut Vec<Ended>, stop: &mut Stop) {
        if batch.is_empty() {
            return;
        }
        let (message, count) = (messages::spans(&self.resource, batch), messages::count(batch));
        batch.clear();
        match self.send(message, stop).await {
            Ok(answer) => {
                let rejected = answer.partial_success.unwrap_or_default();
                if rejected.rejected_spans > 0 {
                    let why = cut(&rejected.error_message, LONGEST_TEXT);
                    tracing::warn!(spans = rejected.rejected_spans, %why, "the collector rejected spans");
                    self.dropped.rejected.inc_by(rejected.rejected_spans.unsigned_abs());
                }
            }
            Err(_) => self.dropped.failed.inc_by(count),
        }
    }

    /// Tries again where that may help, but not while the process ends.
    async fn send(
        &self,
        message: ExportTraceServiceRequest,
        stop: &mut Stop,
    ) -> Result<ExportTraceServiceResponse, Failure> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let sent = self.exports.collector.send(message.clone(), TRACES).await;
            self.exports.tell(&sent);
            let failure = match sent {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(pause) = pauses.next().filter(|_| failure.is_passing && !stop.is_now()) else {
                return Err(failure);
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.wait() => {}
            }
        }
    }
}

/// The export of metrics.
#[derive(Debug)]
pub(super) struct Series {
    registry: Registry,
    interval: Duration,
    exports: Exports,
    resource: Resource,
    start: SystemTime,
}

impl Series {
    pub(super) fn new(registry: Registry, interval: Duration, exports: Exports, resource: Resource) -> Self {
        Self {
            registry,
            interval,
            exports,
            resource,
            start: SystemTime::now(),
        }
    }

    /// What one export loses, the next one has: all numbers count from the start.
    async fn run(self, mut stop: Stop) {
        while !stop.is_now() {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = stop.wait() => {}
            }
            let families = self.registry.gather();
            let message = messages::metrics(&self.resource, &families, self.start, SystemTime::now());
            let sent = self
                .exports
                .collector
                .send::<_, ExportMetricsServiceResponse>(message, METRICS)
                .await;
            self.exports.tell(&sent);
            let rejected = sent.ok().and_then(|answer| answer.partial_success).unwrap_or_default();
            if rejected.rejected_data_points > 0 {
                let why = cut(&rejected.error_message, LONGEST_TEXT);
                tracing::warn!(points = rejected.rejected_data_points, %why, "the collector rejected metrics");
            }
        }
    }
}

/// Starts the thread. What is returned completes with it.
///
/// # Errors
/// No thread or no runtime could be made.
pub(super) fn start(spans: Option<Spans>, series: Option<Series>, stop: Stop) -> anyhow::Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = oneshot::channel();
    let work = async move {
        let spans = async {
            if let Some(spans) = spans {
                spans.run(stop.clone()).await;
            }
        };
        let series = async {
            if let Some(series) = series {
                series.run(stop.clone()).await;
            }
        };
        tokio::join!(spans, series);
    };
    let run = move || {
        runtime.block_on(work);
        // A name that is still being looked up must not hold anybody.
        runtime.shutdown_background();
        let _ = done.send(());
    };
    std::thread::Builder::new()
        .name("otlp".into())
        .spawn(run)
        .context("the thread that exports can't be started")?;
    Ok(ended)
}
