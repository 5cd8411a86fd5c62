//! CONTRACT section 2, row by row: which routing headers are refused, in which words, and that the app hears of none but
//! the accepted requests, and of those once.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{
    Mesh, Ports, RecordingApp, Step, TOKEN, assert_detail, exchange, read_until, rule, send, status, token_holder,
};
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const ID: &str = "X-Sandbox-ID";
const NAMESPACE: &str = "X-Sandbox-Namespace";
const PORT: &str = "X-Sandbox-Port";
const POD_IP: &str = "X-Sandbox-Pod-IP";
const UID: &str = "X-Sandbox-UID";
const TIMEOUT: &str = "X-Sandbox-Timeout";

/// A domain under which no name can exist: a label has at most 63 bytes, so no resolver asks a server.
const NO_DOMAIN: &str = "--cluster-domain=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// Texts that are no DNS-1123 label.
const NO_LABELS: &str = "A Alpha alphA - -a a- . .. a.b a_b a/b ../a a,b alpha; al%70ha a:80 user@alpha * \"alpha\" \
                         [::1] 127.0.0.1 alpha\\ alph\u{e4} \u{430}lpha \u{ff41}lpha";

fn no_labels() -> Vec<String> {
    let long = [64, 253, 5_000].map(|length| "a".repeat(length));
    let spaced = ["a b", "a\tb", "alpha, beta"].map(String::from);
    let short = NO_LABELS.split_whitespace().map(String::from);
    short.chain(spaced).chain(long).collect()
}

/// Texts that are one, at both limits of its length and between them.
fn labels() -> Vec<String> {
    let short = "a 0 7up a-b a--b 0-0 default alpha".split_whitespace();
    short.map(String::from).chain(["z".repeat(63)]).collect()
}

/// A request in which the header `name` occurs once for each of `values`, and every other one leads to the app.
fn request(mesh: &Mesh, name: &str, values: &[&str]) -> String {
    let port = mesh.ports.app.to_string();
    let lines = |name: &str, values: &[&str]| -> String {
        values.iter().flat_map(|value| [name, ": ", *value, "\r\n"]).collect()
    };
    let usual = |usual: &str, value: &str| {
        if usual == name {
            String::new()
        } else {
            lines(usual, &[value])
        }
    };
    format!(
        "GET /page HTTP/1.1\r\nHost: sandbox.example\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\
         {}{}{}\r\n",
        usual(ID, "alpha"),
        usual(PORT, &port),
        lines(name, values)
    )
}

async fn assert_refused(mesh: &Mesh, router: SocketAddr, name: &str, values: &[&str], text: &str) {
    let context = format!("{name}: {values:?}");
    assert_detail(&send(router, request(mesh, name, values)).await, 400, text, &context);
    mesh.app.assert_untouched(&context);
}

async fn assert_accepted(mesh: &Mesh, router: SocketAddr, name: &str, values: &[&str]) {
    let response = send(router, request(mesh, name, values)).await;
    assert_eq!(status(&response), 200, "{name}: {values:?}: {response}");
    let head = mesh.app.take_only_request().head;
    assert!(!head.to_ascii_lowercase().contains("x-sandbox-"), "{head}");
}

/// A router without gates that knows each of these sandboxes at the app's address.
fn router_without_gates(mesh: &Mesh, sandboxes: impl Iterator<Item = String>) -> SocketAddr {
    let endpoints: Vec<String> = sandboxes
        .map(|sandbox| format!("--sandbox-endpoint={sandbox}=127.0.0.1"))
        .collect();
    let mut flags = vec!["--mesh=off", NO_DOMAIN];
    flags.extend(endpoints.iter().map(String::as_str));
    mesh.run_router(&flags)
}

