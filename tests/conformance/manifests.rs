//! Upstream's own manifests, flags and variables, read from its files, at our router.

use crate::routers::{Router, Started};
use crate::upstream::{router, told};
use sandgate_tests::folder::Folder;
use sandgate_tests::kubelet;
use sandgate_tests::processes::{Process, command, get, until_ready};
use sandgate_tests::{RecordingApp, Step};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const OURS: &str = env!("CARGO_BIN_EXE_sandbox-router-under-test");

/// The Go router's flags that ours doesn't have, and why.
pub(crate) const UNKNOWN_FLAGS: [(&str, &str); 0] = [];
/// The variables of both routers that ours doesn't read, and why.
pub(crate) const UNKNOWN_VARIABLES: [(&str, &str); 0] = [];

/// Every flag of the Go router.
pub(crate) const UPSTREAM_FLAGS: [&str; 36] = [
    "access-log",
    "allow-loopback-pod-ip",
    "authz-mode",
    "authz-scoped-token-secret-file",
    "authz-tokenreview-audiences",
    "authz-tokenreview-cache-size",
    "authz-tokenreview-require-token",
    "authz-tokenreview-ttl",
    "cache-enabled",
    "cache-namespace",
    "cluster-domain",
    "config",
    "enable-otel-metrics",
    "enable-tracing",
    "health-probe-bind-address",
    "http-bind-address",
    "https-bind-address",
    "kubeconfig",
    "max-request-body-bytes",
    "metrics-bind-address",
    "mtls-mode",
    "proxy-timeout",
    "response-header-timeout",
    "shutdown-timeout",
    "tls-cert-file",
    "tls-client-ca-file",
    "tls-key-file",
    "upstream-max-retries",
    "upstream-retry-initial-delay",
    "upstream-retry-max-delay",
    "version",
    "zap-devel",
    "zap-encoder",
    "zap-log-level",
    "zap-stacktrace-level",
    "zap-time-encoding",
];
/// Every variable that one of the two routers reads.
pub(crate) const UPSTREAM_VARIABLES: [&str; 15] = [
    "ALLOW_UNAUTHENTICATED_ROUTER",
    "CLUSTER_DOMAIN",
    "KUBECONFIG",
    "MAX_KEEPALIVE_CONNECTIONS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "PROXY_TIMEOUT_SECONDS",
    "ROUTER_AUTH_TOKEN",
    "SANDBOX_ROUTER_CONFIG",
    "TRUSTED_PROXY_CIDRS",
    "WEBSOCKET_IDLE_TIMEOUT_SECONDS",
    "WEBSOCKET_MAX_CONNECTIONS_PER_CLIENT",
    "WEBSOCKET_MAX_LIFETIME_SECONDS",
    "WEBSOCKET_MAX_MESSAGE_BYTES",
];

/// A manifest of upstream's.
fn file(path: &str) -> PathBuf {
    Path::new(&told("SANDGATE_UPSTREAM_FILES")).join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The only container of the manifest's Deployment.
fn container(manifest: &str) -> Value {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&read(&file(manifest))).unwrap();
    let deployment = documents
        .iter()
        .find(|document| document["kind"] == "Deployment")
        .unwrap();
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{deployment}");
    containers[0].clone()
}

/// An API server that has no pods, allows as much as the `ClusterRole` of the Go router's manifests, and a kubeconfig that leads
/// to it.
async fn api_server(folder: &Folder) -> RecordingApp {
    let role = read(&file("sandbox-router/deploy/rbac.yaml"));
    assert!(
        role.contains("resources: [\"pods\"]") && !role.contains("\"namespaces\""),
        "{role}"
    );
    let server = RecordingApp::start(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if !text.ends_with("\r\n\r\n") {
            Step::Wait
        } else if !text.starts_with("GET /api/v1/pods?") {
            Step::Answer(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into())
        } else if text.contains("watch=true") {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            Step::Answer(head.into())
        } else {
            let list =
                json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [] });
            let list = list.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                list.len()
            );
            Step::Answer((head + &list).into())
        }
    })
    .await;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{ "name": "it", "cluster": { "server": format!("http://127.0.0.1:{}", server.port()) } }],
        "users": [{ "name": "it", "user": {} }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
    });
    folder.rename_over("kubeconfig", config.to_string());
    server
}

