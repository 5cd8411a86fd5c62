//! CONTRACT section 7: what logs and metrics say of a request, and what they must never say.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{ProcessMesh, Programs, get, json_lines, until_ready};
use sandgate_tests::{Mesh, POD_UID, RecordingApp, Step, TOKEN, programs, send, status};
use serde_json::{Value, json};

const PROGRAMS: Programs = programs!();

/// The fields of an access line, the two that tell it from the other lines of the same stream, and why the router answered
/// itself.
const FIELDS: [&str; 18] = [
    "bytes_in",
    "bytes_out",
    "caller",
    "client_ip",
    "duration_ms",
    "error",
    "log",
    "method",
    "path",
    "request_id",
    "sandbox_id",
    "sandbox_namespace",
    "span_id",
    "status",
    "time",
    "trace_id",
    "upstream",
    "user_agent",
];

/// A domain in which no resolver asks a server for names: a label has at most 63 bytes.
fn no_domain() -> String {
    format!("--cluster-domain={}", "x".repeat(64))
}

fn access_lines(log: &str) -> Vec<Value> {
    let mut lines = json_lines(log);
    lines.retain(|line| line["log"] == "access");
    lines
}

/// Sends requests to a mesh of processes and returns each one's access line.
async fn logged(mesh: &mut ProcessMesh, requests: &[(String, u16)]) -> Vec<Value> {
    for (number, (request, code)) in (1..).zip(requests) {
        let response = send(mesh.http, request).await;
        assert_eq!(status(&response), *code, "{request}: {response}");
        mesh.router.logs("\"log\":\"access\"", number).await;
    }
    let lines = access_lines(&mesh.router.stderr());
    assert_eq!(lines.len(), requests.len(), "{lines:?}");
    lines
}

#[tokio::test]
async fn an_access_line_holds_exactly_the_fields_of_the_contract() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let fields = "Connection: close\r\nContent-Length: 4\r\nUser-Agent: curl/8\r\nX-Request-ID: id-1\r\n\
                  traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let allowed = mesh.head("POST /a%2Fb;c?q=1", fields) + "body";
    let bare = "CUSTOM http://a/p?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned();
    let lines = logged(&mut mesh, &[(allowed, 200), (bare, 401)]).await;
    for line in &lines {
        let mut names: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, FIELDS, "{line}");
        assert!(line["duration_ms"].as_f64().is_some_and(|took| took >= 0.0), "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    }
    let expect = |line: &Value, expected: Value| {
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&line[name], value, "{name} of {line}");
        }
    };
    expect(
        &lines[0],
        json!({
            "method": "POST", "path": "/a%2Fb;c", "status": 200, "client_ip": "127.0.0.1", "sandbox_id": "alpha",
            "sandbox_namespace": "default", "bytes_in": 4, "bytes_out": 5, "user_agent": "curl/8", "request_id": "id-1",
            "caller": "static:default", "upstream": mesh.mesh.to_string(),
            "trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331",
            "error": null,
        }),
    );
    let refused = r#"{"detail":"Missing or invalid Authorization header."}"#;
    expect(
        &lines[1],
        json!({
            "method": "CUSTOM", "path": "/p", "status": 401, "client_ip": "127.0.0.1", "sandbox_id": null,
            "sandbox_namespace": null, "bytes_in": 0, "bytes_out": refused.len(), "user_agent": null, "caller": null,
            "upstream": null, "trace_id": null, "span_id": null,
            "error": "Missing or invalid Authorization header.",
        }),
    );
    app.only_request();
}

#[tokio::test]
async fn what_a_client_makes_long_is_cut_in_its_access_line_and_in_the_gates() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let long = "a".repeat(4000);
    let fields = format!("Connection: close\r\nUser-Agent: {long}\r\ntraceparent: 00-{long}-{long}-01\r\n");
    let request = mesh.head(&format!("{} /{long}", "M".repeat(40)), &fields);
    let lines = logged(&mut mesh, &[(request, 200)]).await;
    mesh.sidecar.logs("\"log\":\"audit\"", 1).await;
    let audit = json_lines(&mesh.sidecar.stderr());
    let audit = audit.iter().find(|line| line["log"] == "audit").unwrap();
    let length = |line: &Value, name: &str| {
        let text = line[name].as_str().unwrap();
        text.strip_suffix('…')
            .unwrap_or_else(|| panic!("{name} of {line}"))
            .len()
    };
    for (name, longest) in [("method", 32), ("path", 2048)] {
        assert_eq!(
            (length(&lines[0], name), length(audit, name)),
            (longest, longest),
            "{name}"
        );
    }
    assert_eq!(length(&lines[0], "user_agent"), 256);
    // What isn't spelled as a trace's place is none, however long.
    for name in ["trace_id", "span_id"] {
        assert_eq!((&lines[0][name], &audit[name]), (&Value::Null, &Value::Null), "{name}");
    }
    let seen = app.only_request();
    assert!(seen.head.contains(&long), "the app got less: {}", seen.head);
}

