//! Section 4: what a client is told when there is no answer from the app, and how long anybody waits.

use crate::case::{App, Case, PASSED, case, get, head, unhinted, with};
use crate::check::Check::{
    Asked, Body, Broken, Detail, Field, Interim, Lacks, NeverWhole, Status, Stays, Untouched, UploadLength,
};
use crate::decisions::{CREDENTIAL, EARLY_ANSWER, RETRIES, STREAMS, TIMEOUT_IS_504, TOO_LARGE};
use crate::routers::Settings;

const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const TIMED_OUT: &str = "Timed out waiting for the backend sandbox: alpha";

pub(super) fn cases() -> Vec<Case> {
    [unreachable(), broken(), slow(), large(), callers()].concat()
}

fn unreachable() -> Vec<Case> {
    vec![
        case("a refused connection is 502", get("/page"))
            .app(App::Refuses)
            .refused(502, UNREACHABLE)
            .expect([Stays]),
        case(
            "a refused connection is 502 for an upload",
            head("POST /up", "Content-Length: 4\r\n") + "body",
        )
        .app(App::Refuses)
        .refused(502, UNREACHABLE),
        case("a refused connection without retries is 502", get("/page"))
            .with(Settings::open().flag("--upstream-max-retries=0"))
            .app(App::Refuses)
            .refused(502, UNREACHABLE),
        case("a name that doesn't resolve is 502", unhinted("")).refused(502, UNREACHABLE),
        case(
            "the text names the sandbox that was asked for",
            unhinted("").replace("alpha", "nobody-7"),
        )
        .refused(502, "Could not connect to the backend sandbox: nobody-7"),
        case("an app that listens late is found by retries", get("/page"))
            .with(
                Settings::open()
                    .flag("--upstream-max-retries=100")
                    .flag("--upstream-retry-max-delay=50ms"),
            )
            .app(App::Late)
            .passes(),
        case(
            "an upload to an app that listens late arrives once",
            head("POST /up", "Content-Length: 4\r\n") + "body",
        )
        .with(
            Settings::open()
                .flag("--upstream-max-retries=100")
                .flag("--upstream-retry-max-delay=50ms"),
        )
        .app(App::Late)
        .passes()
        .differs(&RETRIES, [Status(502), Detail(UNREACHABLE), NeverWhole]),
    ]
}

fn broken() -> Vec<Case> {
    let once = |name: &str, request: String, app: App| {
        case(name, request)
            .app(app)
            .expect([Status(502), Detail(UNREACHABLE), Asked(1)])
    };
    let upload = || head("POST /up", "Content-Length: 4\r\n") + "body";
    vec![
        once(
            "a connection that breaks before a head is 502 and nothing is sent again",
            get("/page"),
            App::Closes(String::new()),
        ),
        once(
            "an upload that breaks before a head is 502 and not sent again",
            upload(),
            App::Closes(String::new()),
        ),
        once(
            "a connection that breaks inside a head is 502",
            get("/page"),
            App::Closes("HTTP/1.1 200 OK\r\nX-A".into()),
        ),
        once(
            "a connection that breaks behind an informational head is 502",
            get("/page"),
            App::Closes("HTTP/1.1 103 Early Hints\r\n\r\n".into()),
        ),
        case(
            "an upload that the app breaks off is 502",
            head("PUT /up", "Content-Length: 1000000\r\n") + &"b".repeat(1_000_000),
        )
        .app(App::Drops)
        .expect([Status(502), Detail(UNREACHABLE), NeverWhole]),
    ]
}

fn slow() -> Vec<Case> {
    let late = |name: &str, app: App| {
        case(format!("{name} in time is 504"), get("/page"))
            .with(Settings::impatient())
            .app(app)
            .expect([Status(504), Detail(TIMED_OUT)])
            .differs(&TIMEOUT_IS_504, [Status(502), Detail(UNREACHABLE)])
    };
    let started = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    vec![
        late("no answer", App::Hangs).expect([Asked(1)]),
        late("no whole head", App::Answers("HTTP/1.1 200 OK\r\nX-A: ".into())).expect([Asked(1)]),
        late(
            "no final answer",
            App::Answers("HTTP/1.1 103 Early Hints\r\n\r\n".into()),
        )
        .expect([Asked(1)]),
        late("no connection", App::Unheard).expect([Untouched]),
        case("no head within --response-header-timeout is 504", get("/page"))
            .with(Settings::open().flag("--response-header-timeout=1s"))
            .app(App::Hangs)
            .expect([Status(504), Detail(TIMED_OUT), Asked(1)])
            .differs(&TIMEOUT_IS_504, [Status(502), Detail(UNREACHABLE), Asked(1)]),
        case("a stream that keeps moving is not cut", get("/page"))
            .with(Settings::open().flag("--proxy-timeout=3s"))
            .app(App::Paced)
            .expect([Status(200), Body("xxxxxxxxxxxx")])
            .differs(&STREAMS, [Status(200), Broken]),
        case("an answer that falls silent is cut", get("/page"))
            .with(Settings::impatient())
            .answer(started)
            .expect([Status(200), Broken]),
        case(
            "an answer that came before the body is the answer",
            head("PUT /up", "Content-Length: 1000000\r\n"),
        )
        .app(App::AnswersHeads(
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".into(),
        ))
        .expect([Status(403), Body("no"), NeverWhole])
        .differs(&EARLY_ANSWER, [Status(0), NeverWhole]),
    ]
}

