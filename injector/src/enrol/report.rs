//! What is told about enrolment: metrics with bounded labels, and one line for each identity, policy and refusal.

use super::clock::Skew;
use super::events::{Events, Reason, Told};
use super::queue::{Census, Trouble, Visit};
use super::signer::{Answered, Asked, Unanswered};
use super::visit::{Party, Settled, VisitError};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use sandgate_mesh::metrics;
use sandgate_mesh::telemetry::{LONGEST_TEXT, LineLog, cut, timestamp, utc};
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;

/// Seconds: most visits take some ten milliseconds, and none more than thirty seconds.
const BUCKETS: [f64; 9] = [0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0, 30.0];

/// Seconds: what certificates are backdated is among them.
const CLOCK_BUCKETS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
/// After how many failures in a row, which take about half a minute, whoever runs the pod is told.
const LASTING: u32 = 6;
/// What a large difference means.
const CLOCK_DIFFERS: &str =
    "the clocks differ, and certificates count by them: when they differ by more than a minute, none may be taken";

/// What is counted of gates, or of routers.
#[derive(Clone)]
struct Counts {
    visits: IntCounterVec,
    /// How many there are, by state.
    all: IntGaugeVec,
    /// How many of them haven't shown to have the roots that are in force.
    behind: IntGaugeVec,
}

/// Counts and tells.
#[derive(Clone)]
pub(crate) struct Report {
    gates: Counts,
    routers: Counts,
    durations: HistogramVec,
    clocks: HistogramVec,
    /// How many clocks differ, by party.
    skewed: IntGaugeVec,
    requests: IntCounterVec,
    leader: IntGauge,
    epoch: IntGauge,
    log: LineLog,
    events: Events,
}

