use super::*;

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (
            name.parse::<HeaderName>().unwrap(),
            value.parse::<HeaderValue>().unwrap(),
        )
    };
    pairs.iter().map(pair).collect()
}

#[test]
fn hop_by_hop_headers_and_those_connection_names_stay_behind() {
    let mut headers = map(&[
        ("connection", "keep-alive, X-Secret"),
        ("connection", "x-other"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "x"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
        ("x-secret", "1"),
        ("x-other", "1"),
        ("accept", "*/*"),
    ]);
    cross_hop(&mut headers, None);
    assert_eq!(headers, map(&[("accept", "*/*")]));
}

#[test]
fn connection_cannot_name_away_what_frames_routes_or_attributes() {
    let kept = [
        ("host", "a"),
        ("authorization", "b"),
        ("content-length", "5"),
        ("x-forwarded-for", "c"),
    ];
    let mut headers = map(&kept);
    headers.insert(
        CONNECTION,
        HeaderValue::from_static("host, Authorization, content-length, x-forwarded-for"),
    );
    cross_hop(&mut headers, None);
    assert_eq!(headers, map(&kept));
}

#[test]
fn trailers_and_upgrades_are_remade_for_the_next_hop() {
    let mut headers = map(&[
        ("connection", "TE"),
        ("te", "deflate, trailers"),
        ("trailer", "Grpc-Status, Content-Length, X-Sandgate-Caller"),
    ]);
    let mut answer = headers.clone();
    sanitise_request(&mut headers, None);
    assert_eq!(
        headers,
        map(&[("trailer", "grpc-status"), ("connection", "te"), ("te", "trailers")])
    );
    cross_hop(&mut answer, None);
    assert_eq!(answer, map(&[("trailer", "grpc-status")]));
    let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
    let upgrade = Upgrade {
        is_extended_connect: false,
        protocol: HeaderValue::from_static("websocket"),
        accept: None,
    };
    cross_hop(&mut headers, Some(&upgrade));
    assert_eq!(headers, map(&[("connection", "upgrade"), ("upgrade", "websocket")]));
}

#[test]
fn only_a_single_named_upgrade_of_http_1_1_counts() {
    let asks = |version, pairs: &[(&str, &str)]| {
        let mut request = Request::new(());
        *request.version_mut() = version;
        *request.headers_mut() = map(pairs);
        requested_upgrade(&request).is_some()
    };
    let (named, websocket) = (("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"));
    let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert!(asks(Version::HTTP_11, &[named, websocket, key]));
    assert!(asks(Version::HTTP_11, &[named, ("upgrade", "x")]));
    assert!(!asks(Version::HTTP_11, &[named, websocket]));
    assert!(!asks(Version::HTTP_11, &[named, websocket, key, key]));
    assert!(!asks(Version::HTTP_10, &[named, websocket, key]));
    assert!(!asks(Version::HTTP_11, &[websocket, key]));
    assert!(!asks(Version::HTTP_11, &[named]));
    assert!(!asks(Version::HTTP_11, &[named, ("upgrade", "h2c")]));
    assert!(!asks(Version::HTTP_11, &[named, ("upgrade", "H2C")]));
    assert!(!asks(Version::HTTP_11, &[named, ("upgrade", "websocket, h2c")]));
    assert!(!asks(Version::HTTP_11, &[named, websocket, websocket, key]));
    // A body that doesn't end would keep the switch, and every limit of a tunnel, waiting.
    assert!(asks(
        Version::HTTP_11,
        &[named, websocket, key, ("content-length", "0")]
    ));
    assert!(!asks(
        Version::HTTP_11,
        &[named, websocket, key, ("content-length", "1")]
    ));
    assert!(!asks(
        Version::HTTP_11,
        &[named, websocket, key, ("transfer-encoding", "chunked")]
    ));
}

#[test]
fn a_101_that_does_not_switch_to_what_was_asked_for_is_no_switch() {
    let ask = |pairs: &[(&str, &str)]| {
        let mut request = Request::new(());
        *request.headers_mut() = map(pairs);
        requested_upgrade(&request).unwrap()
    };
    let (named, websocket) = (("connection", "Upgrade"), ("upgrade", "WebSocket"));
    // The key and its answer are those of RFC 6455 section 1.3.
    let asked = ask(&[named, websocket, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]);
    let accept = ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert!(asked.is_answered_by(&map(&[named, ("upgrade", "websocket"), accept])));
    for bad in [
        &[][..],
        &[named, websocket],
        &[named, accept],
        &[websocket, accept],
        &[named, ("upgrade", "x"), accept],
        &[named, websocket, websocket, accept],
        &[named, websocket, accept, accept],
        &[
            named,
            websocket,
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOO="),
        ],
    ] {
        assert!(!asked.is_answered_by(&map(bad)), "{bad:?}");
    }
    let asked = ask(&[named, ("upgrade", "x")]);
    assert!(asked.is_answered_by(&map(&[named, ("upgrade", "X")])));
    assert!(!asked.is_answered_by(&map(&[("upgrade", "x")])));
}

#[test]
fn nothing_of_ours_crosses_an_edge() {
    let mut headers = map(&[
        ("x-sandbox-id", "a"),
        ("x-sandbox-id", "b"),
        ("x-sandbox-future", "c"),
        ("x-sandgate-caller", "d"),
        ("x-sandgate-anything", "e"),
        ("x-sandgate-anything", "f"),
        ("x_sandgate_caller", "g"),
        ("x-sandbox_id", "h"),
        ("x-sandboxed", "kept"),
    ]);
    strip_ours(&mut headers);
    assert_eq!(headers, map(&[("x-sandboxed", "kept")]));
}

#[test]
fn a_trailer_section_cannot_carry_credentials_or_framing() {
    let mut trailers = map(&[
        ("grpc-status", "0"),
        ("authorization", "x"),
        ("x-sandgate-caller", "v1;static;root"),
        ("x-forwarded-for", "1.2.3.4"),
        ("content-length", "3"),
    ]);
    sanitise_trailers(&mut trailers);
    assert_eq!(trailers, map(&[("grpc-status", "0")]));
}
