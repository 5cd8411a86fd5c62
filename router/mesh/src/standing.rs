//! Does this process's own identity count now, and who is told when that changes? Certificates end by themselves, at
//! hours at which nobody changes a file: so it is looked at again and again, and each change is said once.

use crate::credentials::{Credentials, MeshCredentials, Unfit};
use crate::telemetry::{seconds_since_1970, utc};
use prometheus::IntGauge;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often it is looked at. By the clock, which a long timer would not follow.
const PERIOD: Duration = Duration::from_secs(1);
/// The last part of its life, in which a certificate should have been renewed: one of so many.
const LAST_PART: u32 = 10;

/// The credentials, if they count at `now`.
///
/// # Errors
/// Why they don't.
pub fn fit(credentials: &Credentials, now: SystemTime) -> Result<Arc<MeshCredentials>, Unfit> {
    let current = credentials.borrow().clone().ok_or(Unfit::Absent)?;
    current.validity().check(now).map(|()| current)
}

/// How credentials stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Fit,
    /// Still, but somebody should have renewed them.
    Ending,
    Unfit(Unfit),
}

/// Tells the log, and a metric, how a process's own identity stands.
#[derive(Debug)]
pub struct IdentityWatch {
    credentials: Credentials,
    not_after: IntGauge,
    /// What was told last: of which credentials, and how they stood.
    told: Option<(Option<Arc<MeshCredentials>>, Standing)>,
}

impl IdentityWatch {
    /// A watch that sets `not_after` to the end of the certificate in force, in seconds since 1970, and to 0 without one.
    pub fn new(credentials: Credentials, not_after: IntGauge) -> Self {
        Self {
            credentials,
            not_after,
            told: None,
        }
    }

    /// Looks once a second, for as long as the process runs, and calls `changed` after it told of something new.
    pub async fn run(mut self, changed: impl Fn()) {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            ticks.tick().await;
            if self.look(SystemTime::now()) {
                changed();
            }
        }
    }

    /// Tells what is new, and whether anything was.
    fn look(&mut self, now: SystemTime) -> bool {
        let current = self.credentials.borrow().clone();
        let standing = standing(current.as_deref(), now);
        let same = |(told, how): &(Option<Arc<MeshCredentials>>, Standing)| {
            told.as_ref().map(Arc::as_ptr) == current.as_ref().map(Arc::as_ptr) && *how == standing
        };
        if self.told.as_ref().is_some_and(same) {
            return false;
        }
        let end = current.as_ref().map(|current| current.validity().not_after);
        let end = end.map_or(0, seconds_since_1970);
        self.not_after.set(i64::try_from(end).unwrap_or(i64::MAX));
        match &current {
            Some(current) => tell(current, standing),
            // A process that has just started may wait for its files, and whoever reads them says so.
            None if self.told.is_none() => {}
            None => tracing::warn!("the mesh identity is gone: no mesh connection is made until there is one"),
        }
        self.told = Some((current, standing));
        true
    }
}

fn standing(credentials: Option<&MeshCredentials>, now: SystemTime) -> Standing {
    let Some(credentials) = credentials else {
        return Standing::Unfit(Unfit::Absent);
    };
    let validity = credentials.validity();
    if let Err(unfit) = validity.check(now) {
        return Standing::Unfit(unfit);
    }
    let between = |from, to: SystemTime| to.duration_since(from).unwrap_or_default();
    if between(now, validity.not_after) < between(validity.not_before, validity.not_after) / LAST_PART {
        Standing::Ending
    } else {
        Standing::Fit
    }
}

fn tell(credentials: &MeshCredentials, standing: Standing) {
    let (what, role, identity) = ("mesh certificate", credentials.role(), credentials.identity());
    let validity = credentials.validity();
    let (not_before, not_after) = (utc(validity.not_before), utc(validity.not_after));
    match standing {
        Standing::Fit => {
            tracing::info!(what, %role, %identity, %not_before, %not_after, "the mesh certificate is in force");
        }
        Standing::Ending => {
            let text = "the mesh certificate ends soon, and was not renewed; see who issues it";
            tracing::warn!(what, %role, %identity, %not_before, %not_after, "{text}");
        }
        Standing::Unfit(Unfit::NotYetValid(_)) => {
            let text =
                "the mesh certificate is not yet valid: no mesh connection is made until it is; compare the clocks";
            tracing::warn!(what, %role, %identity, %not_before, %not_after, "{text}");
        }
        Standing::Unfit(_) => {
            let text = "the mesh certificate has expired: no mesh connection is made until there is another";
            tracing::warn!(what, %role, %identity, %not_before, %not_after, "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, LeafSpec, Usage};
    use crate::credentials::Role;
    use tokio::sync::watch;

    const MINUTE: Duration = Duration::from_secs(60);

    fn issued(authority: &Authority, from: SystemTime, to: SystemTime) -> Arc<MeshCredentials> {
        let spec = LeafSpec {
            not_before: from,
            not_after: to,
            ..LeafSpec::new("leaf", "spiffe://cluster.local/ns/s/sa/router", Usage::Client)
        };
        let issued = authority.issue(&spec).unwrap();
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        let (bundle, domain) = (authority.root_pem().as_bytes(), "cluster.local".parse().unwrap());
        Arc::new(MeshCredentials::from_pem(Role::Router, chain, key, bundle, &domain).unwrap())
    }

    #[test]
    fn each_change_is_told_once_and_the_reason_names_the_time() {
        let authority = Authority::new("mesh").unwrap();
        // Whole seconds, as certificates have them.
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let (sender, credentials) = watch::channel(None);
        let gauge = IntGauge::new("not_after", "A test's.").unwrap();
        let mut watch = IdentityWatch::new(credentials.clone(), gauge.clone());
        let mut told = |now: SystemTime| {
            let first = watch.look(now);
            assert!(!watch.look(now), "told twice");
            let reason = fit(&credentials, now).err().map(|unfit| unfit.to_string());
            (first, reason.unwrap_or_default())
        };
        assert_eq!(told(start), (true, "no identity".into()));
        assert_eq!(gauge.get(), 0);
        sender.send_replace(Some(issued(&authority, start + MINUTE, start + 101 * MINUTE)));
        let early = "certificate not valid before 2026-09-21T14:14:20Z";
        assert_eq!(told(start), (true, early.into()));
        assert_eq!(gauge.get(), 1_790_006_060);
        assert_eq!(told(start + MINUTE), (true, String::new()));
        assert_eq!(told(start + 91 * MINUTE), (false, String::new()));
        assert_eq!(told(start + 92 * MINUTE), (true, String::new()), "the last tenth");
        assert_eq!(told(start + 101 * MINUTE), (false, String::new()), "the last second");
        let late = "certificate expired at 2026-09-21T15:54:20Z";
        assert_eq!(told(start + 102 * MINUTE), (true, late.into()));
        sender.send_replace(Some(issued(&authority, start, start + 1000 * MINUTE)));
        assert_eq!(told(start + 102 * MINUTE), (true, String::new()));
        sender.send_replace(None);
        assert_eq!(told(start), (true, "no identity".into()));
        assert_eq!(gauge.get(), 0);
    }
}