impl Report {
    pub(crate) fn new(registry: &Registry, log: LineLog, events: Events) -> prometheus::Result<Self> {
        let durations = HistogramOpts::new(
            "sandgate_injector_enrolment_duration_seconds",
            "How long visits to gates and routers took, by outcome.",
        );
        let durations = HistogramVec::new(durations.buckets(BUCKETS.to_vec()), &["outcome"]);
        let clocks = HistogramOpts::new(
            "sandgate_injector_clock_skew_seconds",
            "How far the clocks of gates and routers were from this one's when they were visited, at least and either way.",
        );
        let clocks = HistogramVec::new(clocks.buckets(CLOCK_BUCKETS.to_vec()), &["of"]);
        let skewed = Opts::new(
            "sandgate_injector_clocks_skewed",
            "Gates and routers whose clock was more than 30 seconds away when they were visited last.",
        );
        let gates = Counts {
            visits: metrics::counters(
                registry,
                "sandgate_injector_enrolments_total",
                "Visits to gates, by outcome (ok, refused, failed) and what was done or why not.",
                &["outcome", "reason"],
            )?,
            all: states(
                registry,
                "sandgate_injector_gates",
                "Gates that this replica looks after as the leader, by state: waiting for a first visit, enrolled, refused, failing.",
            )?,
            behind: states(
                registry,
                "sandgate_injector_gates_behind",
                "Gates that haven't shown to have the roots that are in force, by the same states.",
            )?,
        };
        let routers = Counts {
            visits: metrics::counters(
                registry,
                "sandgate_injector_router_enrolments_total",
                "Visits to routers, by outcome (ok, refused, failed) and what was done or why not.",
                &["outcome", "reason"],
            )?,
            all: states(
                registry,
                "sandgate_injector_routers",
                "Routers that this replica looks after as the leader, by the states of gates.",
            )?,
            behind: states(
                registry,
                "sandgate_injector_routers_behind",
                "Routers that haven't shown to have the roots that are in force, by the same states.",
            )?,
        };
        Ok(Self {
            gates,
            routers,
            durations: metrics::registered(registry, durations)?,
            clocks: metrics::registered(registry, clocks)?,
            skewed: metrics::registered(registry, IntGaugeVec::new(skewed, &["of"]))?,
            requests: metrics::counters(
                registry,
                "sandgate_injector_pod_certificates_total",
                "Tries to answer kubelets' requests for gates' certificates, by outcome (issued, denied, refused, failed) and why.",
                &["outcome", "reason"],
            )?,
            leader: metrics::gauge(
                registry,
                "sandgate_injector_leader",
                "Whether this replica is the one that looks after gates: 0 or 1.",
            )?,
            epoch: metrics::gauge(
                registry,
                "sandgate_injector_epoch",
                "The epoch in which this replica was the leader last; 0 if it never was.",
            )?,
            log,
            events,
        })
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            self.census(Party::Gates, Census::default(), 0);
            self.census(Party::Routers, Census::default(), 0);
        }
    }

    pub(super) fn epoch(&self, epoch: u64) {
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
    }

    fn counts(&self, party: Party) -> &Counts {
        match party {
            Party::Gates => &self.gates,
            Party::Routers => &self.routers,
        }
    }

    pub(super) fn census(&self, party: Party, census: Census, skewed: usize) {
        let counts = self.counts(party);
        let gauge = self.skewed.with_label_values(&[party.as_str()]);
        gauge.set(i64::try_from(skewed).unwrap_or(i64::MAX));
        for (gauge, count) in [(&counts.all, census.all), (&counts.behind, census.behind)] {
            for (state, count) in [
                ("waiting", count.waiting),
                ("enrolled", count.enrolled),
                ("refused", count.refused),
                ("failing", count.failing),
            ] {
                let gauge = gauge.with_label_values(&[state]);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Counts how far a clock was away, and warns of it where that is `news`.
    pub(super) fn clock(&self, party: Party, visit: &Visit, skew: Skew, news: bool) {
        let clocks = self.clocks.with_label_values(&[party.as_str()]);
        clocks.observe(skew.distance().as_secs_f64());
        if news {
            let (namespace, pod) = (visit.target.namespace.as_str(), visit.target.name.as_str());
            let (of, clock) = (party.as_str(), skew.to_string());
            let next = "see to the time of its node, or of the injector's";
            tracing::warn!(of, namespace, pod, clock, next, "{CLOCK_DIFFERS}");
            let note = format!("The clock of this pod's node is {clock}: {CLOCK_DIFFERS}.");
            self.tell(visit, Reason::Clock, "clock_skew", note);
        }
    }

    /// Counts how a visit ended, and has a line for it where that is `news`.
    pub(super) fn visited(
        &self,
        party: Party,
        visit: &Visit,
        ended: &Result<Settled, VisitError>,
        took: Duration,
        news: bool,
    ) {
        let (outcome, reason) = match ended {
            Ok(settled) => ("ok", settled.done.as_str()),
            Err(error) => (error.outcome(), error.as_str()),
        };
        self.counts(party).visits.with_label_values(&[outcome, reason]).inc();
        self.durations.with_label_values(&[outcome]).observe(took.as_secs_f64());
        if let Err(error) = ended {
            self.tell_of_trouble(party, visit, error, news);
        }
        if news {
            let target = &visit.target;
            let message = ended.as_ref().err().map(ToString::to_string);
            self.log.write(&Line {
                time: timestamp(),
                log: "enrolment",
                of: party.as_str(),
                outcome,
                reason,
                message: message.as_deref().map(|message| cut(message, 2 * LONGEST_TEXT)),
                namespace: target.namespace.as_str(),
                pod: target.name.as_str(),
                pod_uid: target.uid.as_str(),
                address: target.ip,
                until: ended.as_ref().ok().map(|settled| utc(settled.proof.until).to_string()),
                failures: visit.failures + u32::from(ended.is_err()),
                duration_ms: took.as_millis(),
            });
        }
    }

    /// Has whoever runs the pod told of a refusal, and of a failure that has lasted.
    fn tell_of_trouble(&self, party: Party, visit: &Visit, error: &VisitError, news: bool) {
        let of = party.as_str();
        match error.trouble() {
            Trouble::Refused if news => {
                let note = format!("The {of} gets no identity: {error}.");
                self.tell(visit, Reason::Refused, error.as_str(), note);
            }
            Trouble::Failed if visit.failures + 1 >= LASTING => {
                let failures = visit.failures + 1;
                let note = format!("The {of} couldn't be given what it needs {failures} times in a row: {error}.");
                self.tell(visit, Reason::Failing, error.as_str(), note);
            }
            Trouble::Refused | Trouble::Failed => {}
        }
    }

    fn tell(&self, visit: &Visit, reason: Reason, word: &'static str, note: String) {
        let target = visit.target.clone();
        self.events.tell(Told {
            target,
            reason,
            word,
            note,
        });
    }
}

impl Report {
    /// Counts a try to answer a request for a certificate, and has a line for it where that is `news`.
    pub(super) fn requested(&self, asked: &Asked, ended: Option<&Result<Answered, Unanswered>>, news: bool) {
        let (outcome, reason) = match ended {
            Some(Ok(Answered::Issued(_))) => ("issued", "issued"),
            Some(Ok(Answered::Denied(reason, _))) => ("denied", *reason),
            Some(Err(error)) => (error.outcome(), error.as_str()),
            None => ("failed", "panicked"),
        };
        self.requests.with_label_values(&[outcome, reason]).inc();
        if !news {
            return;
        }
        let (until, message) = match ended {
            Some(Ok(Answered::Issued(until))) => (Some(utc(*until).to_string()), None),
            Some(Ok(Answered::Denied(_, message))) => (None, Some(message.clone())),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, None),
        };
        self.log.write(&RequestLine {
            time: timestamp(),
            log: "pod_certificate",
            outcome,
            reason,
            message: message.as_deref().map(|message| cut(message, 2 * LONGEST_TEXT)),
            namespace: asked.pod.namespace.as_str(),
            pod: asked.pod.name.as_str(),
            pod_uid: asked.pod_uid.as_str(),
            request: &asked.name,
            until,
        });
    }
}

/// A gauge for each state.
fn states(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGaugeVec> {
    metrics::registered(registry, IntGaugeVec::new(Opts::new(name, help), &["state"]))
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    log: &'static str,
    of: &'static str,
    outcome: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<std::borrow::Cow<'a, str>>,
    namespace: &'a str,
    pod: &'a str,
    pod_uid: &'a str,
    address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    failures: u32,
    duration_ms: u128,
}

#[derive(Serialize)]
struct RequestLine<'a> {
    time: String,
    log: &'static str,
    outcome: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<std::borrow::Cow<'a, str>>,
    namespace: &'a str,
    pod: &'a str,
    pod_uid: &'a str,
    request: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
