//! Section 3, first part: what of a request's head and body the app gets.

use crate::case::{App, Case, Talk, case, get, head, hello, with};
use crate::check::Check::{
    Asked, Body, Broken, Field, Got, Holds, Interim, Lacks, Line, Made, NeverWhole, Status, Stays, Trailers, Untouched,
    Upload, UploadLength,
};
use crate::decisions::{
    DROPPED, EXPECT, OTHER_FORWARDED, PATHS, REDIRECTS, REQUEST_ID, REQUEST_TRAILERS, TRACEPARENTS, TRUSTED,
    UNDERSCORES,
};
use crate::routers::Settings;

pub(super) fn cases() -> Vec<Case> {
    [paths(), dropped(), connection(), forwarded(), ids(), bodies(), ends()].concat()
}

fn paths() -> Vec<Case> {
    let exact = |target: &str| {
        let line: &'static str = format!("GET {target}").leak();
        case(format!("{target} arrives byte for byte"), get(target))
            .passes()
            .expect([Line(line)])
    };
    let decoded = |target: &str, theirs: &'static str| exact(target).differs(&PATHS, [Status(200), Line(theirs)]);
    let same = [
        "/page?a=%2F&b=x+y&c=%zz",
        "/page?a;b",
        "/page??",
        "/page?x=/../y",
        "/a;b=c",
        "/a:b@c",
        "/a+b",
        "/a%20b",
        "/a%25b",
        "/~user",
        "/a$b,c",
        "/%E4%B8%AD",
    ];
    let mut cases: Vec<Case> = same.map(exact).into();
    cases.extend([
        decoded("/a*b!'()", "GET /a%2Ab%21%27%28%29"),
        decoded("/a%2Fb", "GET /a/b"),
        decoded("/a%2fb", "GET /a/b"),
        decoded("/%2E%2E/a", "GET /../a"),
        decoded("/a%2E", "GET /a."),
        decoded("/%61", "GET /a"),
        decoded("/%e4", "GET /%E4"),
        decoded("/a%3Bb", "GET /a;b"),
        decoded("/a|b", "GET /a%7Cb"),
        decoded("/a\"b", "GET /a%22b"),
        decoded("/{a}", "GET /%7Ba%7D"),
        decoded("/page?", "GET /page"),
        case(
            "a target in absolute form arrives in origin form",
            get("http://elsewhere.example/page?a=1"),
        )
        .passes()
        .expect([Line("GET /page?a=1")]),
        case(
            "a bare authority in absolute form is the root",
            get("http://elsewhere.example"),
        )
        .passes()
        .expect([Line("GET /")])
        .differs(&REDIRECTS, [Status(307), Untouched]),
    ]);
    cases
}

