//! The cluster in other users' eyes. The administrator impersonates them, so authorisation, admission and audit take
//! them for who they are said to be.

use crate::{Cluster, Namespace, until};
use serde_json::{Value, json};

impl Cluster {
    /// The same as a user in these groups, and in `system:authenticated` as everybody who is somebody.
    #[must_use]
    pub fn impersonating(&self, user: &str, groups: &[&str]) -> Self {
        let mut config = self.config.clone();
        let groups = groups.iter().chain(&["system:authenticated"]);
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.copied().map(String::from).collect());
        self.with_config(config)
    }

    /// The same as the kubelet of the node `name`.
    #[must_use]
    pub fn as_node(&self, name: &str) -> Self {
        self.impersonating(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// The same as a ServiceAccount.
    #[must_use]
    pub fn as_service_account(&self, namespace: &str, name: &str) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        let group = format!("system:serviceaccounts:{namespace}");
        self.impersonating(&user, &["system:serviceaccounts", &group])
    }

    /// A node that nobody runs, called as given, for the length of the test.
    pub async fn node(&self, name: &str) -> Value {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.remove_afterwards(&node);
        self.create(&node)
            .await
            .unwrap_or_else(|status| panic!("creating the node {name}: {status}"))
    }

    /// Whether this user may do this, as the API server's authorisers say.
    pub async fn may(&self, namespace: &str, verb: &str, resource: &str) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": namespace, "verb": verb, "resource": resource}},
        });
        let answer = self.create(&review).await;
        answer.is_ok_and(|review| review["status"]["allowed"] == true)
    }
}

impl Namespace {
    /// This namespace in the eyes of a new ServiceAccount that may do `verbs` on `resources` of the core group here, and
    /// nothing else anywhere. Returns when that is in force.
    pub async fn as_new_service_account(&self, name: &str, verbs: &[&str], resources: &[&str]) -> Self {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}],
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.name()}],
        });
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        for object in [account, role, binding] {
            let answer = self.create(&object).await;
            answer.unwrap_or_else(|status| panic!("creating the ServiceAccount {name}: {status}"));
        }
        let user = self.cluster().as_service_account(self.name(), name);
        let what = format!("the ServiceAccount {name} may {verbs:?} {resources:?}");
        until(&what, async || {
            for verb in verbs {
                for resource in resources {
                    if !user.may(self.name(), verb, resource).await {
                        return Err(format!("it may not {verb} {resource}"));
                    }
                }
            }
            Ok(())
        })
        .await;
        self.seen_by(&user)
    }
}
