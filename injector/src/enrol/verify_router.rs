//! Whether what answers is a router: decided, as for a gate, from what the API server says about the pod and its token.
//!
//! A router is whoever runs in the own namespace under a ServiceAccount that gates believe. Labels only say where to look:
//! they are worth nothing to who may not use that ServiceAccount.

use super::pods::Target;
use super::verify::{Refusal, account, check_place, check_token};
use crate::names::{APP, APP_LABEL, COMPONENT_LABEL, ENABLED, ENROL_LABEL, ROUTER_COMPONENT};
use crate::pod::text_at;
use crate::settings::Settings;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use sandgate_mesh::identity::WorkloadIdentity;
use sandgate_mesh::sandbox::PodUid;
use serde_json::Value;

/// A pod that may be a router's. What its token proves is still to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RouterCandidate {
    identity: WorkloadIdentity,
    account: String,
    target: Target,
}

/// A router's identity that was proven. It is made here and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VerifiedRouter(WorkloadIdentity);

impl VerifiedRouter {
    pub(super) fn identity(&self) -> &WorkloadIdentity {
        &self.0
    }
}

/// Looks at the pod that is to be dialed, which [`super::verify::dialed`] has found to be there.
///
/// # Errors
/// The first thing that isn't as it must be.
pub(super) fn candidate(settings: &Settings, target: &Target, pod: &Value) -> Result<RouterCandidate, Refusal> {
    let label = |name: &str| text_at(pod, &["metadata", "labels", name]);
    let labels = [
        (APP_LABEL, APP),
        (COMPONENT_LABEL, ROUTER_COMPONENT),
        (ENROL_LABEL, ENABLED),
    ];
    let labelled = labels.iter().all(|(name, value)| label(name) == Some(value));
    if target.namespace != settings.own_namespace || !labelled {
        return Err(Refusal::NotARouter);
    }
    check_place(target, pod)?;
    let account = account(pod);
    let is_its = |identity: &&WorkloadIdentity| {
        identity.trust_domain == settings.trust_domain
            && identity.namespace == target.namespace
            && identity.service_account.as_str() == account
    };
    let identity = settings.router_identities.iter().find(is_its);
    let identity = identity.ok_or_else(|| Refusal::RouterAccount(account.to_owned()))?;
    Ok(RouterCandidate {
        identity: identity.clone(),
        account: account.to_owned(),
        target: target.clone(),
    })
}

impl RouterCandidate {
    /// Who the router will have to prove to be.
    pub(super) fn identity(&self) -> &WorkloadIdentity {
        &self.identity
    }