fn dropped() -> Vec<Case> {
    let gone = |fields: &str, text: &'static str| {
        case(
            format!("the app gets no {}", fields.split(':').next().unwrap()),
            with(fields),
        )
        .expect([Status(200), Asked(1), Lacks(text)])
    };
    let passes_there = |case: Case, text: &'static str| case.differs(&DROPPED, [Status(200), Asked(1), Holds(text)]);
    vec![
        gone("Keep-Alive: timeout=5\r\n", "keep-alive"),
        gone("Proxy-Authorization: Basic eA==\r\n", "proxy-authorization"),
        gone("Proxy-Connection: keep-alive\r\n", "proxy-connection"),
        gone("Proxy-Authenticate: Basic\r\n", "proxy-authenticate"),
        gone("TE: gzip\r\n", "te: gzip"),
        gone("Upgrade: websocket\r\n", "upgrade"),
        gone("Authorization: Bearer secret\r\n", "secret"),
        passes_there(gone("HTTP2-Settings: AAMAAABkAAQAAP__\r\n", "http2-settings"), "Http2-Settings: "),
        passes_there(gone("X-Sandbox-Future: 1\r\n", "x-sandbox-"), "X-Sandbox-Future: 1"),
        passes_there(gone("X-Sandgate-Caller: v1;static;root\r\n", "x-sandgate"), "X-Sandgate-Caller: "),
        passes_there(gone("X-Sandgate-Future: 1\r\n", "x-sandgate"), "X-Sandgate-Future: 1"),
        case("the app gets no X_Sandbox_ID", with("X_Sandbox_ID: beta\r\n"))
            .expect([Status(200), Asked(1), Lacks("x_sandbox_id")])
            .differs(&UNDERSCORES, [Status(200), Asked(1), Holds("X_sandbox_id: beta")]),
        case("the app gets none of the routing headers", with("X-Sandbox-UID: u\r\nX-Sandbox-Timeout: 30\r\n"))
            .expect([Status(200), Asked(1), Lacks("x-sandbox-")])
            .differs(&DROPPED, [Status(200), Asked(1), Holds("X-Sandbox-Id: alpha"), Holds("X-Sandbox-Port: ")]),
        case("a header that only begins like ours passes", with("X-Sandboxed: kept\r\n"))
            .expect([Status(200), Got("x-sandboxed", &["kept"])]),
        case("cookies pass", with("Cookie: a=1; b=2\r\n")).expect([Status(200), Got("cookie", &["a=1; b=2"])]),
        case("Host at the app is its own", get("/page")).expect([Status(200), Got("host", &["127.0.0.1:@PORT@"])]),
        case("Origin passes without an upgrade", with("Origin: https://a.example\r\n"))
            .expect([Status(200), Got("origin", &["https://a.example"])]),
        case("Origin passes beside an Upgrade that Connection doesn't name", with("Origin: https://a.example\r\nUpgrade: x\r\n"))
            .expect([Status(200), Got("origin", &["https://a.example"])]),
        case("repeated headers stay separate, in order", with("X-Many: 1\r\nX-Many: 2, 3\r\nx-many: 4\r\n"))
            .expect([Status(200), Got("x-many", &["1", "2, 3", "4"])]),
        case("several Set-Cookie stay separate", get("/page"))
            .answer("HTTP/1.1 200 OK\r\nSet-Cookie: a=1, b\r\nSet-Cookie: c=2\r\nContent-Length: 0\r\n\r\n")
            .expect([Status(200), Field("set-cookie", &["a=1, b", "c=2"])]),
        case("hop-by-hop headers of an answer stay behind", get("/page"))
            .answer("HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n")
            .expect([Status(200), Field("x-hop", &[]), Field("keep-alive", &[]), Stays]),
    ]
}

fn connection() -> Vec<Case> {
    let named = |option: &str| with(&format!("Connection: {option}\r\nX-Hop: 1\r\n"));
    let kept = |option: &'static str, check| {
        case(format!("naming {option} in Connection changes nothing"), named(option)).expect([
            Status(200),
            Asked(1),
            check,
        ])
    };
    vec![
        case("what Connection names stays behind", named("X-Hop")).expect([Status(200), Asked(1), Lacks("x-hop")]),
        kept("Host", Got("host", &["127.0.0.1:@PORT@"])),
        kept("X-Forwarded-For", Got("x-forwarded-for", &["127.0.0.1"])),
        kept("X-Forwarded-Host", Got("x-forwarded-host", &["sandbox.example"])),
        kept("X-Forwarded-Proto", Got("x-forwarded-proto", &["http"])),
        case(
            "naming Authorization in Connection lets nobody in",
            named("Authorization"),
        )
        .with(Settings::token())
        .refused(401, "Missing or invalid Authorization header.")
        .passes_there(&crate::decisions::CREDENTIAL),
        case(
            "naming Content-Length in Connection changes no framing",
            head("POST /up", "Connection: Content-Length\r\nContent-Length: 4\r\n") + "body",
        )
        .expect([Status(200), Asked(1), Upload("body"), Got("content-length", &["4"])]),
        case(
            "naming Transfer-Encoding in Connection changes no framing",
            head(
                "POST /up",
                "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
            ) + "4\r\nbody\r\n0\r\n\r\n",
        )
        .expect([Status(200), Asked(1), Upload("body")]),
    ]
}

