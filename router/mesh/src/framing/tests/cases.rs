//! Requests that a guard accepts, and requests that it refuses.

use crate::framing::Violation;

pub(super) const GOOD: &str = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";

/// Heads, by the name of what is wrong with them.
pub(super) fn bad_heads() -> impl Iterator<Item = (&'static str, String, Violation)> {
    bad_fields().into_iter().chain(bad_lines())
}

pub(super) fn chunked(body: &str) -> String {
    format!("POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn with_fields(fields: &str) -> String {
    format!("POST /f HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nhello")
}

/// Heads with bad fields, by the name of what is wrong with them.
fn bad_fields() -> Vec<(&'static str, String, Violation)> {
    use Violation as V;
    let fields = |name, fields: &str, why| (name, with_fields(fields), why);
    vec![
        fields("bare LF ends a field", "A: b\nC: d", V::BareLineFeed),
        fields("bare LF ends the head", "A: b\n", V::BareLineFeed),
        fields("bare CR in a value", "A: b\rc", V::BareCarriageReturn),
        fields("bare CR before CRLF", "A: b\r", V::BareCarriageReturn),
        fields("NUL in a value", "A: b\0c", V::FieldValue),
        fields("control byte in a value", "A: b\x0bc", V::FieldValue),
        fields("DEL in a value", "A: b\x7fc", V::FieldValue),
        fields("obs-fold", "A: b\r\n c", V::FoldedLine),
        fields("obs-fold with HTAB", "A: b\r\n\tc", V::FoldedLine),
        (
            "obs-fold of the request line",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(),
            V::FoldedLine,
        ),
        fields("space before the colon", "Content-Length : 5", V::SpaceBeforeColon),
        fields(
            "HTAB before the colon",
            "Transfer-Encoding\t: chunked",
            V::SpaceBeforeColon,
        ),
        fields("space in a name", "A B: c", V::FieldName),
        fields("NUL in a name", "A\0: b", V::FieldName),
        fields("obs-text in a name", "\u{e4}: b", V::FieldName),
        fields("empty name", ": b", V::FieldName),
        fields("no colon", "Content-Length 5", V::MissingColon),
        fields(
            "both framings",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            V::BothFramings,
        ),
        fields(
            "both framings, the other way",
            "Transfer-Encoding: chunked\r\ncontent-length: 5",
            V::BothFramings,
        ),
        fields(
            "two equal lengths",
            "Content-Length: 5\r\nContent-Length: 5",
            V::ContentLengthRepeated,
        ),
        fields(
            "two lengths",
            "Content-Length: 5\r\nContent-Length: 0",
            V::ContentLengthRepeated,
        ),
        fields("list of lengths", "Content-Length: 5, 5", V::ContentLength),
        fields("signed length", "Content-Length: +5", V::ContentLength),
        fields("negative length", "Content-Length: -5", V::ContentLength),
        fields("empty length", "Content-Length: ", V::ContentLength),
        fields("hexadecimal length", "Content-Length: 0x5", V::ContentLength),
        fields("length with a space inside", "Content-Length: 5 5", V::ContentLength),
        fields(
            "length of 2^63",
            "Content-Length: 9223372036854775808",
            V::ContentLength,
        ),
        fields(
            "length of 20 digits",
            "Content-Length: 00000000000000000005",
            V::ContentLength,
        ),
        fields("gzip, chunked", "Transfer-Encoding: gzip, chunked", V::TransferEncoding),
        fields("identity", "Transfer-Encoding: identity", V::TransferEncoding),
        fields(
            "chunked twice",
            "Transfer-Encoding: chunked, chunked",
            V::TransferEncoding,
        ),
        fields(
            "chunked with a parameter",
            "Transfer-Encoding: chunked;a=b",
            V::TransferEncoding,
        ),
        fields(
            "chunked in quotes",
            "Transfer-Encoding: \"chunked\"",
            V::TransferEncoding,
        ),
        fields("xchunked", "Transfer-Encoding: xchunked", V::TransferEncoding),
        fields("no coding", "Transfer-Encoding:", V::TransferEncoding),
        fields(
            "two codings",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            V::TransferEncoding,
        ),
        fields("two hosts", "Host: b", V::HostRepeated),
    ]
}

/// Heads with bad request lines or without a field that is needed, by the name of what is wrong with them.
fn bad_lines() -> Vec<(&'static str, String, Violation)> {
    use Violation as V;
    let line = |name, line: &str, why| (name, format!("{line}\r\nHost: a\r\n\r\n"), why);
    vec![
        ("no host", "GET / HTTP/1.1\r\nA: b\r\n\r\n".into(), V::HostMissing),
        (
            "coding in HTTP/1.0",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            V::TransferEncodingInHttp10,
        ),
        (
            "two hosts in HTTP/1.0",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n".into(),
            V::HostRepeated,
        ),
        (
            "bare LF ends the request line",
            "GET / HTTP/1.1\nHost: a\r\n\r\n".into(),
            V::BareLineFeed,
        ),
        ("two empty lines", format!("\r\n\r\n{GOOD}"), V::RequestLine),
        ("bare LF before the request", format!("\n{GOOD}"), V::BareLineFeed),
        line("two spaces", "GET  / HTTP/1.1", V::RequestLine),
        line("trailing space", "GET / HTTP/1.1 ", V::RequestLine),
        line("leading space", " GET / HTTP/1.1", V::RequestLine),
        line("HTAB instead of space", "GET\t/\tHTTP/1.1", V::RequestLine),
        line("no version", "GET /", V::RequestLine),
        line("no method", " / HTTP/1.1", V::RequestLine),
        line("method that is no token", "GE(T / HTTP/1.1", V::RequestLine),
        line("no target", "GET  HTTP/1.1", V::Target),
        line("fragment", "GET /a#b HTTP/1.1", V::Target),
        line("fragment of an absolute target", "GET http://a/#b HTTP/1.1", V::Target),
        line("control byte in the target", "GET /\x01 HTTP/1.1", V::Target),
        line("obs-text in the target", "GET /\u{e4} HTTP/1.1", V::Target),
        line("target that is no URI", "GET :// HTTP/1.1", V::Target),
        line("HTTP/0.9", "GET / HTTP/0.9", V::Version),
        line("HTTP/1.2", "GET / HTTP/1.2", V::Version),
        line("HTTP/2.0", "GET / HTTP/2.0", V::Version),
        line("lower-case version", "GET / http/1.1", V::Version),
        line("no HTTP", "GET / ICY/1.1", V::Version),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), V::Version),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\r\n".into(), V::RequestLine),
        line("forged stand-in", "SANDGATE-REFUSED /0 HTTP/1.1", V::ReservedMethod),
    ]
}

