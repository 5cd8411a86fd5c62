//! Has the leader move the replacement of the root on, from step to step, when nothing holds it back any more; begins one when
//! the root is as old as it may be; and tells what it waits for.

use super::RETRY;
use super::holders::Progress;
use super::rotate_report::RotationReport;
use crate::authority::{ExternalAuthority, RootId};
use crate::authority_files::{self, External};
use crate::authority_keeper::{Authority, Fresh};
use crate::authority_secret::{AuthoritySecret, SecretError};
use crate::authority_stored::Stored;
use crate::ca_bundle::Confirmed;
use crate::metrics::Metrics;
use crate::rotation::blockers::{Blocker, Observed, Reason, Waits, blockers};
use crate::rotation::status::Status;
use crate::rotation::steps::{NotMoved, begun, begun_from_files, moved_on, sourced};
use crate::rotation::{Cause, Rotation, Schedule};
use crate::serving::Served;
use sandgate_mesh::telemetry::chain;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the replacement works with on every replica.
#[derive(Clone)]
pub(crate) struct RotationContext {
    pub(crate) schedule: Schedule,
    /// What files hold, where somebody else makes the authority.
    pub(crate) external: Option<External>,
    pub(crate) waits: Waits,
    /// How often at most the status is written.
    pub(crate) tell_every: Duration,
    /// What the webhook configurations hold; none where somebody else looks after those.
    pub(crate) confirmed: Vec<watch::Receiver<Confirmed>>,
    /// What the webhook is served with.
    pub(crate) served: Served,
    /// Has the Secret read at once.
    pub(crate) fresh: Fresh,
    pub(crate) report: RotationReport,
}

/// How those follow who are told by this leader.
pub(super) struct Followers {
    pub(super) gates: watch::Receiver<Option<Progress>>,
    pub(super) routers: watch::Receiver<Option<Progress>>,
}

impl Followers {
    /// How they follow this step; none while that isn't known of all of them.
    fn of(&self, rotation: &Rotation) -> Option<[Progress; 2]> {
        let of = |party: &watch::Receiver<Option<Progress>>| {
            let progress = party.borrow().clone();
            progress.filter(|progress| progress.rotation.is_same_step(rotation))
        };
        Some([of(&self.gates)?, of(&self.routers)?])
    }
}

/// One leader's part in it.
pub(super) struct Rotor {
    context: RotationContext,
    secret: AuthoritySecret,
    authority: Authority,
    followers: Followers,
    metrics: Arc<Metrics>,
    /// What is told in the Secret, and when that was written; none before it was looked at.
    told: Option<(Option<Status>, Instant)>,
    /// The root in files that can't be taken, and of which that was told.
    refused: Option<RootId>,
}