fn forwarded() -> Vec<Case> {
    let said = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Host: public.example\r\nX-Forwarded-Proto: https\r\n";
    let own = [
        Got("x-forwarded-for", &["127.0.0.1"]),
        Got("x-forwarded-host", &["sandbox.example"]),
        Got("x-forwarded-proto", &["http"]),
    ];
    let kept = [
        Got("x-forwarded-for", &["203.0.113.9, 127.0.0.1"]),
        Got("x-forwarded-host", &["public.example"]),
        Got("x-forwarded-proto", &["https"]),
    ];
    let trusting = |networks| Settings::open().variable("TRUSTED_PROXY_CIDRS", networks);
    let others = ["X-Real-IP: 203.0.113.9\r\n", "X-Forwarded-Port: 203\r\n"];
    let others = others.map(|field| {
        let name: &'static str = field.split(':').next().unwrap().to_ascii_lowercase().leak();
        case(format!("what a client says in {name} doesn't count"), with(field))
            .expect([Status(200), Got(name, &[])])
            .differs(&OTHER_FORWARDED, [Status(200), Holds("203")])
    });
    let mut cases = vec![
        case("a request is attributed", get("/page"))
            .expect([Status(200)])
            .expect(own.clone()),
        case("what a client says of those before it is overwritten", with(said))
            .expect([Status(200)])
            .expect(own.clone()),
        case("what somebody else's proxy says is overwritten", with(said))
            .with(trusting("10.0.0.0/8,::1/128"))
            .expect([Status(200)])
            .expect(own.clone()),
        case(
            "what a client says in forwarded doesn't count",
            with("Forwarded: for=203.0.113.9\r\n"),
        )
        .expect([Status(200), Got("forwarded", &[])]),
        case("a trusted proxy's request without attribution gets one", get("/page"))
            .with(trusting("127.0.0.0/8"))
            .expect([Status(200)])
            .expect(own.clone()),
    ];
    for networks in ["127.0.0.0/8", "10.0.0.0/8, 127.0.0.1", "nonsense,127.0.0.1/32,"] {
        cases.push(
            case(format!("what a proxy in {networks} says is kept"), with(said))
                .with(trusting(networks))
                .expect([Status(200)])
                .expect(kept.clone())
                .differs(&TRUSTED, [Status(200)].into_iter().chain(own.clone())),
        );
    }
    cases.extend(others);
    cases
}

const ID: &str = "x-request-id";

fn ids() -> Vec<Case> {
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let kept = |id: &'static str| {
        case(
            format!("the request ID {id} is kept"),
            with(&format!("X-Request-ID: {id}\r\n")),
        )
        .expect([Status(200), Got(ID, Box::leak(Box::new([id])))])
    };
    let replaced = |name: &str, fields: &str, theirs| {
        case(format!("a request ID that {name} is replaced"), with(fields))
            .expect([Status(200), Made(ID)])
            .differs(&REQUEST_ID, [Status(200), theirs])
    };
    let long = format!("X-Request-ID: {}\r\n", "i".repeat(129));
    vec![
        kept("a"),
        kept("0d8f3c7a-52b1-4c7e-9f60-1f2e3d4c5b6a"),
        kept("Root=1-67891233:a_b.c+d/e="),
        case("a request without an ID gets one", get("/page"))
            .expect([Status(200), Made(ID)])
            .differs(&REQUEST_ID, [Status(200), Got(ID, &[])]),
        replaced("has spaces", "X-Request-ID: a b\r\n", Got(ID, &["a b"])),
        replaced("has quotes", "X-Request-ID: \"a\"\r\n", Got(ID, &["\"a\""])),
        replaced("is longer than 128 bytes", &long, Lacks("x-request-id: a")),
        replaced(
            "occurs twice",
            "X-Request-ID: a\r\nX-Request-ID: b\r\n",
            Got(ID, &["a", "b"]),
        ),
        case(
            "a traceparent passes",
            with(&format!("traceparent: {trace}\r\ntracestate: a=1,b=2\r\n")),
        )
        .expect([
            Status(200),
            Got(
                "traceparent",
                &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
            ),
            Got("tracestate", &["a=1,b=2"]),
        ]),
        case(
            "two traceparents count as none",
            with(&format!("traceparent: {trace}\r\ntraceparent: {trace}\r\n")),
        )
        .expect([Status(200), Got("traceparent", &[])])
        .differs(&TRACEPARENTS, [Status(200), Holds("0af7651916cd43dd")]),
    ]
}