#[tokio::test]
async fn an_id_is_required_and_must_be_a_label() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for absent in [&[][..], &[""], &[" \t "]] {
        assert_refused(&mesh, mesh.router, ID, absent, "X-Sandbox-ID header is required.").await;
    }
    for id in no_labels() {
        assert_refused(&mesh, mesh.router, ID, &[&id], "Invalid sandbox ID format.").await;
    }
    let router = router_without_gates(&mesh, labels().iter().map(|id| format!("default/{id}")));
    for id in labels() {
        assert_accepted(&mesh, router, ID, &[&id]).await;
    }
    // White space around a field's value is no part of it (RFC 9110 section 5.5).
    assert_accepted(&mesh, mesh.router, ID, &[" \talpha "]).await;
}

#[tokio::test]
async fn a_namespace_is_default_or_a_label() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for namespace in no_labels() {
        assert_refused(
            &mesh,
            mesh.router,
            NAMESPACE,
            &[&namespace],
            "Invalid namespace format.",
        )
        .await;
    }
    for default in [&[][..], &[""], &[" "], &["default"], &[" default\t"]] {
        assert_accepted(&mesh, mesh.router, NAMESPACE, default).await;
    }
    let router = router_without_gates(&mesh, labels().iter().map(|namespace| format!("{namespace}/alpha")));
    for namespace in labels() {
        assert_accepted(&mesh, router, NAMESPACE, &[&namespace]).await;
    }
    // The same name in a namespace that has no such sandbox is another one.
    let response = send(router, request(&mesh, NAMESPACE, &["elsewhere"])).await;
    let text = "Could not connect to the backend sandbox: alpha";
    assert_detail(&response, 502, text, "another namespace");
    mesh.app.assert_untouched("another namespace");
}

#[tokio::test]
async fn a_port_is_ascii_digits_from_1_to_65535() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let no_ports = "0 00 65536 99999 18446744073709560504 +1 +8888 -1 -0 8888.0 8e3 0x22b8 8888,8888 8888; 8888/tcp :8888 \
                    http \"8888\" 8888\u{e4} \u{668}\u{668}\u{668}\u{668} \u{ff18}\u{ff18}\u{ff18}\u{ff18}";
    for port in no_ports.split_whitespace().chain(["88 88", "80, 8888"]) {
        assert_refused(&mesh, mesh.router, PORT, &[port], "Invalid port format.").await;
    }
    let port = mesh.ports.app;
    for text in [
        format!("{port}"),
        format!("0{port}"),
        format!("000{port}"),
        format!(" {port} "),
        format!("\t{port}\t"),
    ] {
        assert_accepted(&mesh, mesh.router, PORT, &[&text]).await;
    }
    // The limits are ports: what refuses them is the policy, which names the app's port only.
    for limit in ["1", "65535"] {
        let response = send(mesh.router, request(&mesh, PORT, &[limit])).await;
        assert_detail(&response, 403, "Refused by the sandbox policy of alpha.", limit);
        mesh.app.assert_untouched(limit);
    }
}

