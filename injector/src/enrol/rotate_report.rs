//! What the leader tells about the replacement of the root: metrics with bounded labels, and a line for each step and for each
//! change of what it waits for.

use crate::authority_stored::Misfit;
use crate::rotation::blockers::{Blocker, Reason};
use crate::rotation::{Rotation, Step};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use sandgate_mesh::metrics;
use sandgate_mesh::telemetry::seconds_since_1970;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Counts and tells.
#[derive(Clone)]
pub(crate) struct RotationReport {
    step: IntGaugeVec,
    seconds: IntGauge,
    blockers: IntGaugeVec,
    /// What was told last of what keeps it from going on.
    told: Arc<Mutex<Vec<&'static str>>>,
}

impl RotationReport {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let step = Opts::new(
            "sandgate_injector_root_rotation",
            "Whether a replacement of the root is in this step: 0 or 1.",
        );
        let blockers = Opts::new(
            "sandgate_injector_root_rotation_blockers",
            "What the step of a replacement of the root waits for, by reason: of how many pods, or 1.",
        );
        Ok(Self {
            step: metrics::registered(registry, IntGaugeVec::new(step, &["step"]))?,
            seconds: metrics::gauge(
                registry,
                "sandgate_injector_root_rotation_step_seconds",
                "For how long a replacement of the root has been in its step; 0 if there is none.",
            )?,
            blockers: metrics::registered(registry, IntGaugeVec::new(blockers, &["reason"]))?,
            told: Arc::default(),
        })
    }

    /// There is none under way, or this replica isn't the leader.
    pub(super) fn rests(&self) {
        self.set(None, 0, &[]);
        self.is_news(Vec::new());
    }

    /// This is under way, and waits for that.
    pub(super) fn step(&self, rotation: &Rotation, waits_for: &[Blocker], now: SystemTime) {
        let seconds = seconds_since_1970(now).saturating_sub(rotation.since);
        self.set(Some(rotation.step), seconds, waits_for);
        let reasons: Vec<_> = waits_for.iter().map(|blocker| blocker.reason.as_str()).collect();
        if self.is_news(reasons.clone()) && !reasons.is_empty() {
            let step = rotation.step.as_str();
            tracing::info!(step, waits_for = ?reasons, "the replacement of the root waits");
        }
    }

    /// A step has begun.
    pub(super) fn moved(&self, rotation: &Rotation, now: SystemTime) {
        self.step(rotation, &[], now);
        let (step, cause) = (rotation.step.as_str(), rotation.cause.as_str());
        tracing::info!(step, cause, from = ?rotation.from, to = %rotation.to, "the replacement of the root moves on");
    }

    /// Somebody has written something else.
    pub(super) fn misfit(&self, misfit: &Misfit) {
        self.set(None, 0, &[]);
        if self.is_news(vec!["misfit"]) {
            tracing::warn!(error = %misfit, "the replacement of the root can't go on");
        }
    }

    fn set(&self, step: Option<Step>, seconds: u64, waits_for: &[Blocker]) {
        for each in [Step::Distribute, Step::Switch, Step::Retire] {
            let gauge = self.step.with_label_values(&[each.as_str()]);
            gauge.set((step == Some(each)).into());
        }
        self.seconds.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        for reason in Reason::ALL {
            let of = waits_for.iter().filter(|blocker| blocker.reason == reason);
            let count: usize = of.map(|blocker| blocker.count).sum();
            let gauge = self.blockers.with_label_values(&[reason.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn is_news(&self, reasons: Vec<&'static str>) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *told != reasons;
        *told = reasons;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured::Captured;
    use crate::rotation::steps::each_after;

    fn series(registry: &Registry, name: &str) -> Vec<(String, f64)> {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let labelled = family.get_metric().iter().map(|metric| {
            let label = metric.get_label().first().map(|label| label.value().to_owned());
            (label.unwrap_or_default(), metric.get_gauge().get_value())
        });
        labelled.filter(|(_, value)| *value > 0.0).collect()
    }

    #[test]
    fn a_step_and_what_it_waits_for_are_counted_and_told_when_they_change() {
        let registry = Registry::new();
        let report = RotationReport::new(&registry).unwrap();
        let [distribute, switch, _] = each_after(&crate::authority_stored::Stored::new());
        let rotation = |stored: &crate::authority_stored::Stored| stored.under_way().unwrap().clone();
        let (first, second) = (rotation(&distribute), rotation(&switch));
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(first.since + 7);
        let of = |reason, count| Blocker {
            count,
            ..Blocker::new(reason)
        };
        let waits_for = [of(Reason::Gates, 3), of(Reason::Confirmation, 1)];
        let told = || report.told.lock().unwrap().clone();
        report.step(&first, &waits_for, now);
        assert_eq!(told(), ["gates", "confirmation"]);
        let step = |name: &str| series(&registry, &format!("sandgate_injector_root_rotation{name}"));
        assert_eq!(step(""), [("distribute".to_owned(), 1.0)]);
        assert_eq!(step("_step_seconds"), [(String::new(), 7.0)]);
        assert_eq!(
            step("_blockers"),
            [("confirmation".to_owned(), 1.0), ("gates".to_owned(), 3.0)]
        );
        assert!(!report.is_news(vec!["gates", "confirmation"]), "however many there are");
        report.step(&second, &[of(Reason::Pods, 1)], now);
        assert_eq!(told(), ["pods"]);
        assert_eq!(step(""), [("switch".to_owned(), 1.0)]);
        report.rests();
        assert!(
            ["", "_step_seconds", "_blockers"]
                .iter()
                .all(|name| step(name).is_empty())
        );
    }

    #[test]
    fn what_does_not_fit_is_told_once() {
        let report = RotationReport::new(&Registry::new()).unwrap();
        let misfit = Misfit::OtherRoots(Step::Switch);
        let told = Captured::of(|| report.misfit(&misfit));
        assert!(
            told.len() == 1 && told[0].contains("aren't those of that step"),
            "{told:?}"
        );
        assert!(Captured::of(|| report.misfit(&misfit)).is_empty());
    }
}
