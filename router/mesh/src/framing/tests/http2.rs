use super::*;
use crate::framing::refusal;
use crate::headers::requested_upgrade;

fn request(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::builder().version(Version::HTTP_2).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn judged(uri: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    judge_http2(request(uri, headers), &Limits::default())
}

fn refused(uri: &str, headers: &[(&'static str, &str)]) -> Option<Violation> {
    refusal(&judged(uri, headers))
}

#[test]
fn a_request_gets_the_form_that_it_has_in_http_1_1() {
    let found = judged(
        "https://a.example/b%2Fc?d",
        &[("cookie", "a=1"), ("cookie", "b=2"), ("x", "y")],
    );
    assert_eq!(found.uri(), "/b%2Fc?d");
    assert_eq!(found.headers()[HOST], "a.example");
    let cookies: Vec<_> = found.headers().get_all(COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
    assert_eq!(found.version(), Version::HTTP_2);
    assert!(requested_upgrade(&found).is_none());
}

#[test]
fn authority_and_host_are_one_or_the_request_is_refused() {
    assert_eq!(refused("/", &[]), Some(Violation::HostMissing));
    assert_eq!(refused("/", &[("host", "a")]), None);
    assert_eq!(refused("http://a/", &[("host", "A")]), None);
    assert_eq!(refused("http://a/", &[("host", "b")]), Some(Violation::Authority));
    assert_eq!(
        refused("http://a/", &[("host", "a"), ("host", "a")]),
        Some(Violation::HostRepeated)
    );
    assert_eq!(refused("http://u:p@a/", &[]), Some(Violation::Authority));
}

#[test]
fn what_http_1_1_would_read_in_another_way_is_refused() {
    let length = ("content-length", "0");
    assert_eq!(
        refused("http://a/", &[length, length]),
        Some(Violation::ContentLengthRepeated)
    );
    assert_eq!(refused("http://a/", &[("x", " y")]), Some(Violation::FieldValue));
    assert_eq!(refused("http://a/", &[("x", "y\t")]), Some(Violation::FieldValue));
    assert_eq!(refused("*", &[("host", "a")]), Some(Violation::Target));
    let mut reserved = request("http://a/0", &[]);
    *reserved.method_mut() = Method::from_bytes(b"SANDGATE-REFUSED").unwrap();
    let found = refusal(&judge_http2(reserved, &Limits::default()));
    assert_eq!(found, Some(Violation::ReservedMethod));
}

#[test]
fn caps_are_those_of_http_1_1() {
    let limits = Limits {
        head_bytes: 200,
        headers: 3,
        target_bytes: 20,
        ..Limits::default()
    };
    let found = |uri: &str, headers: &[(&'static str, &str)]| refusal(&judge_http2(request(uri, headers), &limits));
    assert_eq!(found("http://a/", &[("x", "1"), ("x", "2")]), None);
    assert_eq!(
        found("http://a/", &[("x", "1"), ("x", "2"), ("x", "3")]),
        Some(Violation::TooManyHeaders)
    );
    assert_eq!(found("http://a/0123456789012345678", &[]), None);
    assert_eq!(
        found("http://a/01234567890123456789", &[]),
        Some(Violation::TargetTooLong)
    );
    // GET / HTTP/1.1, host: a and x: in lines of 16, 9 and 5 bytes, and the empty line.
    let rest = 200 - 16 - 9 - 5 - 2;
    assert_eq!(found("http://a/", &[("x", &"y".repeat(rest))]), None);
    assert_eq!(
        found("http://a/", &[("x", &"y".repeat(rest + 1))]),
        Some(Violation::HeadTooLarge)
    );
}

#[test]
fn an_extended_connect_for_a_websocket_becomes_its_handshake_and_no_other_one_does() {
    let connect = |protocol: Option<&'static str>| {
        let mut request = request(
            "https://a/socket",
            &[("sec-websocket-version", "13"), ("sec-websocket-key", "x")],
        );
        *request.method_mut() = Method::CONNECT;
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        judge_http2(request, &Limits::default())
    };
    let handshake = connect(Some("websocket"));
    assert_eq!(handshake.method(), Method::GET);
    assert!(requested_upgrade(&handshake).is_some());
    assert_ne!(handshake.headers()[SEC_WEBSOCKET_KEY], "x");
    for protocol in [None, Some("connect-udp"), Some("WebSocket")] {
        let found = connect(protocol);
        assert_eq!(found.method(), Method::CONNECT, "{protocol:?}");
        assert!(requested_upgrade(&found).is_none());
    }
}

#[test]
fn a_switch_of_protocols_is_told_as_success_without_what_only_http_1_1_says() {
    let mut switched = Response::builder()
        .status(101)
        .header("upgrade", "websocket")
        .header("connection", "upgrade");
    switched = switched
        .header("sec-websocket-accept", "x")
        .header("sec-websocket-protocol", "chat");
    let mut switched = switched.body(()).unwrap();
    answer_extended_connect(&mut switched);
    assert_eq!(switched.status(), 200);
    let names: Vec<_> = switched.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["sec-websocket-protocol"]);
    // Without a switch there is no WebSocket, whatever else succeeded.
    for (status, told) in [(200, 502), (204, 502), (404, 404), (302, 302)] {
        let mut answer = Response::builder().status(status).body(()).unwrap();
        answer_extended_connect(&mut answer);
        assert_eq!(answer.status(), told);
    }
}
