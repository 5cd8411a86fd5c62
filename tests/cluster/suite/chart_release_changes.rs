//! Changes of a release that hand a field from one owner to another: what docs/install.md says about them.

use crate::chart_release::{RELEASE, ca_bundle, object, run, settled, within};
use sandgate_cluster_tests::chart::{Chart, DECIDED, folder, helm};
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::webhook::StubWebhook;
use sandgate_cluster_tests::{Cluster, runner::Test, tests};
use serde_json::{Value, json};

// What is installed is for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone the_certificate_of_a_release_can_come_from_elsewhere_and_be_issued_again,
    @alone an_autoscaler_takes_over_the_routers_without_a_drop,
];

async fn the_certificate_of_a_release_can_come_from_elsewhere_and_be_issued_again(cluster: Cluster) {
    let opted_in = &[("sandgate.dev/inject", "enabled")];
    let (system, sandboxes) = (cluster.namespace(&[]).await, cluster.namespace(opted_in).await);
    run(&system, "install", &[]);
    let replica = System::of_release(&system).start(&Chart::render(&[]), |_, _| {});
    settled(&system, &sandboxes).await;
    replica.stop().await;

    let elsewhere = StubWebhook::empty().await;
    let root = k8s_openapi::ByteString(elsewhere.ca_pem().into());
    let root = serde_json::to_value(root).unwrap().as_str().unwrap().to_owned();
    let given = format!(
        "injector.webhook.certificate.source=secret,injector.webhook.certificate.caBundle={root},injection.image.tag=0.2.0"
    );
    let chart = folder();
    let (folder, name) = (chart.to_str().unwrap(), system.name());
    let values = ["-n", name, "--set", DECIDED, "--set", &given];
    let refused = helm(&[&["upgrade", RELEASE, folder], &values[..]].concat());
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && reason.contains("conflict") && reason.contains("caBundle"),
        "{reason}"
    );
    run(
        &system,
        "upgrade",
        &["--server-side=true", "--force-conflicts", "--set", &given],
    );
    assert_eq!(ca_bundle(&cluster).await, Some(root.clone()));
    // It is Helm's now.
    run(
        &system,
        "upgrade",
        &["--set", &given, "--set", "injection.image.tag=0.3.0"],
    );
    assert_eq!(ca_bundle(&cluster).await, Some(root));

    run(&system, "upgrade", &[]);
    assert_eq!(ca_bundle(&cluster).await, None);
    let replica = System::of_release(&system).start(&Chart::render(&[]), |_, _| {});
    settled(&system, &sandboxes).await;
    run(&system, "uninstall", &[]);
    replica.stop().await;
}

async fn an_autoscaler_takes_over_the_routers_without_a_drop(cluster: Cluster) {
    for (handed_over, applied_by, expected) in [(false, "server", 1), (true, "client", 1), (true, "server", 3)] {
        // As Helm 3 does it, and Helm 4 for what Helm 3 installed.
        let applied = format!("--server-side={}", applied_by == "server");
        let system = cluster.namespace(&[]).await;
        run(&system, "install", &[&applied, "--set", "router.replicas=3"]);
        let routers = within(&system, object("apps/v1", "Deployment", "sandbox-router"));
        if handed_over {
            let mut number: Value = routers.clone();
            number["spec"] = json!({"replicas": 3});
            cluster.apply(&number).await.unwrap();
        }
        run(
            &system,
            "upgrade",
            &[&applied, "--set", "router.autoscaling.enabled=true"],
        );
        let found = cluster.get(&routers).await.unwrap();
        assert_eq!(
            found["spec"]["replicas"], expected,
            "handed over: {handed_over}, applied by the {applied_by}"
        );
        run(&system, "uninstall", &[]);
    }
}