#[tokio::test]
async fn a_port_that_is_absent_or_empty_is_8888() {
    // The gate tells the port without dialing it: only a rule for 8888 needs the path, which is an ambiguous one.
    let policy = |_: Ports| rule(token_holder(), 8888, &[], &["/public"]);
    let mesh = Mesh::start(RecordingApp::polite().await, policy).await;
    for (values, code) in [
        (&[][..], 400),
        (&[""], 400),
        (&[" "], 400),
        (&["8888"], 400),
        (&["8889"], 403),
        (&["80"], 403),
    ] {
        let head = request(&mesh, PORT, values).replace("/page", "/public//page");
        let response = send(mesh.router, head).await;
        assert_eq!(status(&response), code, "{values:?}: {response}");
        let ambiguous = response.contains(r#"{"detail":"Ambiguous path: the sandbox policy of alpha needs"#);
        assert_eq!(ambiguous, code == 400, "{values:?}: {response}");
    }
    mesh.app.assert_untouched("no port");
}

/// Loopback, in every spelling that is an address.
const LOOPBACK: &str = "127.0.0.1 127.0.0.0 127.1.2.3 127.255.255.255 ::1 0:0:0:0:0:0:0:1 \
                        0000:0000:0000:0000:0000:0000:0000:0001 ::ffff:127.0.0.1 ::FFFF:7F00:1 0:0:0:0:0:ffff:127.8.8.8";

/// Other addresses that no pod has, and what is no address.
fn no_pods() -> impl Iterator<Item = &'static str> {
    let kinds = [
        // Link-local, with where clouds have their metadata.
        "169.254.0.0 169.254.169.254 169.254.255.255 ::ffff:169.254.169.254 ::ffff:a9fe:a9fe fe80:: fe80::1 FE80::1 \
         febf:ffff::1",
        // Multicast and broadcast.
        "224.0.0.1 239.255.255.255 ::ffff:224.0.0.1 ff00:: ff02::1 ffff::1 255.255.255.255 ::ffff:255.255.255.255",
        // Unspecified.
        "0.0.0.0 :: 0:0:0:0:0:0:0:0 ::0.0.0.0 ::ffff:0.0.0.0 ::ffff:0:0",
        // Zone ids.
        "fe80::1%eth0 fe80::1%25eth0 fd00::1%1 10.0.0.7%eth0 ::1%lo",
        // Brackets, ports and prefixes.
        "[::1] [fd00::1] [10.0.0.7] 10.0.0.7:80 [fd00::1]:80 10.0.0.7/32 fd00::1/128",
        // What inet_aton takes for an address: short, octal, hexadecimal, one number.
        "127.1 127.0.1 10.7 2130706433 017700000001 0x7f000001 0x7f.0.0.1 0177.0.0.1 0127.0.0.1 127.0.0.01 010.0.0.7",
        // What looks like one, and what doesn't.
        "10.0.0 10.0.0.7. .10.0.0.7 10.0.0.256 10.0.0.0.7 10.0.0.-7 fd00::1::2 fd00::g 1:2:3:4:5:6:7 \u{661}0.0.0.7 \
         localhost alpha.default.svc http://10.0.0.7 10.0.0.7,10.0.0.8 -",
    ];
    let spaced = ["10.0.0.7, 10.0.0.8", "10.0.0.7 10.0.0.8"];
    kinds.into_iter().flat_map(str::split_whitespace).chain(spaced)
}

#[tokio::test]
async fn a_hint_that_cannot_be_a_pods_address_is_400_also_for_a_known_sandbox() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for ip in LOOPBACK.split_whitespace().chain(no_pods()) {
        assert_refused(&mesh, mesh.router, POD_IP, &[ip], "Invalid target IP address.").await;
    }
}

#[tokio::test]
async fn a_hint_for_a_sandbox_whose_address_is_known_changes_nothing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    assert_accepted(&mesh, mesh.router, POD_IP, &[]).await;
    let pods = "10.0.0.7 203.0.113.9 100.64.0.1 fd00::1 FD00:0:0:0::A ::ffff:10.0.0.7 2001:db8::10.0.0.7";
    for ip in pods.split_whitespace().chain(["", " ", " 10.0.0.7\t"]) {
        assert_accepted(&mesh, mesh.router, POD_IP, &[ip]).await;
    }
}

#[tokio::test]
async fn a_loopback_hint_is_dialed_only_where_a_flag_allows_it() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let to_unknown = |ip: &str| request(&mesh, POD_IP, &[ip]).replace("alpha", "unknown");
    let closed = mesh.run_router(&["--mesh=off", NO_DOMAIN]);
    let open = mesh.run_router(&["--mesh=off", NO_DOMAIN, "--allow-loopback-pod-ip"]);
    for ip in ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1"] {
        let response = send(closed, to_unknown(ip)).await;
        assert_detail(&response, 400, "Invalid target IP address.", ip);
        mesh.app.assert_untouched(ip);
        let response = send(open, to_unknown(ip)).await;
        assert_eq!(status(&response), 200, "{ip}: {response}");
        mesh.app.take_only_request();
    }
    for ip in no_pods() {
        assert_refused(&mesh, open, POD_IP, &[ip], "Invalid target IP address.").await;
    }
}