/// What a client may say that nobody who reads logs or metrics must learn.
const SECRETS: [&str; 5] = [TOKEN, "guessed-token", "query-secret", "crumb-secret", "proxy-secret"];

/// Requests that say all of that, of which each ends in another way.
fn telling(mesh: &ProcessMesh) -> Vec<(String, u16)> {
    let fields = "Connection: close\r\nCookie: session=crumb-secret\r\nProxy-Authorization: Basic proxy-secret\r\n";
    let good = mesh.head("GET /path?access_token=query-secret&other=1", fields);
    let head = |from: &str, to: &str| good.replace(from, to);
    vec![
        (good.clone(), 200),
        (head("GET /path?", "GET http://user:query-secret@a/path?"), 200),
        (head("GET /path?", "GET /path/../path?"), 200),
        (head(&format!("Bearer {TOKEN}"), "Bearer guessed-token"), 401),
        (head("Authorization: Bearer", "Authorization: Basic"), 401),
        (head("ID: alpha", "ID: Alpha"), 400),
        (head("ID: alpha", "ID: nobody"), 502),
        (head("X-Sandbox-Port: ", "X-Sandbox-Port: 1\r\nX-Sandbox-Port: "), 400),
        (head("X-Sandbox-Port: ", "X-Sandbox-Port: 1\r\nX-Not-The-Port: "), 403),
        (head("GET /path", "CONNECT /path"), 405),
    ]
}

#[tokio::test]
async fn no_log_line_holds_a_token_a_query_or_a_cookie() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &["--log-level=trace", &no_domain()]).await;
    let requests = telling(&mesh);
    logged(&mut mesh, &requests).await;
    // Of what can't be read as a request, the line says nothing but that it was refused.
    let unreadable = requests[0].0.replace("GET ", "GET? ");
    assert_eq!(status(&send(mesh.http, unreadable).await), 400);
    mesh.router.logs("\"log\":\"access\"", requests.len() + 1).await;
    let lines = access_lines(&mesh.router.stderr());
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["method"], &last["path"], &last["status"]),
        (&"-".into(), &"-".into(), &400.into())
    );
    assert_eq!(app.requests().len(), 3);
    mesh.sidecar.logs("\"log\":\"audit\"", 4).await;
    for log in [
        mesh.router.stderr(),
        mesh.sidecar.stderr(),
        mesh.router.stdout(),
        mesh.sidecar.stdout(),
    ] {
        for secret in SECRETS {
            let line = log.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{secret}");
        }
    }
}

#[tokio::test]
async fn an_access_line_says_why_the_router_itself_answered() {
    let app = RecordingApp::polite().await;
    let flags = ["--max-request-body-bytes=9", "--path-routing-prefix=/p", &no_domain()];
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &flags).await;
    let head = |line: &str, fields: &str| mesh.head(line, &format!("Connection: close\r\n{fields}"));
    let page = format!("GET /p/default/alpha/{}/", app.port());
    let upgrade = "Connection: upgrade\r\nUpgrade: x\r\nOrigin: https://evil.example\r\n";
    let gates = head("GET /", "").replace("X-Sandbox-Port: ", "X-Sandbox-Port: 1\r\nX-Not-The-Port: ");
    let requests = [
        (head("POST /", "Content-Length: 10\r\n") + "0123456789", 413),
        (head("GET /", "").replace("ID: alpha", "ID: Alpha"), 400),
        (head("GET /", "").replace("ID: alpha", "ID: nobody"), 502),
        (head(&page, upgrade), 403),
        (
            head("POST /", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
            400,
        ),
        (head("GET /", &format!("X-Long: {}\r\n", "a".repeat(61_440))), 431),
    ];
    for (number, (request, code)) in (1..).zip(&requests) {
        let answer = send(mesh.http, request).await;
        assert_eq!(status(&answer), *code, "{answer}");
        mesh.router.logs("\"log\":\"access\"", number).await;
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap();
        let lines = access_lines(&mesh.router.stderr());
        let error = &lines.last().unwrap()["error"];
        assert!(error.is_string() && *error == body["detail"], "{error}: {answer}");
    }
    // What a gate says, its own log explains.
    assert_eq!(status(&send(mesh.http, gates).await), 403);
    mesh.router.logs("\"log\":\"access\"", requests.len() + 1).await;
    assert_eq!(
        access_lines(&mesh.router.stderr()).last().unwrap()["error"],
        Value::Null
    );
}