impl Rotor {
    pub(super) fn new(
        context: RotationContext,
        secret: AuthoritySecret,
        authority: Authority,
        followers: Followers,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            context,
            secret,
            authority,
            followers,
            metrics,
            told: None,
            refused: None,
        }
    }

    /// Looks after it for ever.
    pub(super) async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(stored) = self.authority.borrow().clone() else {
                continue;
            };
            match &stored.rotation {
                // As long as it is so: whoever looks after the cluster is to hear of it.
                Err(misfit) => {
                    self.metrics.failed("rotation");
                    self.context.report.misfit(misfit);
                }
                Ok(Some(rotation)) if rotation.is_under_way() => self.look(rotation).await,
                Ok(_) => self.rest(&stored).await,
            }
        }
    }

    /// Nothing is under way: begins where the root is as old as it may be, or where files hold another.
    async fn rest(&mut self, stored: &Stored) {
        self.context.report.rests();
        self.tell(None).await;
        let (root, now) = (stored.authority.root(), SystemTime::now());
        let external = self.context.external.clone();
        if stored.is_external() != external.is_some() {
            let source = |content: &_| Ok(sourced(content, external.is_some()));
            self.write(self.secret.change(source).await).await;
            return;
        }
        if let Some(external) = external {
            let found = external.borrow().clone();
            // With a next root that has no replacement somebody replaces it by hand.
            if let Some(found) = found.filter(|found| found.root() != root && stored.roots.len() == 1) {
                self.take(stored, &found).await;
            }
            return;
        }
        let schedule = &self.context.schedule;
        // With a next root that has no replacement somebody replaces it by hand.
        if stored.roots.len() == 1 && schedule.is_due(root.not_before(), root.not_after(), now) {
            let begin = |content: &_| begun(content, Cause::Age, now);
            self.write(self.secret.change(begin).await).await;
        }
    }

    /// Begins with an authority that files hold, unless it was replaced before.
    async fn take(&mut self, stored: &Stored, found: &ExternalAuthority) {
        let id = found.root().id();
        if !stored.has_left(found.root()) {
            let now = SystemTime::now();
            let begin = |content: &_| begun_from_files(content, found, now);
            self.write(self.secret.change(begin).await).await;
            return;
        }
        self.metrics.failed(authority_files::NAME);
        if self.refused.replace(id) != Some(id) {
            tracing::warn!(root = %id, error = %NotMoved::Left, "the authority in the files isn't taken");
        }
    }

    async fn look(&mut self, rotation: &Rotation) {
        let waits_for = self.blockers(rotation);
        self.context.report.step(rotation, &waits_for, SystemTime::now());
        if waits_for.is_empty() {
            let now = SystemTime::now();
            let next = |content: &_| moved_on(content, rotation, now);
            self.write(self.secret.change(next).await).await;
            return;
        }
        self.tell(Some(Status::new(rotation, waits_for, SystemTime::now())))
            .await;
    }

    fn blockers(&self, rotation: &Rotation) -> Vec<Blocker> {
        let Some([gates, routers]) = self.followers.of(rotation) else {
            return vec![Blocker::new(Reason::Leader)];
        };
        let confirmed = self.context.confirmed.iter();
        let serves = self.context.served.borrow();
        let seen = Observed {
            known_for: gates.since.max(routers.since).elapsed(),
            confirmed: confirmed.map(|confirmed| confirmed.borrow().clone()).collect(),
            serves_under: serves.as_ref().and_then(|serving| serving.under),
            gates: gates.behind.stragglers,
            pods: gates.behind.pods,
            routers: routers.behind.stragglers,
        };
        blockers(rotation, seen, self.context.waits, &self.context.schedule)
    }

    /// What was written counts at once for this replica.
    async fn write(&self, written: Result<Stored, SecretError>) {
        match written {
            Ok(stored) => {
                if let Ok(Some(rotation)) = &stored.rotation {
                    self.context.report.moved(rotation, SystemTime::now());
                }
            }
            // Somebody else has done something, which is about to be seen.
            Err(SecretError::NotMoved {
                cause: NotMoved::Overtaken | NotMoved::UnderWay(_),
                ..
            }) => {}
            Err(error) => {
                self.metrics.failed("rotation");
                tracing::warn!(
                    error = chain(&error),
                    "can't move the replacement of the root on; it is tried again"
                );
            }
        }
        self.context.fresh.read(RETRY).await;
    }

    /// Tells how it stands, if that is new, and not too often.
    async fn tell(&mut self, status: Option<Status>) {
        if let Some((told, at)) = &self.told {
            // A step that has begun is told at once, and so is that there is nothing more to tell.
            let can_wait = match (told, &status) {
                (Some(told), Some(status)) => {
                    let recent = at.elapsed() < self.context.tell_every;
                    told.tells_the_same(status) || (told.is_of_same_step(status) && recent)
                }
                (None, None) => true,
                _ => false,
            };
            if can_wait {
                return;
            }
        }
        let text = status.as_ref().and_then(|status| serde_json::to_string(status).ok());
        match self.secret.tell(text.as_deref()).await {
            Ok(()) => self.told = Some((status, Instant::now())),
            // It is told at the next look.
            Err(SecretError::Request { cause, .. }) if cause.is_conflict() => {}
            Err(error) => tracing::warn!(
                error = chain(&error),
                "can't tell in the Secret how the replacement of the root stands"
            ),
        }
    }
}