#[tokio::test]
async fn a_uid_is_never_an_error() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    assert_accepted(&mesh, mesh.router, UID, &[]).await;
    let own = "0d8f3c7a-52b1-4c7e-9f60-1f2e3d4c5b6a";
    for uid in [own, "", " ", "somebody else's", "\u{e4}", &"u".repeat(5_000)] {
        assert_accepted(&mesh, mesh.router, UID, &[uid]).await;
    }
}

/// Time limits that count as none.
const IGNORED: [&str; 16] = [
    "",
    " ",
    "0",
    "0.0",
    "-0",
    "-1",
    "-0.001",
    "1e-400",
    "nan",
    "NaN",
    "inf",
    "-infinity",
    "soon",
    "1s",
    "1,5",
    "0x1",
];
/// Time limits that are longer than any that is configured.
const HUGE: [&str; 5] = ["86400", "1e9", "18446744073709551615", "1e20", "1e308"];

#[tokio::test]
async fn a_timeout_that_is_no_positive_number_is_ignored_and_a_long_one_is_capped() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    // Without kept connections: a handshake takes longer than no time at all.
    let router = mesh.run_router(&["--max-keepalive-connections=0"]);
    for timeout in IGNORED.iter().chain(&HUGE).chain(&["5", "30.5", "+9", "\u{e4}"]) {
        assert_accepted(&mesh, router, TIMEOUT, &[timeout]).await;
    }

    let mesh = Mesh::open(RecordingApp::start(|_| Step::Wait).await).await;
    let router = mesh.run_router(&["--proxy-timeout=100ms"]);
    for timeout in IGNORED.iter().chain(&HUGE) {
        let response = send(router, request(&mesh, TIMEOUT, &[timeout])).await;
        let text = "Timed out waiting for the backend sandbox: alpha";
        assert_detail(&response, 504, text, timeout);
    }
    assert!(mesh.app.heads().len() <= IGNORED.len() + HUGE.len());
}

#[tokio::test]
async fn a_short_timeout_is_504_in_the_words_clients_know() {
    let text = "Timed out waiting for the backend sandbox: alpha";
    let mesh = Mesh::open(RecordingApp::start(|_| Step::Wait).await).await;
    assert_detail(&mesh.send(request(&mesh, TIMEOUT, &["1"])).await, 504, text, "1");
    mesh.app.only_request();
    for timeout in ["0.1", " 0.1 ", ".1", "1e-1", "1e-9", "1e-300"] {
        let response = mesh.send(request(&mesh, TIMEOUT, &[timeout])).await;
        assert_detail(&response, 504, text, timeout);
    }
    assert!(mesh.app.heads().len() <= 7, "{:?}", mesh.app.heads());
}

#[tokio::test]
async fn a_routing_header_that_occurs_twice_is_named_in_the_refusal() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let port = mesh.ports.app.to_string();
    for (name, good) in [
        (ID, "alpha"),
        (NAMESPACE, "default"),
        (PORT, port.as_str()),
        (POD_IP, "10.0.0.7"),
        (UID, "u"),
        (TIMEOUT, "30"),
    ] {
        let text = format!("Duplicate {name} header.");
        for values in [
            &[good, good][..],
            &[good, "other"],
            &["other", good],
            &[good, ""],
            &["", good],
            &["", ""],
            &[good, good, good],
        ] {
            assert_refused(&mesh, mesh.router, name, values, &text).await;
        }
        let spelled = format!("{}: {good}\r\n\r\n", name.to_ascii_uppercase());
        let twice = request(&mesh, name, &[good]).replacen("\r\n\r\n", &format!("\r\n{spelled}"), 1);
        assert_detail(&mesh.send(twice).await, 400, &text, "another spelling");
        mesh.app.assert_untouched(name);
        assert_accepted(&mesh, mesh.router, name, &[good]).await;
    }
}

