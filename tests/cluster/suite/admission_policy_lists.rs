//! Lists that are written twice, for the injector and for the API server: every item passes both, and what isn't one of
//! them passes neither.

use crate::admission_policy_denials::{Row, base, judge};
use sandbox_injector::deny::{CAPABILITIES, SELINUX_TYPES, SYSCTLS};
use sandbox_injector::names::TENANT_ANNOTATIONS;
use sandgate_cluster_tests::chart::Chart;
use sandgate_cluster_tests::{Cluster, runner::Test, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    every_item_of_a_list_passes_both_and_no_other,
    no_spelling_of_a_capability_gets_through,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

/// A list, as what its items and others are in a pod.
struct List {
    items: Vec<Value>,
    others: Vec<Value>,
    /// How the others are denied.
    kind: &'static str,
}

impl List {
    fn new(kind: &'static str, items: &[&str], others: &[&str], pod: impl Fn(&str) -> Value) -> Self {
        let pods = |names: &[&str]| names.iter().map(|name| pod(name)).collect();
        Self {
            items: pods(items),
            others: pods(others),
            kind,
        }
    }
}

fn lists() -> [List; 4] {
    let context = |context: Value| json!({"spec": {"securityContext": context}});
    let chosen = |name: &str| match name.rsplit('/').next().unwrap() {
        "log-level" => "debug",
        "cpu-request" | "cpu-limit" => "20m",
        _ => "48Mi",
    };
    [
        List::new(
            "sysctl",
            &SYSCTLS,
            &[
                "net.core.somaxconn",
                "net.ipv4.tcp_mem",
                "kernel.msgmax",
                "net.ipv4.tcp_wme",
            ],
            |name| context(json!({"sysctls": [{"name": name, "value": "1"}]})),
        ),
        List::new(
            "selinux",
            &SELINUX_TYPES,
            &["container_logreader_t", "spc_t", "container_"],
            |name| context(json!({"seLinuxOptions": {"type": name}})),
        ),
        List::new(
            "capability",
            &CAPABILITIES,
            &["NET_RAW", "SYS_PTRACE", "CHOW", "CAP_"],
            |name| {
                let capabilities = json!({"add": [name, format!("cap_{}", name.to_lowercase())]});
                let app = json!({"name": "app", "image": "app.example/app:1", "securityContext": {"capabilities": capabilities}});
                json!({"spec": {"containers": [app]}})
            },
        ),
        List::new(
            "reserved_name",
            &TENANT_ANNOTATIONS,
            &["sandgate.dev/other", "sandgate.dev/cpu-reques", "sandgate.dev/inject"],
            |name| json!({"metadata": {"annotations": {name: chosen(name)}}}),
        ),
    ]
}

async fn every_item_of_a_list_passes_both_and_no_other(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    for list in lists() {
        for item in list.items {
            let mut pod = base();
            json_patch::merge(&mut pod, &item);
            let answer = namespace.dry_run(&chart.injected(&pod)).await;
            answer.unwrap_or_else(|status| panic!("{item}: {status}"));
        }
        for other in list.others {
            let row = Row::new(list.kind, other, Value::Null);
            let by_policy = judge(&namespace, &chart, &[row]).await;
            assert_eq!(by_policy, [list.kind.to_owned()].into());
        }
    }
}

async fn no_spelling_of_a_capability_gets_through(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let adding = |capability: &str| {
        let capabilities = json!({"drop": ["ALL"], "add": ["CHOWN", capability]});
        let container = json!({"securityContext": {"capabilities": capabilities}});
        Row::new("capability", Value::Null, container)
    };
    let spellings = [
        "NET_RAW",
        "net_raw",
        "CAP_NET_RAW",
        "cap_net_raw",
        "Cap_Net_Raw",
        "ALL",
        "all",
        "SYS_ADMIN",
        "NET_ADMIN",
        "cap_sys_ptrace",
        "CAP_CAP_CHOWN",
        "CHOWNCAP_",
        " CHOWN",
        "CHOWN ",
        "BPF",
    ];
    for spelling in spellings {
        assert_eq!(
            judge(&namespace, &chart, &[adding(spelling)]).await,
            ["capability".to_owned()].into(),
            "{spelling:?}"
        );
    }
    let mut allowed = base();
    allowed["spec"]["containers"][0]["securityContext"] =
        json!({"capabilities": {"add": ["CHOWN", "cap_setuid", "Net_Bind_Service"]}});
    namespace.dry_run(&chart.injected(&allowed)).await.unwrap();
}
