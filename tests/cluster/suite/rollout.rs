//! What creations notice while the image of gates changes: replicas that inject different images answer side by side, and
//! the API server's policy changes at another moment.

use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::{Creations, has_gate};
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::service::Service;
use sandgate_cluster_tests::{Cluster, Namespace, tests};
use serde_json::Value;
use std::collections::BTreeSet;

// Webhook configurations are for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone an_image_that_is_accepted_before_it_is_injected_rolls_out_and_no_creation_fails,
    @alone an_image_that_was_not_accepted_before_costs_creations_only_while_it_rolls_out,
    an_accepted_image_is_all_that_a_gate_may_differ_in,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const OLD: &str = "injection.image.tag=0.0.9";
const NEW: &str = "injection.image.tag=0.2.0";
const ACCEPTS_OLD: &str = "injection.acceptedImages={sandgate/sidecar:0.0.9}";
const ACCEPTS_NEW: &str = "injection.acceptedImages={sandgate/sidecar:0.2.0}";

/// Two replicas behind a Service, and the policies, as one chart has them.
struct Installation {
    system: System,
    sandboxes: Namespace,
    service: Service,
    replicas: Vec<Replica>,
}

impl Installation {
    async fn new(cluster: &Cluster, chart: &Chart) -> Self {
        let (system, sandboxes) = (System::install(cluster).await, cluster.namespace(OPTED_IN).await);
        sandboxes.configure(&system.policies(chart)).await;
        // Nobody is there yet who would put a gate into it.
        sandboxes
            .until_refused(&sandbox_pod("until"), "sandgate-pod-create")
            .await;
        let service = Service::start().await;
        let start = || {
            let replica = system.start(chart, |_, _| {});
            service.add(&replica);
            replica
        };
        let replicas = vec![start(), start()];
        system.configure(chart, service.port()).await;
        sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
        Self {
            system,
            sandboxes,
            service,
            replicas,
        }
    }

    /// As `helm upgrade` does it: policies and webhook configurations at once, replicas one by one.
    async fn upgrade(&mut self, chart: &Chart, creations: &Creations) {
        self.sandboxes.configure(&self.system.policies(chart)).await;
        self.system.configure(chart, self.service.port()).await;
        for old in &mut self.replicas {
            let new = self.system.start(chart, |_, _| {});
            self.service.add(&new);
            new.until_ready().await;
            creations.more(20).await;
            std::mem::replace(old, new).stop().await;
            creations.more(20).await;
        }
    }
}

/// The images of the gates that were created.
fn images(creations: &Creations) -> BTreeSet<String> {
    let made = creations.made();
    let pods = made.iter().flatten();
    pods.map(|pod| pod["spec"]["initContainers"][0]["image"].as_str().unwrap().to_owned())
        .collect()
}

const BOTH: [&str; 2] = ["sandgate/sidecar:0.0.9", "sandgate/sidecar:0.2.0"];

async fn an_image_that_is_accepted_before_it_is_injected_rolls_out_and_no_creation_fails(cluster: Cluster) {
    let mut installation = Installation::new(&cluster, &Chart::render(&[OLD])).await;
    let creations = Creations::start(&installation.sandboxes);
    for values in [&[OLD, ACCEPTS_NEW], &[NEW, ACCEPTS_OLD], &[NEW, NEW]] {
        installation.upgrade(&Chart::render(values), &creations).await;
    }
    creations.none_failed();
    assert_eq!(images(&creations), BOTH.map(String::from).into());
}

/// It fails closed, and heals by itself.
async fn an_image_that_was_not_accepted_before_costs_creations_only_while_it_rolls_out(cluster: Cluster) {
    let mut installation = Installation::new(&cluster, &Chart::render(&[OLD])).await;
    let creations = Creations::start(&installation.sandboxes);
    creations.more(20).await;
    installation.upgrade(&Chart::render(&[NEW]), &creations).await;
    let is_new = |pod: &Value| pod["spec"]["initContainers"][0]["image"] == BOTH[1];
    installation
        .sandboxes
        .until_admitted(&sandbox_pod("until"), is_new)
        .await;
    let healed = creations.count();
    creations.more(50).await;
    let (failed, outage) = creations.outage();
    note(&format!(
        "{failed} of {} creations were refused, within {} ms",
        creations.count(),
        outage.as_millis()
    ));
    assert!(failed > 0, "the other test proves nothing");
    for (number, made) in creations.made().iter().enumerate() {
        match made {
            Ok(pod) => assert!(has_gate(pod), "{pod}"),
            Err(reason) => assert!(
                number <= healed && reason.contains("it isn't what would be injected"),
                "{number} of {healed}: {reason}"
            ),
        }
    }
    assert!(images(&creations).is_subset(&BOTH.map(String::from).into()));
}

async fn an_accepted_image_is_all_that_a_gate_may_differ_in(cluster: Cluster) {
    for lockdown in ["injection.lockdown=disabled", "injection.lockdown=enabled"] {
        let (old, new) = (
            Chart::render(&[OLD, lockdown]),
            Chart::render(&[NEW, ACCEPTS_OLD, lockdown]),
        );
        let namespace = cluster.namespace(OPTED_IN).await;
        namespace.judged_by(&new).await;
        let gate = usize::from(lockdown.ends_with("enabled"));
        let mut older = old.injected(&sandbox_pod("older"));
        namespace.admitted(&older).await;
        older["metadata"]["name"] = "bent".into();
        for (field, value) in [
            ("image", "evil.example/gate:1"),
            ("image", "sandgate/sidecar:0.0.8"),
            ("workingDir", "/tmp"),
        ] {
            let mut bent = older.clone();
            bent["spec"]["initContainers"][gate][field] = value.into();
            let reason = namespace.refused(&bent).await;
            assert!(
                reason.contains("sandgate-pod-create") && reason.contains("spec.initContainers[sandgate]"),
                "{reason}"
            );
        }
        let mut others = older.clone();
        others["spec"]["initContainers"][gate]["args"][0] =
            "--router-identity=spiffe://cluster.local/ns/evil/sa/router".into();
        let reason = namespace.refused(&others).await;
        assert!(reason.contains("spec.initContainers[sandgate].args"), "{reason}");
    }
}