#[tokio::test]
async fn routing_headers_route_and_stay_behind_whatever_connection_says_of_them() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let all = format!(
        "{NAMESPACE}: default\r\n{POD_IP}: 10.0.0.7\r\n{UID}: u\r\n{TIMEOUT}: 30\r\nX-Sandbox-Future: 1\r\n\
         x-sandbox-future: 2\r\nX-Sandbox-: 1\r\n"
    );
    for router in [mesh.router, mesh.run_router(&["--mesh=off"])] {
        for connection in [
            "close",
            "close, X-Sandbox-ID",
            "x-sandbox-id, close, X-SANDBOX-PORT, x-sandbox-namespace, x-sandbox-pod-ip, x-sandbox-uid, \
             x-sandbox-timeout, x-sandbox-future",
        ] {
            let head = mesh.head("GET /page HTTP/1.1", &all);
            let head = head.replace("Connection: close", &format!("Connection: {connection}"));
            let response = send(router, head).await;
            assert_eq!(status(&response), 200, "{connection}: {response}");
            let head = mesh.app.take_only_request().head.to_ascii_lowercase();
            assert!(!head.contains("x-sandbox-"), "{connection}: {head}");
        }
    }
    // Named in Connection, a malformed one is still refused.
    let head = request(&mesh, ID, &["Alpha"]).replace("close", "close, x-sandbox-id");
    assert_detail(&mesh.send(head).await, 400, "Invalid sandbox ID format.", "named");
    mesh.app.assert_untouched("named");
}

#[tokio::test]
async fn who_has_no_credential_learns_nothing_about_routing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for (name, values) in [
        (ID, &[][..]),
        (ID, &["A"]),
        (PORT, &["0"]),
        (POD_IP, &["::1"]),
        (UID, &["1", "2"]),
    ] {
        let head = request(&mesh, name, values).replace(&format!("Authorization: Bearer {TOKEN}\r\n"), "");
        let text = "Missing or invalid Authorization header.";
        assert_detail(&mesh.send(head).await, 401, text, name);
    }
    mesh.app.assert_untouched("no credential");
}

#[tokio::test]
async fn no_request_is_routed_by_an_earlier_one_of_its_connection() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = router_without_gates(&mesh, ["default/alpha".to_owned()].into_iter());
    let port = mesh.ports.app.to_string();
    let good = request(&mesh, PORT, &[&port]).replace("Connection: close\r\n", "");
    let cannot_connect = "Could not connect to the backend sandbox: alpha";
    for (name, values, code, text) in [
        (ID, &[][..], 400, "X-Sandbox-ID header is required."),
        (ID, &["alpha", "alpha"], 400, "Duplicate X-Sandbox-ID header."),
        (PORT, &["0"], 400, "Invalid port format."),
        (PORT, &[&port, &port], 400, "Duplicate X-Sandbox-Port header."),
        (NAMESPACE, &["Default"], 400, "Invalid namespace format."),
        (NAMESPACE, &["elsewhere"], 502, cannot_connect),
        (POD_IP, &["127.0.0.1"], 400, "Invalid target IP address."),
        (UID, &["u", "u"], 400, "Duplicate X-Sandbox-UID header."),
        (TIMEOUT, &["30", "30"], 400, "Duplicate X-Sandbox-Timeout header."),
    ] {
        let mut stream = TcpStream::connect(router).await.unwrap();
        for _ in 0..2 {
            stream.write_all(good.as_bytes()).await.unwrap();
            assert_eq!(status(&read_until(&mut stream, b"hello").await), 200);
            mesh.app.take_only_request();
        }
        let context = format!("{name}: {values:?} behind good ones");
        let response = exchange(stream, request(&mesh, name, values), false).await;
        assert_detail(&response, code, text, &context);
        mesh.app.assert_untouched(&context);
    }
}
