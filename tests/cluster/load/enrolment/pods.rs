//! The pods of the fleet, each of a Sandbox as upstream's controller makes it: stored, with a token, and said to run.

use sandgate_cluster_tests::Namespace;
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Requests under way at a time.
const AT_ONCE: usize = 16;

/// A pod that waits for its identity.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) stored: Value,
    pub(crate) token: String,
    pub(crate) address: Ipv4Addr,
}

/// Stores so many pods, evenly in these namespaces.
pub(crate) async fn create(namespaces: &[Namespace], count: usize) -> Vec<Pod> {
    let spec = json!({
        "serviceAccountName": "default",
        "containers": [{"name": "app", "image": "app.example/app:1", "ports": [{"containerPort": 8888}]}],
    });
    let numbers = (0..count).map(|number| {
        let (namespace, spec) = (namespaces[number % namespaces.len()].clone(), spec.clone());
        async move {
            let stored = namespace.admitted(&sandbox(&format!("gate-{number}"), &spec)).await;
            let stored = namespace.admitted(&pod_of(&stored)).await;
            let token = namespace.token_of(&stored, "sandgate").await;
            let address = address(number);
            Pod {
                namespace,
                stored,
                token,
                address,
            }
        }
    });
    each(numbers).await
}

/// Tells the API server that they run.
pub(crate) async fn run(pods: &[Pod]) {
    let told = pods.iter().map(|pod| {
        let (namespace, stored, address) = (pod.namespace.clone(), pod.stored.clone(), pod.address);
        async move { namespace.runs_at(&stored, address).await }
    });
    each(told).await;
}

/// All of these, so many at once.
async fn each<T: 'static>(all: impl Iterator<Item = impl Future<Output = T> + 'static>) -> Vec<T> {
    let (places, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for one in all {
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        running.spawn_local(async move {
            let done = one.await;
            drop(place);
            done
        });
    }
    running.join_all().await
}

/// Of loopback, one for each.
fn address(number: usize) -> Ipv4Addr {
    let number = u16::try_from(number).expect("at most 65,536 gates");
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 78, high, low)
}