/// Our router in place of the container's own program, with `flags` behind the container's own. The ports are others: who
/// knows what listens on this machine. KUBECONFIG stands for the pod's `ServiceAccount`.
async fn start(container: &Value, folder: &Folder, flags: &[&str], variables: &[(&str, &str)]) -> Started {
    let mut command = kubelet::command(OURS, &Value::Null, container, folder);
    command.env("KUBECONFIG", folder.path("kubeconfig"));
    command.args(["http", "metrics", "health-probe"].map(|port| format!("--{port}-bind-address=127.0.0.1:0")));
    command.args(flags).envs(variables.iter().copied());
    Router::Ours.listens(Process::start(command)).await
}

#[tokio::test]
#[ignore = "needs upstream's manifests: start it with tests/conformance/run"]
async fn upstreams_manifests_start_our_router_with_two_additions_and_without_them_it_names_both() {
    let token = ("ROUTER_AUTH_TOKEN", "T");
    for (manifest, decided) in [
        ("sandbox-router/deploy/deployment.yaml", "--cache-enabled=true"),
        (
            "clients/python/agentic-sandbox-client/sandbox-router/sandbox_router.yaml",
            "WEBSOCKET_IDLE_TIMEOUT_SECONDS",
        ),
    ] {
        let container = container(manifest);
        assert!(
            container.to_string().contains(decided),
            "{manifest} is another one: {container}"
        );
        let folder = Folder::new();
        let _server = api_server(&folder).await;
        for (flags, variables, missing) in [
            (
                &[][..],
                &[][..],
                &["--mesh=off", "ROUTER_AUTH_TOKEN", "--authz-mode=allow-all"][..],
            ),
            (&["--mesh=off"], &[], &["ROUTER_AUTH_TOKEN", "--authz-mode=allow-all"]),
            (&[], &[token], &["--mesh=off"]),
        ] {
            let Started::Ended(left) = start(&container, &folder, flags, variables).await else {
                panic!("{manifest} starts with {flags:?} and {variables:?} only")
            };
            assert_eq!(left.code, Some(64), "{manifest}: {}", left.stderr);
            for missing in missing {
                assert!(
                    left.stderr.contains(missing),
                    "{manifest}: {missing} is not named: {}",
                    left.stderr
                );
            }
        }
        for (flags, variables) in [
            (&["--mesh=off"][..], &[token][..]),
            (&["--mesh=off", "--authz-mode=allow-all"], &[]),
            (&["--mesh=off"], &[("ALLOW_UNAUTHENTICATED_ROUTER", "true")]),
        ] {
            let running = match start(&container, &folder, flags, variables).await {
                Started::Runs(running) => running,
                Started::Ended(left) => panic!("{manifest} with {flags:?} and {variables:?}: {}", left.stderr),
            };
            // The probes of both manifests.
            until_ready(running.health, (200, "ok")).await;
            assert_eq!(get(running.health, "/healthz").await.0, 200);
            assert_eq!(get(running.http, "/healthz").await, (200, r#"{"status":"ok"}"#.into()));
        }
    }
}

#[test]
#[ignore = "needs upstream's manifests: start it with tests/conformance/run"]
fn upstreams_ports_are_ours() {
    let ports = |manifest: &str| -> BTreeSet<u64> {
        let container = container(manifest);
        let ports = container["ports"].as_array().unwrap().iter();
        ports.map(|port| port["containerPort"].as_u64().unwrap()).collect()
    };
    let args = ["--authz-mode=allow-all", "--mesh=off"].map(Into::into).to_vec();
    let config = sandbox_router::config::Config::from_args(args).unwrap();
    let [http, metrics, health] =
        [config.http.unwrap(), config.metrics, config.health].map(|address| u64::from(address.port()));
    assert_eq!(
        ports("sandbox-router/deploy/deployment.yaml"),
        BTreeSet::from([http, metrics, health])
    );
    let python = ports("clients/python/agentic-sandbox-client/sandbox-router/sandbox_router.yaml");
    assert_eq!(python, BTreeSet::from([http]));
}

/// What a program says to `--help`.
async fn help(program: &str) -> String {
    let left = Process::start(command(program, ["--help"])).ended().await;
    left.stdout + &left.stderr
}

/// Prints what ours doesn't have, and fails for anything else that it doesn't, and for what it has by now.
#[allow(clippy::print_stdout, reason = "it is what the command is for")]
fn assert_known_gaps(what: &str, missing: &BTreeSet<String>, gaps: &BTreeSet<String>) {
    println!(
        "\nknown gaps among the {what}: {}",
        missing.iter().cloned().collect::<Vec<_>>().join(", ")
    );
    let (new, closed): (Vec<_>, Vec<_>) = (missing.difference(gaps).collect(), gaps.difference(missing).collect());
    assert!(
        new.is_empty(),
        "{what} that ours doesn't take, and that are no known gaps: {new:?}"
    );
    assert!(
        closed.is_empty(),
        "{what} that ours takes by now: take them out of the list of gaps: {closed:?}"
    );
}

#[tokio::test]
#[ignore = "needs the Go router: start it with tests/conformance/run"]
async fn every_flag_of_the_go_router_is_ours_too_but_for_the_known_gaps() {
    let (theirs, ours) = (help(&router()).await, help(OURS).await);
    let flags: BTreeSet<&str> = theirs
        .lines()
        .filter_map(|line| line.strip_prefix("  -"))
        .filter_map(|line| line.split([' ', '\t']).next())
        .collect();
    assert_eq!(flags, BTreeSet::from(UPSTREAM_FLAGS), "theirs on the left");
    let lines = || ours.lines().map(|line| line.trim_start().trim_start_matches("-V, "));
    let known = |flag: &str| lines().any(|line| line.split([' ', '=', '[']).next() == Some(flag));
    let missing = flags.iter().filter(|flag| !known(&format!("--{flag}")));
    let missing: BTreeSet<String> = missing.map(|flag| (*flag).to_owned()).collect();
    let gaps = UNKNOWN_FLAGS.iter().map(|(flag, _)| (*flag).to_owned()).collect();
    assert_known_gaps("flags of the Go router", &missing, &gaps);
}

#[tokio::test]
#[ignore = "needs upstream's files: start it with tests/conformance/run"]
async fn every_variable_of_both_routers_is_ours_too_but_for_the_known_gaps() {
    let ours = help(OURS).await;
    let sources = [
        "sandbox-router/config/flags.go",
        "sandbox-router/config/file.go",
        "clients/python/agentic-sandbox-client/sandbox-router/sandbox_router.py",
    ];
    let mut variables = BTreeSet::new();
    for source in sources {
        let text = read(&file(source));
        // Both write their names as texts.
        let texts = text.split('"').skip(1).step_by(2).filter(|text| is_variable(text));
        variables.extend(texts.map(String::from));
    }
    let listed = UPSTREAM_VARIABLES.map(String::from);
    assert_eq!(variables, BTreeSet::from(listed), "theirs on the left");
    let missing = variables
        .into_iter()
        .filter(|name| !ours.contains(name.as_str()))
        .collect();
    let gaps = UNKNOWN_VARIABLES
        .iter()
        .map(|(variable, _)| (*variable).to_owned())
        .collect();
    assert_known_gaps("variables of both routers", &missing, &gaps);
}

fn is_variable(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    text == "KUBECONFIG" || text.contains('_') && text.bytes().all(allowed)
}