fn large() -> Vec<Case> {
    let limited = || Settings::open().flag("--max-request-body-bytes=1000");
    let sized = |length: usize| head("POST /up", &format!("Content-Length: {length}\r\n")) + &"b".repeat(length);
    let chunked = |length: usize| {
        let piece = "b".repeat(100);
        let chunks = format!("64\r\n{piece}\r\n").repeat(length / 100);
        head("POST /up", "Transfer-Encoding: chunked\r\n") + &chunks + "0\r\n\r\n"
    };
    let over = |name: &str, request: String| {
        case(name, request)
            .with(limited())
            .expect([Status(413), Detail("Request body is too large."), NeverWhole])
            .differs(&TOO_LARGE, [Status(502), Detail(UNREACHABLE), NeverWhole])
    };
    let asking = head("POST /up", "Content-Length: 1001\r\nExpect: 100-continue\r\n");
    vec![
        case("a body at the limit passes", sized(1000))
            .with(limited())
            .passes()
            .expect([UploadLength(1000)]),
        case("a chunked body at the limit passes", chunked(1000))
            .with(limited())
            .passes()
            .expect([UploadLength(1000)]),
        over("a body over the limit is 413", sized(1001)),
        over("a chunked body over the limit is 413", chunked(1100)),
        over("a body far over the limit is 413", sized(500_000)),
        case("who asks before a body over the limit is told at once", asking)
            .with(limited())
            .refused(413, "Request body is too large.")
            .expect([Interim(&[])])
            .differs(&TOO_LARGE, [Status(0), NeverWhole]),
        case("0 is no limit", sized(10_000))
            .with(Settings::open().flag("--max-request-body-bytes=0"))
            .passes()
            .expect([UploadLength(10_000)]),
    ]
}

fn callers() -> Vec<Case> {
    let missing = "Missing or invalid Authorization header.";
    let refused = |name: &str, fields: &str, text| {
        case(format!("{name} is 401"), with(fields))
            .with(Settings::token())
            .refused(401, text)
            .expect([Field("www-authenticate", &["Bearer"])])
            .passes_there(&CREDENTIAL)
    };
    let admitted = |name: &str, fields: &str| {
        case(name, with(fields))
            .with(Settings::token())
            .passes()
            .expect([Lacks("correct-horse"), Lacks("authorization")])
    };
    vec![
        refused("no credential", "", missing),
        refused("an empty credential", "Authorization:\r\n", missing),
        refused("a scheme without a token", "Authorization: Bearer\r\n", missing),
        refused("a token without a scheme", "Authorization: correct-horse\r\n", missing),
        refused("another scheme", "Authorization: Basic correct-horse\r\n", missing),
        refused("a wrong token", "Authorization: Bearer wrong\r\n", "Invalid token."),
        refused(
            "a token with more behind it",
            "Authorization: Bearer correct-horsex\r\n",
            "Invalid token.",
        ),
        refused(
            "a token in another case",
            "Authorization: Bearer CORRECT-HORSE\r\n",
            "Invalid token.",
        ),
        refused(
            "a proxy's credential",
            "Proxy-Authorization: Bearer correct-horse\r\n",
            missing,
        ),
        refused(
            "a credential in the query",
            "X-A: ?access_token=correct-horse\r\n",
            missing,
        ),
        admitted(
            "the token lets in, and stays behind",
            "Authorization: Bearer correct-horse\r\n",
        ),
        admitted(
            "the scheme may be spelled in any case",
            "Authorization: bEARER correct-horse\r\n",
        ),
        case(
            "allow-all lets everybody in, and drops their credentials",
            with("Authorization: Bearer whatever\r\n"),
        )
        .expect(PASSED)
        .expect([Lacks("whatever")]),
        case("health needs no credential", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .with(Settings::token())
            .expect([Status(200), Body(r#"{"status":"ok"}"#)]),
    ]
}
