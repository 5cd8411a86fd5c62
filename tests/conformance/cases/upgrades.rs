//! Section 5: what happens before and at a switch of protocols.

use crate::case::{App, Case, Talk, case, get, head, with};
use crate::check::Check::{Asked, Body, Closes, Detail, Field, Got, Holds, Lacks, Status, Untouched};
use crate::decisions::{ACCEPT, CONNECT, CREDENTIAL, DUPLICATES, H2C, HTTP_1_0, TIMEOUT_IS_504, WEBSOCKET_KEY};
use crate::routers::Settings;

const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
/// The key of RFC 6455 section 1.3, and what answers it.
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const ACCEPTED: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
/// The beginning of a text message of a server: `ho`, and more to come.
const FRAME: &str = "\x01\x02ho";

fn websocket(fields: &str) -> String {
    with(&format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{KEY}{fields}"))
}

fn upgrade(protocol: &str) -> String {
    with(&format!(
        "Connection: Upgrade\r\nUpgrade: {protocol}\r\nOrigin: https://a.example\r\n"
    ))
}

fn switched(fields: &str) -> String {
    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{fields}\r\n")
}

pub(super) fn cases() -> Vec<Case> {
    [tunnels(), refused_before(), unasked(), ignored()].concat()
}

fn tunnels() -> Vec<Case> {
    let echo = || App::Switches(switched("Upgrade: echo\r\n"), "pong");
    vec![
        case("another protocol is tunnelled", upgrade("echo"))
            .app(echo())
            .then([Talk::Await("\r\n\r\n"), Talk::Send("ping".into()), Talk::Await("pong")])
            .expect([
                Status(101),
                Field("upgrade", &["echo"]),
                Body("pong"),
                Got("upgrade", &["echo"]),
                Holds("ping"),
            ]),
        case("Origin stays behind on an upgrade", upgrade("echo"))
            .app(echo())
            .then([Talk::Await("\r\n\r\n")])
            .expect([Status(101), Lacks("origin:")]),
        case(
            "a WebSocket opens, and frames arrive",
            websocket("Sec-WebSocket-Protocol: kernel\r\n"),
        )
        .answer(
            switched(&format!(
                "Upgrade: websocket\r\nSec-WebSocket-Protocol: kernel\r\n{ACCEPTED}"
            )) + FRAME,
        )
        .then([Talk::Await(FRAME)])
        .expect([
            Status(101),
            Body(FRAME),
            Field("sec-websocket-protocol", &["kernel"]),
            Field("sec-websocket-accept", &["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]),
            Got("sec-websocket-protocol", &["kernel"]),
            Got("sec-websocket-version", &["13"]),
        ]),
        case(
            "an app may decline an upgrade",
            websocket("Origin: https://a.example\r\n"),
        )
        .expect([
            Status(200),
            Body("hello"),
            Asked(1),
            Lacks("origin:"),
            Got("upgrade", &["websocket"]),
        ]),
        case("an app's refusal of an upgrade passes", websocket(""))
            .answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            .expect([Status(403), Body("no"), Asked(1)]),
    ]
}

fn refused_before() -> Vec<Case> {
    vec![
        case("an upgrade at a refused connection is 502", websocket(""))
            .app(App::Refuses)
            .refused(502, UNREACHABLE),
        case("an upgrade without a credential is 401", websocket(""))
            .with(Settings::token())
            .refused(401, "Missing or invalid Authorization header.")
            .passes_there(&CREDENTIAL),
        case(
            "an upgrade with a bad ID is 400",
            websocket("").replace("alpha", "Alpha"),
        )
        .refused(400, "Invalid sandbox ID format."),
        case(
            "an upgrade with a repeated ID is 400",
            websocket("X-Sandbox-ID: alpha\r\n"),
        )
        .refused(400, "Duplicate X-Sandbox-ID header.")
        .passes_there(&DUPLICATES),
        case("an upgrade that nobody answers is 504", websocket(""))
            .with(Settings::impatient().flag("--response-header-timeout=1s"))
            .app(App::Hangs)
            .expect([
                Status(504),
                Detail("Timed out waiting for the backend sandbox: alpha"),
                Asked(1),
            ])
            .differs(&TIMEOUT_IS_504, [Status(502), Detail(UNREACHABLE), Asked(1)]),
        case("an upgrade whose connection breaks is 502", websocket(""))
            .app(App::Closes(String::new()))
            .expect([Status(502), Detail(UNREACHABLE), Asked(1)]),
    ]
}

fn unasked() -> Vec<Case> {
    let not_switched = |name: &str, request: String, answer: String| {
        case(format!("{name} is 502"), request)
            .answer(answer)
            .expect([Status(502), Detail(UNREACHABLE), Asked(1)])
    };
    let websocket_101 = || switched(&format!("Upgrade: websocket\r\n{ACCEPTED}"));
    vec![
        not_switched("a 101 that nobody asked for", get("/page"), websocket_101()),
        not_switched(
            "a 101 for an upload",
            head("POST /up", "Content-Length: 4\r\n") + "body",
            websocket_101(),
        ),
        not_switched("a 101 to another protocol", upgrade("echo"), websocket_101()),
        not_switched("a 101 to no protocol", upgrade("echo"), switched("")),
        not_switched(
            "a 101 with a wrong answer to the key",
            websocket(""),
            switched("Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n"),
        )
        .differs(&ACCEPT, [Status(101)]),
    ]
}

fn ignored() -> Vec<Case> {
    let plain = |name: &str, request: String| {
        case(format!("{name} is ignored"), request).expect([Status(200), Body("hello"), Asked(1), Got("upgrade", &[])])
    };
    let old = |request: String| request.replace("HTTP/1.1", "HTTP/1.0");
    let forwarded = |protocol: &'static [&'static str]| [Status(200), Body("hello"), Got("upgrade", protocol)];
    vec![
        plain("Upgrade: h2c", upgrade("h2c"))
            .expect([Got("origin", &["https://a.example"])])
            .differs(&H2C, forwarded(&["h2c"])),
        plain("Upgrade: H2C", upgrade("H2C")).differs(&H2C, forwarded(&["H2C"])),
        plain("an Upgrade that Connection doesn't name", with("Upgrade: echo\r\n")),
        plain("a WebSocket without a key", upgrade("websocket")).differs(&WEBSOCKET_KEY, forwarded(&["websocket"])),
        plain("an upgrade in HTTP/1.0", old(upgrade("echo"))).differs(&HTTP_1_0, forwarded(&["echo"])),
        case(
            "a request in HTTP/1.0 is answered, and its connection ends",
            old(get("/page")),
        )
        .expect([Status(200), Body("hello"), Asked(1), Closes]),
        case(
            "CONNECT is 405",
            get("/page").replace("GET /page", "CONNECT sandbox.example:443"),
        )
        .refused(405, "CONNECT is not supported.")
        .differs(&CONNECT, [Status(404), Untouched]),
        case(
            "CONNECT to the app itself is 405",
            get("/page").replace("GET /page", "CONNECT 127.0.0.1:@PORT@"),
        )
        .expect([Status(405), Untouched])
        .differs(&CONNECT, [Status(404), Untouched]),
    ]
}
