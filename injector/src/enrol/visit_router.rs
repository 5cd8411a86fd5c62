//! One visit to one router: an identity that lasts is left alone, and another is given only after all that proves who asks.

use super::clock::Clock;
use super::evidence::StoredPod;
use super::own::bundle;
use super::pods::Target;
use super::verify;
use super::verify_router::candidate;
use super::visit::{Done, Settled, Standing, VisitError, Visitor, proof, reach};
use sandgate_mesh::control::bundle_digest;
use sandgate_mesh::tls::Dialed;

impl Visitor {
    pub(super) async fn bring_router_up_to_date(
        &self,
        target: &Target,
        renew: bool,
        clock: &Clock,
    ) -> Result<Settled, VisitError> {
        // As it is stored, by its name. What can't be a router isn't dialed: anybody may label a pod.
        let pod = self.evidence.pod(&target.namespace, &target.name).await?;
        let pod = verify::dialed(target, pod.as_ref().map(StoredPod::object))?;
        let candidate = candidate(&self.settings, target, pod)?;

        let stored = self.stored()?;
        let own = self.own.credentials(&stored).map_err(VisitError::Own)?;
        let expected = Dialed::Router(candidate.identity().clone());
        let (connection, enrolment, credentials) = reach(target, &expected, &own).await?;
        clock.note(connection.skew());
        let (root, in_force) = (stored.authority.root(), bundle_digest(&bundle(&stored.roots)));
        // In a new epoch it is given another one all the same, and so a floor of this epoch: what a former leader has sent and
        // the network still holds back must find that it is below.
        let renew = renew
            || enrolment.bundle_digest != in_force
            || !connection.is_under(root)
            || enrolment.floor.epoch < self.epoch;
        let done = match self.standing(connection.standing(), renew) {
            Standing::Lasting(until) => {
                let (done, proof) = (Done::Nothing, proof(&stored, until));
                return Ok(Settled { done, proof });
            }
            Standing::Ending => Done::Renewed,
            Standing::Nothing => Done::Enrolled,
        };

        let token = self.evidence.token(enrolment.token.clone()).await?;
        let verified = candidate.verify(&enrolment.pod_uid, &token)?;
        let signed = stored
            .authority
            .sign_router(&enrolment.csr, verified.identity(), self.lifetime)?;
        let given = self.give(connection, target, &expected, credentials, &stored, signed);
        let (_, proof) = given.await?;
        Ok(Settled { done, proof })
    }
}
