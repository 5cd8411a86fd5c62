//! Admission configurations: pointed at a webhook on this machine, confined to one namespace, and in force.

use crate::{Namespace, until};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// A webhook configuration whose Services are replaced by this address, with the paths kept, and which trusts these
/// certificates: without nodes the API server reaches no Service. Everything else stays as it was rendered.
pub fn at_address(configuration: &Value, address: SocketAddr, ca_pem: &str) -> Value {
    let mut configuration = configuration.clone();
    let webhooks = configuration["webhooks"]
        .as_array_mut()
        .expect("a webhook configuration");
    for webhook in webhooks {
        let path = webhook["clientConfig"]["service"]["path"]
            .as_str()
            .expect("a Service with a path");
        let url = format!("https://{address}{path}");
        webhook["clientConfig"] = json!({"url": url, "caBundle": ByteString(ca_pem.into())});
    }
    configuration
}

/// The same admission object for this namespace alone, under a name of its own: what is installed for the whole cluster
/// in production must not meet the tests beside this one. Webhook configurations and policy bindings get one more label
/// to select by, which every namespace has.
pub fn confined_to(namespace: &str, object: &Value) -> Value {
    let mut object = object.clone();
    let own = |name: &Value| json!(format!("{}-{namespace}", name.as_str().expect("a name")));
    object["metadata"]["name"] = own(&object["metadata"]["name"]);
    match object["kind"].as_str().unwrap_or_default() {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            for webhook in object["webhooks"].as_array_mut().expect("webhooks") {
                select(&mut webhook["namespaceSelector"], namespace);
            }
        }
        "ValidatingAdmissionPolicyBinding" => {
            object["spec"]["policyName"] = own(&object["spec"]["policyName"]);
            select(&mut object["spec"]["matchResources"]["namespaceSelector"], namespace);
        }
        // It does nothing without a binding.
        "ValidatingAdmissionPolicy" => {}
        kind => panic!("{kind} can't be confined to a namespace"),
    }
    object
}

fn select(selector: &mut Value, namespace: &str) {
    selector["matchLabels"]["kubernetes.io/metadata.name"] = json!(namespace);
}

impl Namespace {
    /// Applies these admission objects [for this namespace alone](confined_to), for the length of the test, and returns
    /// them as stored. They aren't in force yet: see [`Self::until_refused`] and [`Self::until_admitted`].
    pub async fn configure(&self, objects: &[Value]) -> Vec<Value> {
        let confined: Vec<_> = objects.iter().map(|object| confined_to(self.name(), object)).collect();
        for object in &confined {
            self.cluster().remove_afterwards(object);
        }
        self.cluster().apply_all(&confined).await
    }

    /// Waits until creating this object would be refused with a reason that holds `sentence`. The API server follows
    /// its own admission configuration with a delay; once it refuses, it goes on refusing.
    pub async fn until_refused(&self, object: &Value, sentence: &str) {
        let what = format!("refused with {sentence:?}");
        until(&what, async || match self.dry_run(object).await {
            Err(status) if status.message.contains(sentence) => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// Waits until creating this object would be admitted and would come back as `expected` says.
    pub async fn until_admitted(&self, object: &Value, expected: impl Fn(&Value) -> bool) {
        until("admitted as expected", async || match self.dry_run(object).await {
            Ok(object) if expected(&object) => Ok(()),
            other => Err(other),
        })
        .await;
    }
}
