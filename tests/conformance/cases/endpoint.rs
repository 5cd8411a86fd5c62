//! Section 1: health, errors, methods, no redirects.

use crate::case::{Case, Listener, PASSED, case, get, head};
use crate::check::Check::{Asked, Body, Detail, Field, Line, NeverWhole, Status, Stays, Untouched};
use crate::decisions::{EVERYTHING_ELSE, REDIRECTS};

/// A request that says nothing of a sandbox.
fn bare(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")
}

pub(super) fn cases() -> Vec<Case> {
    [health(), methods(), targets(), answers()].concat()
}

fn health() -> Vec<Case> {
    let ok = [Status(200), Body(r#"{"status":"ok"}"#), Untouched];
    let json = Field("content-type", &["application/json"]);
    let own = |name: &str, request: String| case(name, request).expect(ok.clone()).expect([json.clone()]);
    let headed = [Status(200), Body(""), Field("content-length", &["15"]), Untouched];
    // Upstream's answers every method there itself, and never redirects it.
    let apps = |line: &'static str| {
        case(format!("{line} is the app's"), head(line, ""))
            .passes()
            .expect([Line(line)])
    };
    let theirs = [Status(200), Body(r#"{"status":"ok"}"#), Untouched];
    vec![
        own("GET /healthz is the router's own", bare("GET /healthz")),
        own(
            "GET /healthz needs no routing headers to be right",
            head("GET /healthz", "X-Sandbox-ID: A\r\n"),
        ),
        own(
            "GET /healthz with a query is the router's own",
            bare("GET /healthz?full=1"),
        ),
        own(
            "GET /healthz in absolute form is the router's own",
            bare("GET http://router.example/healthz"),
        ),
        case("HEAD /healthz is the router's own", bare("HEAD /healthz")).expect(headed.clone()),
        own("GET /healthz on the probe port", bare("GET /healthz")).at(Listener::Health),
        case("HEAD /healthz on the probe port", bare("HEAD /healthz"))
            .expect(headed)
            .at(Listener::Health),
        case("GET /readyz on the probe port", bare("GET /readyz"))
            .at(Listener::Health)
            .expect([Status(200), Body("ok")]),
        apps("POST /healthz").differs(&EVERYTHING_ELSE, theirs.clone()),
        apps("PUT /healthz").differs(&EVERYTHING_ELSE, theirs.clone()),
        apps("OPTIONS /healthz").differs(&EVERYTHING_ELSE, theirs),
        apps("GET /healthz/"),
        apps("GET /Healthz"),
        apps("GET /readyz"),
        apps("GET /metrics"),
        case("POST /healthz without a sandbox is an error", bare("POST /healthz"))
            .refused(400, "X-Sandbox-ID header is required.")
            .differs(&EVERYTHING_ELSE, [Status(200), Body(r#"{"status":"ok"}"#)]),
        case("GET /metrics on its own port", bare("GET /metrics"))
            .at(Listener::Metrics)
            .expect([Status(200), Untouched]),
    ]
}

fn methods() -> Vec<Case> {
    let methods = "GET POST PUT PATCH DELETE OPTIONS TRACE PROPFIND M-SEARCH QUERY get";
    let mut cases: Vec<Case> = methods
        .split(' ')
        .map(|method| {
            let line: &'static str = format!("{method} /page?q=1").leak();
            case(format!("the method {method} arrives"), head(line, ""))
                .passes()
                .expect([Line(line)])
        })
        .collect();
    cases.push(
        case(
            "the method HEAD arrives, and its answer has no body",
            head("HEAD /page", ""),
        )
        .expect([Status(200), Body(""), Line("HEAD /page"), Asked(1), Stays]),
    );
    cases.push(
        case("OPTIONS * is the app's", head("OPTIONS *", ""))
            .passes()
            .expect([Line("OPTIONS *")])
            .differs(&EVERYTHING_ELSE, [Status(200), Body(""), Untouched]),
    );
    cases
}

/// Paths that servers like to tidy up.
fn targets() -> Vec<Case> {
    let paths = ["//page", "/a//b", "/a/../b", "/a/./b", "/./a", "/../a", "/a/.."];
    let untidy = paths.map(|path| {
        let line: &'static str = format!("GET {path}").leak();
        case(format!("{path} is no reason to redirect"), get(path))
            .passes()
            .expect([Line(line)])
            .differs(&REDIRECTS, [Status(307), Untouched])
    });
    untidy.into()
}

fn answers() -> Vec<Case> {
    let redirect = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n";
    let failure = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nX-App: 1\r\n\r\noops";
    let nothing = "HTTP/1.1 204 No Content\r\nX-App: 1\r\n\r\n";
    vec![
        case("an app's redirect passes", get("/page")).answer(redirect).expect([
            Status(302),
            Field("location", &["/elsewhere"]),
            Asked(1),
        ]),
        case("an app's 500 passes as it is", get("/page"))
            .answer(failure)
            .expect([Status(500), Body("oops"), Field("x-app", &["1"]), Asked(1)]),
        case("an app's 204 passes as it is", get("/page"))
            .answer(nothing)
            .expect([Status(204), Body(""), Field("x-app", &["1"]), Stays]),
        case("an app's 404 is not worded anew", get("/page"))
            .answer("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nnone")
            .expect([Status(404), Body("none"), Field("content-type", &["text/plain"])]),
        case("an error is JSON with a detail", bare("GET /page")).expect([
            Status(400),
            Detail("X-Sandbox-ID header is required."),
            Untouched,
            Stays,
        ]),
        case("an error's answer to HEAD has no body", bare("HEAD /page")).expect([
            Status(400),
            Body(""),
            Field("content-type", &["application/json"]),
            NeverWhole,
        ]),
        case("a connection serves several requests", get("/page"))
            .expect(PASSED)
            .expect([Stays]),
    ]
}