/// Chunked bodies, by the name of what is wrong with them.
pub(super) fn bad_bodies() -> Vec<(&'static str, String, Violation)> {
    use Violation as V;
    let body = |name, body: &str, why| (name, chunked(body), why);
    vec![
        body("no size", "\r\n\r\n", V::ChunkSize),
        body("no size before an extension", ";a\r\n", V::ChunkSize),
        body("space before the size", " 5\r\nhello\r\n0\r\n\r\n", V::ChunkSize),
        body("0x5", "0x5\r\nhello\r\n0\r\n\r\n", V::ChunkSize),
        body("signed size", "+5\r\nhello\r\n0\r\n\r\n", V::ChunkSize),
        body("size of 2^63", "8000000000000000\r\n", V::ChunkSize),
        body(
            "size of 17 digits",
            "00000000000000005\r\nhello\r\n0\r\n\r\n",
            V::ChunkSize,
        ),
        body(
            "size that wraps around",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            V::ChunkSize,
        ),
        body("two sizes", "5 5\r\nhello\r\n0\r\n\r\n", V::ChunkSize),
        body("space behind the size", "5 \r\nhello\r\n0\r\n\r\n", V::ChunkSize),
        body("bare LF behind the size", "5\nhello\r\n0\r\n\r\n", V::BareLineFeed),
        body("bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n", V::BareLineFeed),
        body(
            "bare CR in an extension",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            V::BareCarriageReturn,
        ),
        body(
            "bare CR behind the size",
            "5\rhello\r\n0\r\n\r\n",
            V::BareCarriageReturn,
        ),
        body("NUL in an extension", "5;a\0\r\nhello\r\n0\r\n\r\n", V::ChunkExtension),
        body(
            "long extension",
            &format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(255)),
            V::ChunkLineTooLong,
        ),
        body("data longer than the size", "5\r\nhello!\r\n0\r\n\r\n", V::ChunkEnd),
        body("data shorter than the size", "5\r\nhell\r\n0\r\n\r\n", V::ChunkEnd),
        body("bare LF behind the data", "5\r\nhello\n0\r\n\r\n", V::ChunkEnd),
        body("bare LF behind the last chunk", "0\n\r\n", V::BareLineFeed),
        body("bare LF instead of a trailer section", "0\r\n\n", V::BareLineFeed),
        body("bare LF in a trailer", "0\r\nA: b\n\r\n", V::BareLineFeed),
        body("bare CR in a trailer", "0\r\nA: b\rc\r\n\r\n", V::BareCarriageReturn),
        body("folded trailer", "0\r\nA: b\r\n c\r\n\r\n", V::FoldedLine),
        body(
            "space before a trailer's colon",
            "0\r\nA : b\r\n\r\n",
            V::SpaceBeforeColon,
        ),
        body(
            "request instead of a trailer section",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
            V::MissingColon,
        ),
        body("length in a trailer", "0\r\nContent-Length: 5\r\n\r\n", V::TrailerField),
        body(
            "coding in a trailer",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            V::TrailerField,
        ),
        body("host in a trailer", "0\r\nHost: b\r\n\r\n", V::TrailerField),
        body(
            "too many trailers",
            &format!("0\r\n{}\r\n", "A: b\r\n".repeat(101)),
            V::TooManyHeaders,
        ),
        body(
            "long trailer section",
            &format!("0\r\nA: {}\r\n\r\n", "b".repeat(61_440)),
            V::HeadTooLarge,
        ),
    ]
}

