//! Section 7: metrics and the access log.

use crate::case::{App, Case, Talk, case, get, head, unhinted, with};
use crate::check::Check::{Counted, Logged, Names, Status, Uncounted, Unlogged, Unsaid};
use crate::decisions::{LABELS, LOG_FIELDS};
use crate::routers::Settings;

/// A router that knows the sandbox's namespace for one, so that it has a label.
fn counting() -> Settings {
    Settings::open().ours("--sandbox-endpoint=default/alpha=127.0.0.1")
}

/// One of a log of its own: theirs leaves lines out where there are many.
fn logging(number: &'static str) -> Settings {
    counting().flag("--shutdown-timeout").flag(number)
}

pub(super) fn cases() -> Vec<Case> {
    [metrics(), failures(), labels(), lines(), secrets()].concat()
}

/// A case after which the metrics have this line.
fn counted(name: &str, request: String, status: u16, line: &'static str) -> Case {
    case(name, request)
        .with(counting())
        .expect([Status(status), Counted(line)])
}

fn metrics() -> Vec<Case> {
    vec![
        counted(
            "requests are counted by method, status and namespace",
            get("/page"),
            200,
            r#"sandbox_router_requests_total{code="200",method="GET",sandbox_namespace="default"} "#,
        ),
        counted(
            "an upload is counted by its method",
            head("POST /up", "Content-Length: 4\r\n") + "body",
            200,
            r#"sandbox_router_requests_total{code="200",method="POST",sandbox_namespace="default"} "#,
        ),
        counted(
            "durations are counted in seconds",
            get("/page"),
            200,
            r#"sandbox_router_request_duration_seconds_bucket{code="200",method="GET",sandbox_namespace="default",le="#,
        ),
        counted(
            "durations have a sum",
            get("/page"),
            200,
            r#"sandbox_router_request_duration_seconds_sum{code="200",method="GET",sandbox_namespace="default"} "#,
        ),
        counted(
            "requests under way are a gauge",
            get("/page"),
            200,
            "sandbox_router_inflight_requests ",
        ),
        counted(
            "the version is a metric",
            get("/page"),
            200,
            "sandbox_router_build_info{",
        ),
        counted(
            "an app's own error is counted under its status",
            get("/page"),
            503,
            r#"sandbox_router_requests_total{code="503",method="GET",sandbox_namespace="default"} "#,
        )
        .answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
    ]
}

