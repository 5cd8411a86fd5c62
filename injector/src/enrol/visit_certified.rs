//! One visit to one gate whose identity the kubelet brings: only its policy is told, and what it shows is taken note of.

use super::dial::Connection;
use super::holders::Proof;
use super::own::bundle;
use super::pods::Target;
use super::visit::{Settled, VisitError, Visitor};
use crate::authority::{Root, RootId};
use crate::authority_stored::Stored;
use sandgate_mesh::control::{Enrolment, bundle_digest};
use sandgate_mesh::tls::DialedStanding;
use serde_json::Value;

impl Visitor {
    /// A gate whose identity the kubelet brings. It is told its policy as long as what it shows counts, however old the root
    /// of that is; what it shows is for the kubelet and the signer to renew.
    pub(super) async fn bring_policy_up_to_date(
        &self,
        target: &Target,
        connection: Connection,
        enrolment: &Enrolment,
        stored: &Stored,
        pod: &Value,
    ) -> Result<Settled, VisitError> {
        let until = match connection.standing() {
            DialedStanding::Enrolled { until } => *until,
            DialedStanding::Unproven(reason) => return Err(VisitError::NoCertificate(reason.clone())),
        };
        let under = stored.roots.iter().find(|root| connection.is_under(root));
        let under = under.ok_or(VisitError::NotShown(None))?;
        let proof = Proof {
            roots: named(&stored.roots, enrolment.bundle_digest.as_deref()),
            under: under.id(),
            until,
        };
        let done = self
            .compare_policy(target, connection, under, until, enrolment, pod)
            .await?;
        if proof.roots.len() == stored.roots.len() {
            Ok(Settled { done, proof })
        } else {
            Err(VisitError::AwaitsRoots(proof))
        }
    }
}

/// Those of these roots that a bundle of this digest consists of: none if it holds others as well. There are three at most.
fn named(roots: &[Root], digest: Option<&str>) -> Vec<RootId> {
    let choices = (1..1_u32 << roots.len().min(8)).map(|choice| {
        let chosen = roots.iter().enumerate().filter(|(place, _)| (choice >> place) & 1 == 1);
        chosen.map(|(_, root)| root.clone()).collect::<Vec<_>>()
    });
    let mut found = choices.filter(|chosen| digest.is_some() && bundle_digest(&bundle(chosen)).as_deref() == digest);
    found.next().unwrap_or_default().iter().map(Root::id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_known_by_the_digest_of_a_bundle_that_holds_them_and_no_others() {
        let [first, second, foreign] = [(); 3].map(|()| Stored::new().authority.root().clone());
        let known = [first.clone(), second.clone()];
        let ids = |roots: &[&Root]| roots.iter().map(|root| root.id()).collect::<Vec<_>>();
        let of = |roots: &[&Root]| {
            let roots: Vec<_> = roots.iter().map(|root| (*root).clone()).collect();
            named(&known, bundle_digest(&bundle(&roots)).as_deref())
        };
        for held in [&[&first][..], &[&second], &[&first, &second]] {
            assert_eq!(of(held), ids(held));
        }
        assert_eq!(of(&[&second, &first]), ids(&[&first, &second]));
        assert_eq!(of(&[&foreign]), []);
        assert_eq!(of(&[&first, &foreign]), []);
        assert_eq!(named(&known, None), []);
    }
}
