use super::*;

fn request(version: Version, method: &str, content_type: &str) -> Request<()> {
    let request = Request::builder().version(version).method(method);
    request.header(CONTENT_TYPE, content_type).body(()).unwrap()
}

#[test]
fn calls_of_grpc_need_http2_and_nothing_else_does() {
    for (content_type, needed) in [
        ("application/grpc", HttpVersion::Http2),
        ("application/grpc+proto", HttpVersion::Http2),
        ("application/GRPC;charset=utf-8", HttpVersion::Http2),
        ("application/grpc-web", HttpVersion::Http1),
        ("application/grpc-web+proto", HttpVersion::Http1),
        ("application/grpcx", HttpVersion::Http1),
        ("application/json", HttpVersion::Http1),
        ("", HttpVersion::Http1),
    ] {
        let found = |version, method| HttpVersion::needed_by(&request(version, method, content_type));
        assert_eq!(found(Version::HTTP_2, "POST"), needed, "{content_type}");
        assert_eq!(found(Version::HTTP_11, "POST"), HttpVersion::Http1, "{content_type}");
        assert_eq!(found(Version::HTTP_2, "GET"), HttpVersion::Http1, "{content_type}");
    }
}

#[test]
fn a_request_goes_on_in_http2_with_its_host_as_authority_and_no_header_of_one_hop() {
    let mut request = Request::builder()
        .uri("/a%2Fb?c=d")
        .header(HOST, "127.0.0.1:9090")
        .header(CONNECTION, "te")
        .header(TE, "trailers")
        .body(())
        .unwrap();
    for _ in 0..2 {
        to_http2(&mut request);
        assert_eq!(request.uri(), "http://127.0.0.1:9090/a%2Fb?c=d");
        assert_eq!(request.version(), Version::HTTP_2);
        let names: Vec<_> = request.headers().keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["te"]);
    }
}

#[test]
fn the_reason_of_a_reset_is_found_by_whoever_looks_for_it() {
    // What a reason is without a peer that gave it, no reset is.
    let own = h2::Error::from(h2::Reason::CANCEL);
    assert_eq!(Reset::behind(&own), None);
    assert_eq!(Reset::behind(&std::io::Error::other("broken")), None);
}
