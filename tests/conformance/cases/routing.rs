//! Section 2: every routing header, what of it is refused, and in which words.

use crate::case::{App, Case, case, get, routed, unhinted, with};
use crate::check::Check::{Asked, Body, Detail, Got, Lacks, Line, Status, Untouched};
use crate::decisions::{DUPLICATES, HOST, PLAIN_ADDRESS, PORT_DIGITS, TIMEOUT, TIMEOUT_IS_504};
use crate::routers::Settings;

const ID: &str = "X-Sandbox-ID";
const NAMESPACE: &str = "X-Sandbox-Namespace";
const PORT: &str = "X-Sandbox-Port";
const POD_IP: &str = "X-Sandbox-Pod-IP";
const UID: &str = "X-Sandbox-UID";
const TIMEOUT_HEADER: &str = "X-Sandbox-Timeout";

const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const TIMED_OUT: &str = "Timed out waiting for the backend sandbox: alpha";
/// 63 and 64 characters.
const LONGEST: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
const TOO_LONG: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
/// What is no DNS-1123 label.
const NO_LABELS: [&str; 18] = [
    "A", "alphA", "-", "-a", "a-", ".", "..", "a.b", "a_b", "a/b", "../a", "a b", "a,b", "al%70ha", "a:80", "\u{e4}",
    "*", TOO_LONG,
];
const LABELS: [&str; 6] = ["a", "0", "7up", "a-b", "a--b", LONGEST];

pub(super) fn cases() -> Vec<Case> {
    [
        labels(),
        ports(),
        hints(),
        refused_hints(),
        lookups(),
        timeouts(),
        duplicates(),
    ]
    .concat()
}

fn labels() -> Vec<Case> {
    let required = |name: &str, values: &[&str]| {
        case(format!("{name} is required"), routed(ID, values)).refused(400, "X-Sandbox-ID header is required.")
    };
    let mut cases = vec![
        required("an ID", &[]),
        required("an ID that is not empty", &[""]),
        required("an ID that is not blank", &[" \t "]),
        case("white space around an ID is no part of it", routed(ID, &[" \talpha "])).passes(),
        case(
            "a routing header's name may be spelled in any case",
            get("/page").replace(ID, "x-sandbox-id"),
        )
        .passes(),
        case("an empty namespace is the default", routed(NAMESPACE, &[""])).passes(),
    ];
    for label in NO_LABELS {
        cases.push(
            case(format!("the ID {label} is refused"), routed(ID, &[label])).refused(400, "Invalid sandbox ID format."),
        );
        cases.push(
            case(format!("the namespace {label} is refused"), routed(NAMESPACE, &[label]))
                .refused(400, "Invalid namespace format."),
        );
    }
    for label in LABELS {
        cases.push(case(format!("the ID {label} is taken"), routed(ID, &[label])).passes());
        cases.push(case(format!("the namespace {label} is taken"), routed(NAMESPACE, &[label])).passes());
    }
    cases
}

fn ports() -> Vec<Case> {
    let refused = |port: &str| {
        case(format!("the port {port} is refused"), routed(PORT, &[port])).refused(400, "Invalid port format.")
    };
    let bad = [
        "0",
        "00",
        "65536",
        "18446744073709560504",
        "-1",
        "8888.0",
        "8e3",
        "0x22b8",
        "80, 88",
        "8 8",
        "http",
        "\u{ff18}",
    ];
    let mut cases: Vec<Case> = bad.map(refused).into();
    let default = |name: &str, values: &[&str]| {
        case(format!("{name} is 8888"), routed(PORT, values))
            .app(App::OnDefaultPort)
            .passes()
            .expect([Got("host", &["127.0.0.1:8888"])])
            // Theirs is at the same port, under another name.
            .differs(
                &HOST,
                [Status(200), Body("hello"), Asked(1), Got("host", &["@IP@:8888"])],
            )
    };
    cases.extend([
        case("a port with a sign is refused", routed(PORT, &["+@PORT@"]))
            .refused(400, "Invalid port format.")
            .passes_there(&PORT_DIGITS),
        case("a port with leading zeros is one", routed(PORT, &["00@PORT@"])).passes(),
        default("a port that is absent", &[]),
        default("a port that is empty", &[""]),
    ]);
    cases
}

fn hints() -> Vec<Case> {
    let taken = |name: &str, ip: &str| case(name, routed(POD_IP, &[ip])).passes();
    vec![
        taken("a hint leads to the sandbox", "127.0.0.1"),
        taken("a hint may be an IPv4 address in IPv6", "::ffff:127.0.0.1"),
        taken("a hint may be spelled in hexadecimal", "::FFFF:7F00:1"),
        taken("white space around a hint is no part of it", " 127.0.0.1\t"),
        case("an empty hint is none", routed(POD_IP, &[""])).refused(502, UNREACHABLE),
        case("without a hint the name is looked up", unhinted("")).refused(502, UNREACHABLE),
    ]
}