#[tokio::test]
async fn probes_have_no_access_line() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    for (address, path) in [
        (mesh.http, "/healthz"),
        (mesh.http, "/healthz?full"),
        (mesh.router_health, "/healthz"),
        (mesh.router_health, "/readyz"),
        (mesh.metrics, "/metrics"),
    ] {
        assert_eq!(get(address, path).await.0, 200, "{path}");
    }
    // An app's own, too, which are asked for as often; and whoever is refused there.
    for path in ["/healthz", "/readyz", "/metrics?full"] {
        let request = mesh.head(&format!("POST {path}"), "Connection: close\r\n");
        assert_eq!(status(&send(mesh.http, &request).await), 200, "{path}");
        assert_eq!(
            status(&send(mesh.http, request.replace(TOKEN, "guessed")).await),
            401,
            "{path}"
        );
    }
    // Lines are written in the order of the requests' ends: those of the probes would stand before this one.
    for path in ["/healthz/x", "/Readyz", "//metrics"] {
        let request = mesh.head(&format!("GET {path}"), "Connection: close\r\n");
        assert_eq!(status(&send(mesh.http, request).await), 200, "{path}");
    }
    mesh.router.logs("\"log\":\"access\"", 3).await;
    let lines = access_lines(&mesh.router.stderr());
    let paths: Vec<_> = lines.iter().map(|line| line["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/healthz/x", "/Readyz", "//metrics"]);
}

/// An API server that knows one pod, `team-a/alpha` on this machine.
async fn one_pod() -> (RecordingApp, Folder) {
    let server = RecordingApp::start(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if !text.ends_with("\r\n\r\n") {
            return Step::Wait;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        if text.contains("watch=true") {
            return Step::Answer(format!("{head}Transfer-Encoding: chunked\r\n\r\n").into());
        }
        let owner = json!({
            "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "alpha", "uid": "s", "controller": true,
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "alpha", "namespace": "team-a", "uid": "p", "ownerReferences": [owner],
                "labels": {"agents.x-k8s.io/sandbox-name-hash": "8c736521"},
            },
            "spec": {"containers": [{"name": "app", "image": "app"}]},
            "status": {
                "podIP": "127.0.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let list = json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [pod],
        });
        let list = list.to_string();
        Step::Answer(format!("{head}Content-Length: {}\r\n\r\n{list}", list.len()).into())
    })
    .await;
    let folder = Folder::new();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{}", server.port())}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    folder.rename_over("kubeconfig", config.to_string());
    (server, folder)
}