    /// The identity, if what answered says that it is in this pod, and its token proves it.
    ///
    /// # Errors
    /// The first of these that isn't so.
    pub(super) fn verify(self, claimed: &PodUid, token: &TokenReviewStatus) -> Result<VerifiedRouter, Refusal> {
        let Target {
            namespace, name, uid, ..
        } = &self.target;
        if claimed != uid {
            return Err(Refusal::OtherPod);
        }
        check_token(token, &self.account, namespace, name, uid)?;
        Ok(VerifiedRouter(self.identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;
    use k8s_openapi::api::authentication::v1::UserInfo;
    use serde_json::json;
    use std::collections::BTreeMap;

    const OWN: &str = "agent-sandbox-system";

    fn target() -> Target {
        Target {
            namespace: OWN.parse().unwrap(),
            name: "sandbox-router-1".parse().unwrap(),
            uid: "pod-1".parse().unwrap(),
            ip: [10, 0, 0, 7].into(),
        }
    }

    fn pod_with(change: &Value) -> Value {
        let mut pod = json!({
            "metadata": {
                "name": "sandbox-router-1", "namespace": OWN, "uid": "pod-1",
                "labels": {
                    "app.kubernetes.io/name": "sandgate",
                    "app.kubernetes.io/component": "router",
                    "sandgate.dev/enrol": "enabled",
                },
            },
            "spec": {"serviceAccountName": "sandbox-router"},
            "status": {"phase": "Running", "podIP": "10.0.0.7"},
        });
        json_patch::merge(&mut pod, change);
        pod
    }

    fn looked_at(change: &Value) -> Result<RouterCandidate, Refusal> {
        candidate(&settings(), &target(), &pod_with(change))
    }

    /// What the API server says about the token of a pod of this ServiceAccount.
    fn token_of(account: &str, name: &str, uid: &str) -> TokenReviewStatus {
        let extra = |part: &str, value: &str| (format!("authentication.kubernetes.io/{part}"), vec![value.to_owned()]);
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["sandgate".into()]),
            error: None,
            user: Some(UserInfo {
                username: Some(format!("system:serviceaccount:{account}")),
                extra: Some(BTreeMap::from([extra("pod-name", name), extra("pod-uid", uid)])),
                ..UserInfo::default()
            }),
        }
    }

    fn own_token() -> TokenReviewStatus {
        token_of("agent-sandbox-system:sandbox-router", "sandbox-router-1", "pod-1")
    }

    #[test]
    fn a_router_gets_the_identity_of_its_service_account() {
        let candidate = looked_at(&json!({})).unwrap();
        let verified = candidate.verify(&target().uid, &own_token()).unwrap();
        let expected = "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router";
        assert_eq!(verified.identity().to_string(), expected);
    }

    #[test]
    fn a_pod_that_is_something_else_is_no_router() {
        let account = |name: &str| Refusal::RouterAccount(name.into());
        for (change, refusal) in [
            (
                json!({"metadata": {"labels": {"app.kubernetes.io/component": "injector"}}}),
                Refusal::NotARouter,
            ),
            (
                json!({"metadata": {"labels": {"app.kubernetes.io/name": null}}}),
                Refusal::NotARouter,
            ),
            (
                json!({"metadata": {"labels": {"sandgate.dev/enrol": "true"}}}),
                Refusal::NotARouter,
            ),
            // Labels alone make no router.
            (json!({"spec": {"serviceAccountName": null}}), account("default")),
            (json!({"spec": {"serviceAccountName": "builder"}}), account("builder")),
            // Nor does the control plane's own account.
            (
                json!({"spec": {"serviceAccountName": "sandbox-injector"}}),
                account("sandbox-injector"),
            ),
            (json!({"status": {"phase": "Failed"}}), Refusal::PodEnded),
            (json!({"status": {"podIP": "10.0.0.8"}}), Refusal::OtherAddress),
            (json!({"status": {"podIP": null}}), Refusal::OtherAddress),
        ] {
            assert_eq!(looked_at(&change), Err(refusal), "{change}");
        }
    }

    #[test]
    fn the_router_of_another_namespace_or_trust_domain_gets_nothing_here() {
        let elsewhere = Target {
            namespace: "team-a".parse().unwrap(),
            ..target()
        };
        assert_eq!(
            candidate(&settings(), &elsewhere, &pod_with(&json!({}))),
            Err(Refusal::NotARouter)
        );
        let mut settings = settings();
        settings.router_identities = ["spiffe://cluster.local/ns/team-a/sa/sandbox-router"]
            .map(|identity| identity.parse().unwrap())
            .into();
        let refused = candidate(&settings, &target(), &pod_with(&json!({})));
        assert_eq!(refused, Err(Refusal::RouterAccount("sandbox-router".into())));
        settings.router_identities = ["spiffe://other/ns/agent-sandbox-system/sa/sandbox-router"]
            .map(|identity| identity.parse().unwrap())
            .into();
        let refused = candidate(&settings, &target(), &pod_with(&json!({})));
        assert_eq!(refused, Err(Refusal::RouterAccount("sandbox-router".into())));
    }

    #[test]
    fn somebody_elses_token_makes_no_router() {
        let verify = |token: &TokenReviewStatus| looked_at(&json!({})).unwrap().verify(&target().uid, token);
        let router = "agent-sandbox-system:sandbox-router";
        for (name, token, refusal) in [
            (
                "a gate's",
                token_of("team-a:default", "box", "pod-9"),
                Refusal::TokenAccount,
            ),
            (
                "another namespace's",
                token_of("team-a:sandbox-router", "sandbox-router-1", "pod-1"),
                Refusal::TokenAccount,
            ),
            (
                "the injector's",
                token_of("agent-sandbox-system:sandbox-injector", "sandbox-router-1", "pod-1"),
                Refusal::TokenAccount,
            ),
            (
                "another router's",
                token_of(router, "sandbox-router-2", "pod-2"),
                Refusal::TokenPod,
            ),
            (
                "its predecessor's",
                token_of(router, "sandbox-router-1", "pod-0"),
                Refusal::TokenPod,
            ),
        ] {
            assert_eq!(verify(&token), Err(refusal), "{name}");
        }
        let mut unbound = own_token();
        unbound.user.as_mut().unwrap().extra = None;
        assert_eq!(verify(&unbound), Err(Refusal::TokenPod));
        let mut other_audience = own_token();
        other_audience.audiences = Some(vec!["another".into()]);
        assert_eq!(verify(&other_audience), Err(Refusal::TokenAudience));
        let mut refused = own_token();
        refused.authenticated = None;
        assert!(matches!(verify(&refused), Err(Refusal::Token(_))));
        let claimed = "pod-2".parse().unwrap();
        let verified = looked_at(&json!({})).unwrap().verify(&claimed, &own_token());
        assert_eq!(verified, Err(Refusal::OtherPod));
    }
}
