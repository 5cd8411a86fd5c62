//! How far the clocks of gates and routers are from this one. Certificates count by the clock of whoever looks at them, so
//! nodes whose clocks differ by more than certificates are backdated can't be given any.
//!
//! Each answer tells the time in its `Date` (RFC 9110, section 6.6.1), in whole seconds. What is made of it is never more than what must be
//! true: an answer that was long on its way shows no difference.

use http::HeaderMap;
use http::header::DATE;
use sandgate_mesh::sandbox::PodUid;
use std::collections::HashSet;
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

/// From which difference on somebody is told: half of what certificates are backdated.
pub(super) const MOST: Duration = Duration::from_secs(30);
/// How old a `Date` may be: it is cut to a second, and servers renew it once a second.
const BLUR: Duration = Duration::from_secs(2);

/// How far a clock is from this one, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skew {
    Ahead(Duration),
    Behind(Duration),
}

impl Skew {
    /// What an answer says that was asked for and had come at these times; none if it says nothing.
    pub(super) fn of(headers: &HeaderMap, asked: SystemTime, answered: SystemTime) -> Option<Self> {
        let date = headers.get(DATE)?.to_str().ok()?;
        let date = httpdate::parse_http_date(date).ok()?;
        let ahead = date.duration_since(answered).unwrap_or_default();
        let behind = asked.duration_since(date.checked_add(BLUR)?).unwrap_or_default();
        Some(if ahead > behind {
            Self::Ahead(ahead)
        } else {
            Self::Behind(behind)
        })
    }

    /// How far, whichever way.
    pub(super) const fn distance(self) -> Duration {
        match self {
            Self::Ahead(distance) | Self::Behind(distance) => distance,
        }
    }

    /// Whether somebody is to be told.
    pub(super) fn is_large(self) -> bool {
        self.distance() > MOST
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self {
            Self::Ahead(_) => "ahead of",
            Self::Behind(_) => "behind",
        };
        write!(f, "{} s {side} the injector's", self.distance().as_secs())
    }
}

/// What one visit has learned of a clock. The first answer counts.
#[derive(Debug, Default)]
pub(super) struct Clock(OnceLock<Skew>);

impl Clock {
    /// Takes note of what somebody's answer said, if anything.
    pub(super) fn note(&self, skew: Option<Skew>) {
        if let Some(skew) = skew {
            // There is one already.
            let _ = self.0.set(skew);
        }
    }

    /// What it is, if anything was said.
    pub(super) fn skew(&self) -> Option<Skew> {
        self.0.get().copied()
    }
}

/// The pods whose clocks differ.
#[derive(Debug, Default)]
pub(super) struct Skewed(HashSet<PodUid>);

impl Skewed {
    /// Takes note of a pod's clock, and says whether that is news: it wasn't known to differ.
    pub(super) fn note(&mut self, pod: &PodUid, skew: Skew) -> bool {
        if skew.is_large() {
            self.0.insert(pod.clone())
        } else {
            self.0.remove(pod);
            false
        }
    }

    /// Forgets a pod.
    pub(super) fn gone(&mut self, pod: &PodUid) {
        self.0.remove(pod);
    }

    /// Forgets all others than these.
    pub(super) fn retain(&mut self, is_there: impl Fn(&PodUid) -> bool) {
        self.0.retain(is_there);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const SECOND: Duration = Duration::from_secs(1);

    fn told(date: &str, asked: SystemTime, answered: SystemTime) -> Option<Skew> {
        let headers = HeaderMap::from_iter([(DATE, HeaderValue::from_str(date).unwrap())]);
        Skew::of(&headers, asked, answered)
    }

    #[test]
    fn a_clock_is_as_far_away_as_an_answer_proves_and_no_farther() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let of = |shown: SystemTime, took: u32| told(&httpdate::fmt_http_date(shown), now, now + took * SECOND);
        let same = Some(Skew::Behind(Duration::ZERO));
        assert_eq!(of(now, 0), same);
        assert_eq!(of(now - BLUR, 0), same, "it may have been cut, and be a second old");
        assert_eq!(of(now - BLUR - SECOND, 0), Some(Skew::Behind(SECOND)));
        assert_eq!(of(now + 5 * SECOND, 0), Some(Skew::Ahead(5 * SECOND)));
        assert_eq!(of(now + 5 * SECOND, 5), same, "it was long on its way");
        let far = of(now + 3600 * SECOND, 1).unwrap();
        assert_eq!(far.to_string(), "3599 s ahead of the injector's");
        assert!(far.is_large());
        assert!(!of(now + MOST, 0).unwrap().is_large() && of(now + MOST + SECOND, 0).unwrap().is_large());
        assert!(of(now - BLUR - MOST - SECOND, 0).unwrap().is_large());
    }

    #[test]
    fn what_is_no_date_says_nothing() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        for odd in ["", "now", "1790000000", "Mon, 21 Sep 2026 14:13:20 CET"] {
            assert_eq!(told(odd, now, now), None, "{odd}");
        }
        assert_eq!(Skew::of(&HeaderMap::new(), now, now), None);
        let far = told("Fri, 31 Dec 9999 23:59:59 GMT", now, now);
        assert!(far.is_some_and(Skew::is_large), "bounded by what a date can be");
    }

    #[test]
    fn a_pod_is_news_once_until_its_clock_is_right_again() {
        let (mut skewed, pod) = (Skewed::default(), "pod-1".parse().unwrap());
        let (far, near) = (Skew::Ahead(2 * MOST), Skew::Behind(SECOND));
        assert!(!skewed.note(&pod, near) && skewed.note(&pod, far) && !skewed.note(&pod, far));
        assert_eq!(skewed.count(), 1);
        assert!(!skewed.note(&pod, near) && skewed.note(&pod, far));
        skewed.retain(|_| true);
        assert_eq!(skewed.count(), 1);
        skewed.retain(|_| false);
        assert!(skewed.note(&pod, far));
        skewed.gone(&pod);
        assert_eq!(skewed.count(), 0);
    }
}