/// Streams of complete messages, with how many there are.
pub(super) fn good_streams() -> Vec<(usize, String)> {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let long = "x".repeat(300);
    vec![
        (1, GOOD.into()),
        (3, GOOD.repeat(3)),
        (2, format!("\r\n{GOOD}\r\n{GOOD}")),
        (1, "GET / HTTP/1.0\r\n\r\n".into()),
        (1, "OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n".into()),
        (1, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".into()),
        (1, "GET http://a/b?c=d HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        (
            1,
            "GET /\"{a}\"?b={c}|`^ HTTP/1.1\r\nHost: a\r\nA:\r\nB: \t \u{e4}\tc\t \r\n\r\n".into(),
        ),
        (2, format!("{}{GOOD}", with_fields("content-length: \t5 "))),
        (
            2,
            format!("{}{GOOD}", with_fields("Content-Length: 0000000000000000005")),
        ),
        (
            2,
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n{GOOD}"),
        ),
        (
            2,
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}{GOOD}",
                smuggled.len()
            ),
        ),
        (2, format!("{}{GOOD}", chunked("0\r\n\r\n"))),
        (2, format!("{}{GOOD}", chunked("5\r\nhello\r\n0\r\n\r\n"))),
        (
            2,
            format!(
                "{}{GOOD}",
                chunked("5;a\r\nhello\r\n1 \t; b=\"\tc\u{e4}\"\r\n!\r\n0;d\r\nE: f\r\nG:\r\n\r\n")
            ),
        ),
        (
            2,
            format!(
                "{}{GOOD}",
                chunked(&format!("{:x}\r\n{smuggled}\r\n000\r\n\r\n", smuggled.len()))
            ),
        ),
        (
            1,
            chunked(&format!("000000000000012C\r\n{long}\r\n12c\r\n{long}\r\n0\r\n\r\n")),
        ),
        (
            1,
            "POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: \tChunked \r\n\r\n0\r\n\r\n".into(),
        ),
    ]
}