fn refused_hints() -> Vec<Case> {
    let text = "Invalid target IP address.";
    let closed = || Settings::open().flag("--allow-loopback-pod-ip=false");
    let loopback = [
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "::ffff:127.0.0.1",
        "0:0:0:0:0:ffff:127.8.8.8",
    ];
    let loopback = loopback.map(|ip| {
        case(
            format!("the loopback hint {ip} is refused without the flag"),
            routed(POD_IP, &[ip]),
        )
        .with(closed())
        .refused(400, text)
    });
    let others = [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "fe80::1",
        "224.0.0.1",
        "239.255.255.255",
        "ff02::1",
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "fe80::1%eth0",
        "[::1]",
        "127.0.0.1:80",
        "10.0.0.0/8",
        "127.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.0.0.256",
        "localhost",
        "10.0.0.7, 10.0.0.8",
    ];
    let others = others.map(|ip| case(format!("the hint {ip} is refused"), routed(POD_IP, &[ip])).refused(400, text));
    let mut cases = [&loopback[..], &others[..]].concat();
    cases.push(
        case(
            "the hint 255.255.255.255 is refused",
            routed(POD_IP, &["255.255.255.255"]),
        )
        .refused(400, text)
        .differs(&PLAIN_ADDRESS, [Status(502), Detail(UNREACHABLE)]),
    );
    cases
}

fn lookups() -> Vec<Case> {
    let long = "u".repeat(5_000);
    let uids = [
        "0d8f3c7a-52b1-4c7e-9f60-1f2e3d4c5b6a",
        "",
        "somebody else's",
        "\u{e4}",
        long.as_str(),
    ];
    let names = [
        "of a Sandbox",
        "that is empty",
        "that is none",
        "that is no text",
        "that is long",
    ];
    let mut cases: Vec<Case> = names
        .into_iter()
        .zip(uids)
        .map(|(name, uid)| case(format!("a UID {name} is no error"), routed(UID, &[uid])).passes())
        .collect();
    cases.push(
        case(
            "a UID without a cache leads nowhere by itself",
            unhinted("X-Sandbox-UID: u\r\n"),
        )
        .refused(502, UNREACHABLE),
    );
    cases
}

fn timeouts() -> Vec<Case> {
    let ignored = [
        "",
        "0",
        "-0.5",
        "nan",
        "inf",
        "-infinity",
        "soon",
        "1s",
        "1,5",
        "0x1",
        "1e999",
    ];
    let mut cases: Vec<Case> = ignored
        .map(|timeout| {
            case(
                format!("the timeout {timeout:?} is ignored"),
                routed(TIMEOUT_HEADER, &[timeout]),
            )
            .passes()
        })
        .into();
    cases.push(case("a long timeout is no error", routed(TIMEOUT_HEADER, &["1e9"])).passes());
    for timeout in ["1e9", "86400", "3.5"] {
        cases.push(
            case(
                format!("the timeout {timeout} is capped"),
                routed(TIMEOUT_HEADER, &[timeout]),
            )
            .with(Settings::impatient())
            .app(App::Hangs)
            .expect([Status(504), Detail(TIMED_OUT), Asked(1)])
            .differs(&TIMEOUT_IS_504, [Status(502), Detail(UNREACHABLE), Asked(1)]),
        );
    }
    for timeout in ["0.2", " .2 ", "2e-1"] {
        cases.push(
            case(
                format!("the timeout {timeout:?} is kept"),
                routed(TIMEOUT_HEADER, &[timeout]),
            )
            .with(
                Settings::open()
                    .flag("--proxy-timeout=4s")
                    .flag("--response-header-timeout=4s"),
            )
            .app(App::Hangs)
            .expect([Status(504), Detail(TIMED_OUT)])
            .differs(&TIMEOUT, [Status(502), Detail(UNREACHABLE)]),
        );
    }
    cases
}

fn duplicates() -> Vec<Case> {
    let rows: [(&str, &'static str, &str); 6] = [
        (ID, "Duplicate X-Sandbox-ID header.", "alpha"),
        (NAMESPACE, "Duplicate X-Sandbox-Namespace header.", "default"),
        (PORT, "Duplicate X-Sandbox-Port header.", "@PORT@"),
        (POD_IP, "Duplicate X-Sandbox-Pod-IP header.", "127.0.0.1"),
        (UID, "Duplicate X-Sandbox-UID header.", "u"),
        (TIMEOUT_HEADER, "Duplicate X-Sandbox-Timeout header.", "30"),
    ];
    let mut cases = Vec::new();
    for (name, text, good) in rows {
        for (kind, values) in [
            ("twice the same", [good, good]),
            ("twice", [good, "other"]),
            ("empty the second time", [good, ""]),
        ] {
            cases.push(
                case(format!("{name} {kind} is refused"), routed(name, &values))
                    .refused(400, text)
                    .passes_there(&DUPLICATES),
            );
        }
    }
    cases.push(
        case(
            "a repeated routing header in another spelling is refused",
            with("x-sandbox-id: beta\r\n"),
        )
        .refused(400, "Duplicate X-Sandbox-ID header.")
        .passes_there(&DUPLICATES),
    );
    cases.push(
        case(
            "a routing header that Connection names still routes",
            with("Connection: X-Sandbox-ID, X-Sandbox-Port\r\n"),
        )
        .expect([
            Status(200),
            Asked(1),
            Line("GET /page"),
            Lacks("x-sandbox-id"),
            Lacks("x-sandbox-port"),
        ]),
    );
    cases.push(
        case(
            "a bad ID is refused before a bad port",
            routed(ID, &["A"]).replace("@PORT@", "0"),
        )
        .expect([Status(400), Detail("Invalid sandbox ID format."), Untouched]),
    );
    cases
}
