//! Runs the app's own probes and hooks for the kubelet, which lockdown keeps away from the app. Hides how a probe is put
//! to the app: whoever asks chooses one of those that were declared when the gate started, and nothing else about it.
//!
//! The health port is open to everybody, so what a neighbour can do with this is bounded: one run of a probe at a time,
//! whose result all share who ask meanwhile and a moment later, and none of what the app answers is passed on.

use crate::authorize::{OwnPorts, ProbePermit, authorize_probe};
use crate::grpc::NotServing;
use crate::{dial, grpc};
use anyhow::Context;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Request, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sandgate_mesh::admin::{AppProbeRunner, ProbeAnswer};
use sandgate_mesh::body::Upload;
use sandgate_mesh::exchange::{ExchangeError, Upstream};
use sandgate_mesh::framing::Limits;
use sandgate_mesh::probe::{Action, AppProbe, AppProbes};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long a result stands. Shorter than any period of the kubelet's, and long enough that nobody can keep the app busy
/// through its own probes.
const REST: Duration = Duration::from_millis(100);
/// How much of an answer's body is waited for, in bytes; the kubelet's own measure.
const BODY_BYTES: usize = 10 * 1024;

/// Why a probe failed. For the log; the kubelet learns only that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("nobody takes a connection on the port")]
    NoConnection,
    #[error("not done in time")]
    TimedOut,
    #[error("the answer broke off")]
    Broken,
    #[error("the answer is not HTTP that can be read in one way only")]
    Malformed,
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("gRPC: {0}")]
    Grpc(#[from] NotServing),
}

/// The end of one run.
#[derive(Debug, Clone, Copy)]
struct Finished {
    at: Instant,
    outcome: Result<(), Failure>,
}

/// One run as those see it who wait for it: `None` until its end.
type Run = watch::Receiver<Option<Finished>>;

/// A probe that can be asked for.
#[derive(Debug)]
struct Declared {
    probe: AppProbe,
    permit: ProbePermit,
    framing: Arc<Limits>,
    latest: Mutex<Option<Run>>,
    fails: AtomicBool,
}

/// What the health port needs in order to run these probes. The app's answers are bounded as `framing` says.
///
/// # Errors
/// One of them leads to a port of the gate itself.
pub fn runner(probes: &AppProbes, own: &OwnPorts, framing: &Arc<Limits>) -> anyhow::Result<AppProbeRunner> {
    let mut declared = HashMap::new();
    for probe in probes.iter() {
        let own_port = || format!("app probe {}: port {} is the gate's own", probe.path(), probe.port);
        let permit = authorize_probe(probe, own).with_context(own_port)?;
        let one = Declared {
            probe: probe.clone(),
            permit,
            framing: Arc::clone(framing),
            latest: Mutex::new(None),
            fails: AtomicBool::new(false),
        };
        declared.insert(probe.path(), Arc::new(one));
    }
    Ok(Arc::new(move |path| {
        let declared = Arc::clone(declared.get(path)?);
        Some(Box::pin(async move { declared.answer().await }))
    }))
}

impl Declared {
    async fn answer(self: Arc<Self>) -> ProbeAnswer {
        let mut run = self.latest();
        let finished = run.wait_for(Option::is_some).await.map(|finished| *finished);
        match finished {
            Ok(Some(Finished { outcome: Ok(()), .. })) => ProbeAnswer::Success,
            _ if self.probe.kind.is_hook() => ProbeAnswer::NoAnswer,
            _ => ProbeAnswer::Failure,
        }
    }

    /// The run that is under way or has just ended, or a new one.
    fn latest(self: &Arc<Self>) -> Run {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |run: &Run| match *run.borrow() {
            None => run.has_changed().is_ok(),
            Some(finished) => finished.at.elapsed() < REST,
        };
        if let Some(run) = latest.as_ref().filter(|run| fresh(run)) {
            return run.clone();
        }
        let (sender, run) = watch::channel(None);
        *latest = Some(run.clone());
        let declared = Arc::clone(self);
        // A task of its own, because others may wait for it when who asked first has gone. The probe's time bounds it.
        tokio::spawn(async move {
            let outcome = declared.run().await;
            declared.log(outcome);
            let at = Instant::now();
            sender.send_replace(Some(Finished { at, outcome }));
        });
        run
    }

    async fn run(&self) -> Result<(), Failure> {
        let ended = timeout(self.probe.timeout, self.ask()).await;
        ended.unwrap_or(Err(Failure::TimedOut))
    }

    async fn ask(&self) -> Result<(), Failure> {
        let stream = dial::for_probe(&self.permit).await.map_err(|_| Failure::NoConnection)?;
        match &self.probe.action {
            Action::TcpSocket => Ok(()),
            Action::HttpGet { target, headers } => self.get(stream, target, headers).await,
            Action::Grpc { service } => {
                let (authority, wait) = (self.authority(), self.probe.timeout);
                Ok(grpc::check(stream, &self.framing, (&authority, service), wait).await?)
            }
        }
    }

    async fn get(&self, stream: TcpStream, target: &PathAndQuery, headers: &HeaderMap) -> Result<(), Failure> {
        let mut request = Box::new(Request::new(Upload::empty(Instant::now())));
        *request.uri_mut() = Uri::from(target.clone());
        *request.headers_mut() = self.head(headers);
        let upstream = Upstream::start(stream, &self.framing).await;
        let mut upstream = upstream.map_err(|_| Failure::Broken)?;
        let answer = upstream
            .send(request, self.probe.timeout)
            .await
            .map_err(|error| match error {
                ExchangeError::Malformed(_) => Failure::Malformed,
                ExchangeError::TimedOut => Failure::TimedOut,
                ExchangeError::NotSent(_) | ExchangeError::Broken(_) | ExchangeError::Upload(_) => Failure::Broken,
            })?;
        match answer.status().as_u16() {
            // A hook is done when the app has answered, whatever it says: so the kubelet sees it.
            _ if self.probe.kind.is_hook() => Ok(()),
            // Redirects are not followed: they are the app's choice.
            200..400 => read_some(answer.into_body()).await,
            status => Err(Failure::Status(status)),
        }
    }

    fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.probe.port)
    }

    /// The declared head, and the rest as the kubelet would fill it in.
    fn head(&self, declared: &HeaderMap) -> HeaderMap {
        let mut headers = declared.clone();
        if !headers.contains_key(HOST) {
            let host = HeaderValue::from_str(&self.authority());
            headers.extend(host.map(|host| (HOST, host)));
        }
        let agent = if self.probe.kind.is_hook() {
            "kube-lifecycle/sandgate"
        } else {
            "kube-probe/sandgate"
        };
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(agent));
        let accept = headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if accept.is_empty() {
            headers.remove(ACCEPT);
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers
    }

    /// One line per change, not per probe.
    fn log(&self, outcome: Result<(), Failure>) {
        let (container, kind) = (self.probe.container.as_str(), self.probe.kind.as_str());
        let failed = self.fails.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(reason) if !failed => tracing::info!(container, probe = kind, %reason, "the app's probe fails"),
            Ok(()) if failed => tracing::info!(container, probe = kind, "the app's probe succeeds again"),
            _ => {}
        }
    }
}

/// Waits for the end of a body, or for as much of it as matters, and keeps nothing.
async fn read_some(mut body: Incoming) -> Result<(), Failure> {
    let mut read = 0;
    while read < BODY_BYTES {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, bytes::Bytes::len),
            Some(Err(_)) => return Err(Failure::Broken),
            None => break,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