/// What is counted of requests that nobody answered, and of callers.
fn failures() -> Vec<Case> {
    vec![
        counted(
            "a failed connection is an error of dialing",
            get("/page"),
            502,
            r#"sandbox_router_upstream_errors_total{reason="dial",sandbox_namespace="default"} "#,
        )
        .app(App::Refuses),
        counted(
            "further attempts are counted",
            get("/page"),
            502,
            r#"sandbox_router_upstream_retries_total{sandbox_namespace="default"} "#,
        )
        .app(App::Refuses),
        counted(
            "a connection that breaks is an error of its end",
            get("/page"),
            502,
            r#"sandbox_router_upstream_errors_total{reason="eof",sandbox_namespace="default"} "#,
        )
        // Of an answer: without a byte of one, theirs counts this as something else now and then.
        .app(App::Closes("HTTP/1.1 200 OK\r\nX-A: b\r\n".into())),
        case("no answer in time is an error of time", get("/page"))
            .with(counting().flag("--proxy-timeout=900ms"))
            .app(App::Hangs)
            .expect([Counted(
                r#"sandbox_router_upstream_errors_total{reason="timeout",sandbox_namespace="default"} "#,
            )]),
        counted(
            "who was let in is counted",
            get("/page"),
            200,
            r#"sandbox_router_authz_decisions_total{decision="allow",sandbox_namespace="default"} "#,
        ),
        counted(
            "who was let in is counted where nobody answers, too",
            get("/page"),
            502,
            r#"sandbox_router_authz_decisions_total{decision="allow",sandbox_namespace="default"} "#,
        )
        .app(App::Refuses),
        case("who was refused is counted", get("/page"))
            .with(Settings::token())
            .expect([
                Status(401),
                Counted(r#"sandbox_router_authz_decisions_total{decision="deny",sandbox_namespace="other"} "#),
            ])
            .differs(&crate::decisions::CREDENTIAL, [Status(200)]),
        counted(
            "the version is labelled with how it was built",
            get("/page"),
            200,
            r"sandbox_router_build_info{build_date=",
        ),
    ]
}

fn labels() -> Vec<Case> {
    let chosen = |name: &str, request: String, ours, theirs| {
        case(name, request)
            .with(counting())
            .expect([Counted(ours)])
            .differs(&LABELS, [Counted(theirs)])
    };
    vec![
        chosen(
            "a method that a caller invents is no label",
            head("INVENTED /page", ""),
            r#"sandbox_router_requests_total{code="200",method="other",sandbox_namespace="default"} "#,
            r#"sandbox_router_requests_total{code="200",method="INVENTED",sandbox_namespace="default"} "#,
        )
        .expect([Uncounted(
            r#"sandbox_router_requests_total{code="200",method="INVENTED""#,
        )]),
        chosen(
            "a namespace that a caller invents is no label",
            unhinted("X-Sandbox-Namespace: invented\r\n"),
            r#"sandbox_router_requests_total{code="502",method="GET",sandbox_namespace="other"} "#,
            r#"sandbox_router_requests_total{code="502",method="GET",sandbox_namespace="invented"} "#,
        )
        .expect([Unsaid("\"invented\"} ")]),
        chosen(
            "a namespace in which nobody has proven itself is no label",
            get("/page"),
            r#"sandbox_router_requests_total{code="200",method="GET",sandbox_namespace="other"} "#,
            r#"sandbox_router_requests_total{code="200",method="GET",sandbox_namespace="default"} "#,
        )
        .with(Settings::open().flag("--shutdown-timeout=39s")),
        chosen(
            "a request without a namespace counts as other",
            "GET /page HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            r#"sandbox_router_requests_total{code="400",method="GET",sandbox_namespace="other"} "#,
            r#"sandbox_router_requests_total{code="400",method="GET",sandbox_namespace="-"} "#,
        ),
    ]
}

fn lines() -> Vec<Case> {
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let fields = format!(
        "User-Agent: curl/8\r\nX-Sandbox-Namespace: default\r\nX-Request-ID: id-1\r\nContent-Length: 4\r\n{trace}"
    );
    vec![
        case(
            "a request has one line of JSON",
            head("POST /log-1?q=1", &fields) + "body",
        )
        .with(logging("31s"))
        .expect([
            Logged("method", r#""POST""#),
            Logged("path", r#""/log-1""#),
            Logged("status", "200"),
            Names("duration_ms"),
            Logged("client_ip", r#""127.0.0.1""#),
            Logged("sandbox_id", r#""alpha""#),
            Logged("sandbox_namespace", r#""default""#),
            Logged("bytes_out", "5"),
            Logged("user_agent", r#""curl/8""#),
        ]),
        case(
            "the line says what else is known",
            head("POST /log-2", &fields) + "body",
        )
        .with(logging("32s"))
        .expect([
            Logged("bytes_in", "4"),
            Logged("request_id", r#""id-1""#),
            Logged("caller", r#""anonymous""#),
            Logged("upstream", r#""127.0.0.1:@PORT@""#),
            Logged("trace_id", r#""0af7651916cd43dd8448eb211c80319c""#),
            Logged("span_id", r#""b7ad6b7169203331""#),
        ])
        .differs(&LOG_FIELDS, [Logged("bytes_out", "5")]),
        case("the line of a default namespace names it", get("/log-3"))
            .with(logging("33s"))
            .expect([Logged("sandbox_namespace", r#""default""#)])
            .differs(&LOG_FIELDS, [Logged("sandbox_namespace", r#""""#)]),
        case("a path is logged as it was sent", get("/log%2D4"))
            .with(logging("34s"))
            .expect([Logged("path", r#""/log%2D4""#)])
            .differs(&crate::decisions::PATHS, [Unlogged]),
        case(
            "an error has a line, too",
            unhinted("").replace("/page", "/log-5").replace("alpha", "nobody"),
        )
        .with(logging("35s"))
        .expect([Logged("status", "502"), Logged("sandbox_id", r#""nobody""#)]),
        case("a probe has none", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .with(logging("36s"))
            .expect([Status(200), Unlogged]),
        case("an app's /readyz has none, either", get("/readyz"))
            .with(logging("36s"))
            .expect([Status(200), Unlogged]),
        case("an app's /metrics has none, either", get("/metrics"))
            .with(logging("36s"))
            .expect([Status(200), Unlogged]),
        case("a path below those has one", get("/metrics/x"))
            .with(logging("36s"))
            .expect([Logged("path", r#""/metrics/x""#)]),
        case("--access-log=false writes none", get("/log-7"))
            .with(logging("37s").flag("--access-log=false"))
            .expect([Status(200), Unlogged]),
    ]
}

/// What nobody who reads logs or metrics must learn.
fn secrets() -> Vec<Case> {
    let unsaid = |name: &str, request: String, secret| {
        case(format!("neither log nor metrics hold {name}"), request)
            .with(logging("38s"))
            .expect([Unsaid(secret)])
    };
    vec![
        unsaid("a query", get("/page?secret-of-query=1"), "secret-of-query"),
        unsaid(
            "a token",
            with("Authorization: Bearer secret-of-token\r\n"),
            "secret-of-token",
        ),
        unsaid("a cookie", with("Cookie: secret-of-cookie\r\n"), "secret-of-cookie"),
        unsaid(
            "a query of an error",
            unhinted("").replace("/page", "/page?secret-of-error"),
            "secret-of-error",
        ),
        unsaid("a query of a second request", get("/page"), "secret-of-second")
            .then([Talk::Await("hello"), Talk::Send(get("/page?secret-of-second"))])
            .second(),
        case(
            "neither log nor metrics hold the router's token",
            with("Authorization: Bearer correct-horse\r\n"),
        )
        .with(Settings::token())
        .expect([Status(200), Unsaid("correct-horse")]),
        case(
            "neither log nor metrics hold a wrong token",
            with("Authorization: Bearer guessed\r\n"),
        )
        .with(Settings::token())
        .expect([Unsaid("guessed")]),
    ]
}