fn bodies() -> Vec<Case> {
    let chunked = |more: &str, body: &str| head("POST /up", &format!("Transfer-Encoding: chunked\r\n{more}")) + body;
    let expecting = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    vec![
        case("a sized body arrives", head("POST /up", "Content-Length: 4\r\n") + "body")
            .passes()
            .expect([Upload("body"), Got("content-length", &["4"]), Stays]),
        case("a chunked body arrives", chunked("", "2\r\nbo\r\n2;x=y\r\ndy\r\n0\r\n\r\n")).passes().expect([Upload("body"), Stays]),
        case("an empty chunked body arrives", chunked("", "0\r\n\r\n")).passes().expect([Upload("")]),
        case("a megabyte arrives", head("PUT /up", "Content-Length: 1000000\r\n") + &"b".repeat(1_000_000))
            .passes()
            .expect([UploadLength(1_000_000)]),
        case("a body of GET arrives", head("GET /page", "Content-Length: 4\r\n") + "body").passes().expect([Upload("body")]),
        case("trailers of a request pass", chunked("Trailer: X-Sum\r\n", "4\r\nbody\r\n0\r\nX-Sum: 7\r\n\r\n"))
            .passes()
            .expect([Holds("sum: 7\r\n")])
            .differs(&REQUEST_TRAILERS, [Status(200), Upload("body"), Lacks("sum: 7")]),
        case("TE: trailers passes, so that the app may send some", with("TE: trailers\r\nConnection: TE\r\n"))
            .expect([Status(200), Got("te", &["trailers"])]),
        case("a chunked answer passes", get("/page"))
            .answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")
            .passes()
            .expect([Stays]),
        case("trailers of an answer pass", with("TE: trailers\r\nConnection: TE\r\n"))
            .answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")
            .expect([Status(200), Body("ok"), Trailers("x-sum: 7\r\n")]),
        case("an answer that ends with its connection passes whole", get("/page"))
            .app(App::Closes("HTTP/1.1 200 OK\r\n\r\nhello".into()))
            .passes(),
        case("an answer to HEAD keeps its length", head("HEAD /page", ""))
            .answer("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")
            .expect([Status(200), Body(""), Field("content-length", &["1234"]), Stays]),
        case("a client that expects 100 gets it, and its body arrives", head("POST /up", expecting))
            .then([Talk::Await("HTTP/1.1 100 Continue\r\n\r\n"), Talk::Send("body".into())])
            .passes()
            .expect([Upload("body"), Interim(&[100])]),
        case("the app gets no Expect", head("POST /up", expecting) + "body")
            .expect([Status(200), Upload("body"), Got("expect", &[])])
            .differs(&EXPECT, [Status(200), Upload("body"), Got("expect", &["100-continue"])]),
        case("early hints are no answer", get("/page"))
            .answer(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}", hello()))
            .passes(),
        case("a second request goes on a fresh connection where the app closed the first", get("/page"))
            .app(App::Closes(hello()))
            .then([Talk::Await("hello"), Talk::Send(get("/page"))])
            .second()
            .expect([Status(200), Body("hello"), Asked(2)]),
    ]
}

/// Bodies that end early.
fn ends() -> Vec<Case> {
    let cut = |name: &str, answer: &str| {
        case(format!("{name} is not presented as complete"), get("/page"))
            .app(App::Closes(answer.into()))
            .expect([Status(200), Broken, Asked(1)])
    };
    let gone = |name: &str, request: String| {
        case(format!("{name} is never whole at the app"), request)
            .then([Talk::Stop])
            .expect([NeverWhole])
    };
    vec![
        cut(
            "a sized answer that ends early",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        ),
        cut(
            "a chunked answer that ends early",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ),
        cut(
            "a chunk that ends early",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
        ),
        cut(
            "a chunk of no size",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        ),
        gone(
            "a sized upload that ends early",
            head("POST /up", "Content-Length: 10\r\n") + "body",
        ),
        gone(
            "a chunked upload that ends early",
            head("POST /up", "Transfer-Encoding: chunked\r\n") + "4\r\nbody\r\n",
        ),
        gone(
            "a head that ends early",
            "GET /page HTTP/1.1\r\nHost: a\r\nX-Sandbox-ID: alpha\r\n".into(),
        ),
    ]
}