#[tokio::test]
async fn without_gates_a_namespace_is_a_label_once_a_sandbox_that_the_cache_knows_has_answered() {
    let (_server, folder) = one_pod().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let kubeconfig = format!("--kubeconfig={}", folder.path("kubeconfig").display());
    let cached = [
        "--mesh=off",
        "--cache-enabled",
        "--allow-loopback-pod-ip",
        &kubeconfig,
        &no_domain(),
    ];
    let uncached = ["--mesh=off", "--allow-loopback-pod-ip", &no_domain()];
    for (flags, namespace, label) in [
        (&cached[..], "team-a", "team-a"),
        // A caller's word is no sandbox's: it may name any namespace beside an address that answers.
        (&uncached, "team-a", "other"),
        (&uncached, "invented", "other"),
    ] {
        let router = mesh.bind_router("default/other", POD_UID, flags);
        let (http, metrics, health) = (router.http_address(), router.metrics_address(), router.health_address());
        tokio::spawn(router.run(std::future::pending()));
        until_ready(health, (200, "ok")).await;
        let fields = format!("X-Sandbox-Namespace: {namespace}\r\nX-Sandbox-Pod-IP: 127.0.0.1\r\n");
        for _ in 0..2 {
            let answer = send(http, mesh.head("GET / HTTP/1.1", &fields)).await;
            assert_eq!(status(&answer), 200, "{flags:?}: {answer}");
        }
        let (_, text) = get(metrics, "/metrics").await;
        for counted in [
            format!(r#"requests_total{{code="200",method="GET",sandbox_namespace="{label}"}} 2"#),
            format!(r#"authz_decisions_total{{decision="allow",sandbox_namespace="{label}"}} 2"#),
        ] {
            assert!(
                text.contains(&format!("\nsandbox_router_{counted}\n")),
                "{counted}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn each_request_is_one_decision_about_its_caller() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.bind_router("default/alpha", POD_UID, &[]);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    let good = mesh.head("GET / HTTP/1.1", "");
    let refused_by_gate = good.replace(&format!("X-Sandbox-Port: {}", mesh.ports.app), "X-Sandbox-Port: 1");
    for (request, code) in [
        (&good, 200),
        (&refused_by_gate, 403),
        (&good.replace(TOKEN, "guessed"), 401),
    ] {
        assert_eq!(status(&send(http, request).await), code);
    }
    let (_, text) = get(metrics, "/metrics").await;
    let decisions: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("sandbox_router_authz_decisions_total"))
        .collect();
    assert_eq!(
        decisions,
        [
            r#"{decision="allow",sandbox_namespace="default"} 1"#,
            r#"{decision="deny",sandbox_namespace="default"} 1"#,
            r#"{decision="deny",sandbox_namespace="other"} 1"#,
        ]
    );
    let labels = [
        "build_date",
        "compiler",
        "git_commit",
        "git_version",
        "go_version",
        "platform",
        "version",
    ];
    let build = text
        .lines()
        .find(|line| line.starts_with("sandbox_router_build_info{"))
        .unwrap();
    let (build, value) = build.split_once('{').unwrap().1.split_once("} ").unwrap();
    let names: Vec<_> = build.split(',').map(|label| label.split('=').next().unwrap()).collect();
    assert_eq!((names.as_slice(), value), (&labels[..], "1"), "{build}");
}

#[tokio::test]
async fn metrics_hold_no_token_no_query_and_no_name_that_a_caller_chose() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for gate in ["--mesh=required", "--mesh=off"] {
        let router = mesh.bind_router("default/alpha", POD_UID, &[gate, &no_domain()]);
        let (http, metrics) = (router.http_address(), router.metrics_address());
        tokio::spawn(router.run(std::future::pending()));
        let fields = "Cookie: crumb\r\nUser-Agent: agent007\r\nX-Request-ID: id4711\r\n";
        let head = mesh.head("CHOSEN /path?query=secret HTTP/1.1", fields);
        assert_eq!(status(&send(http, &head).await), 200);
        assert_eq!(status(&send(http, head.replace(TOKEN, "guessed")).await), 401);
        let elsewhere = head.replace("Connection: close", "Connection: close\r\nX-Sandbox-Namespace: chosen");
        assert_eq!(status(&send(http, elsewhere).await), 502);
        let (code, text) = get(metrics, "/metrics").await;
        assert_eq!(code, 200);
        for counted in [
            r#"requests_total{code="200",method="other",sandbox_namespace="default"} 1"#,
            r#"requests_total{code="401",method="other",sandbox_namespace="other"} 1"#,
            r#"requests_total{code="502",method="other",sandbox_namespace="other"} 1"#,
            r#"upstream_errors_total{reason="dial",sandbox_namespace="other"} 1"#,
            r#"authz_decisions_total{decision="deny",sandbox_namespace="other"} 1"#,
            "inflight_requests 0",
        ] {
            assert!(
                text.contains(&format!("\nsandbox_router_{counted}\n")),
                "{counted}: {text}"
            );
        }
        let lower = text.to_ascii_lowercase();
        for said in [
            TOKEN, "guessed", "secret", "query", "path", "crumb", "agent007", "id4711", "chosen", "alpha",
        ] {
            assert!(!lower.contains(said), "{said} in {text}");
        }
    }
}
