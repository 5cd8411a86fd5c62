//! Section 3, second part: framing is never repaired. Behind each attack stands a request that nobody may be served.

use crate::case::{App, Case, Talk, case, get, head};
use crate::check::Check::{Asked, Body, Closes, Detail, NeverWhole, Status, Stays, Untouched};
use crate::decisions::{APP_FRAMING, CAPS, FRAMING, INFORMATIONAL};

/// What an attack would like to smuggle.
fn smuggled() -> String {
    get("/smuggled")
}

/// An attack in a header of a request. Its body is the same by its length, 5, and by its chunks.
fn attack(name: &str, fields: &str) -> Case {
    let request = head("POST /up", &format!("{fields}\r\n")) + "0\r\n\r\n" + &smuggled();
    case(format!("{name} is refused"), request).repelled()
}

/// An attack in a request line.
fn line(name: &str, line: &str) -> Case {
    let request = get("/page").replace("GET /page HTTP/1.1", line) + &smuggled();
    case(format!("{name} is refused"), request).repelled()
}

/// An attack in a chunked body. Its head may be at the app by then.
fn chunks(name: &str, body: &str) -> Case {
    let request = head("POST /up", "Transfer-Encoding: chunked\r\n") + body + &smuggled();
    case(format!("{name} is refused"), request).expect([Status(400), NeverWhole, Closes])
}

impl Case {
    /// Upstream's router serves the request, and the one behind it on the same connection.
    fn served_there(self) -> Self {
        self.differs(&FRAMING, [Status(200), Body("hello"), Asked(2), Stays])
    }

    /// Upstream's router refuses it with another status.
    fn refused_there(self, status: u16) -> Self {
        self.differs(&FRAMING, [Status(status), NeverWhole, Closes])
    }
}

pub(super) fn cases() -> Vec<Case> {
    [lengths(), codings(), fields(), lines(), bodies(), caps(), apps()].concat()
}

fn lengths() -> Vec<Case> {
    vec![
        attack(
            "a length beside chunks",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
        )
        .served_there(),
        attack(
            "chunks beside a length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
        )
        .served_there(),
        attack("a length twice", "Content-Length: 5\r\nContent-Length: 5").served_there(),
        attack("two lengths", "Content-Length: 5\r\nContent-Length: 0"),
        attack("a list of lengths", "Content-Length: 5, 5"),
        attack("a signed length", "Content-Length: +5"),
        attack("a negative length", "Content-Length: -5"),
        attack("an empty length", "Content-Length:"),
        attack("a hexadecimal length", "Content-Length: 0x5"),
        attack("a length of 2^63", "Content-Length: 9223372036854775808"),
    ]
}

fn codings() -> Vec<Case> {
    let old = head("POST /up", "Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0") + "0\r\n\r\n";
    vec![
        attack("gzip before chunked", "Transfer-Encoding: gzip, chunked").refused_there(501),
        attack("identity", "Transfer-Encoding: identity").refused_there(501),
        attack("chunked twice", "Transfer-Encoding: chunked, chunked").refused_there(501),
        attack(
            "two lines of chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        )
        .refused_there(501),
        attack("chunked with a parameter", "Transfer-Encoding: chunked;a=b").refused_there(501),
        attack("a coding that only contains chunked", "Transfer-Encoding: xchunked").refused_there(501),
        attack("an empty coding", "Transfer-Encoding:").refused_there(501),
        case("a coding in HTTP/1.0 is refused", old)
            .repelled()
            .differs(&FRAMING, [Status(200), Body("hello"), Asked(1)]),
    ]
}

fn fields() -> Vec<Case> {
    let sized = |name: &str, field: &str| attack(name, &format!("Content-Length: 5\r\n{field}"));
    let hosts = get("/page").replace("Host: sandbox.example\r\n", "Host: sandbox.example\r\nHost: b\r\n");
    vec![
        sized("a folded line", "X-A: b\r\n c: d").served_there(),
        attack("white space before a colon", "Content-Length : 5"),
        attack("a tab before a colon", "Transfer-Encoding\t: chunked"),
        sized("NUL in a value", "X-A: b\0c"),
        sized("a control byte in a value", "X-A: b\x0bc"),
        attack("a bare CR in a value", "X-A: b\rTransfer-Encoding: chunked"),
        attack("a line that ends with LF alone", "X-A: b\nTransfer-Encoding: chunked").served_there(),
        sized("a space in a name", "X A: b"),
        sized("an empty name", ": b"),
        attack("a line without a colon", "Transfer-Encoding chunked"),
        sized("a name that is no token", "X-\u{e4}: b"),
        case(
            "a head that ends with LF alone is refused",
            get("/page").replace("\r\n\r\n", "\r\n\n") + &smuggled(),
        )
        .repelled()
        .served_there(),
        case(
            "no Host is refused",
            get("/page").replace("Host: sandbox.example\r\n", ""),
        )
        .repelled(),
        case("two Hosts are refused", hosts).repelled(),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        line("two spaces in the request line", "GET  /page HTTP/1.1"),
        line("a space behind the version", "GET /page HTTP/1.1 "),
        line("a request line without a version", "GET /page"),
        line("a tab for a space", "GET\t/page\tHTTP/1.1"),
        line("a method that is no token", "GE(T /page HTTP/1.1"),
        line("a fragment", "GET /page#a HTTP/1.1").served_there(),
        line("a control byte in the target", "GET /\x01 HTTP/1.1"),
        line("bytes beyond ASCII in the target", "GET /\u{e4} HTTP/1.1").served_there(),
        line("HTTP/1.2", "GET /page HTTP/1.2").served_there(),
        line("HTTP/3.0", "GET /page HTTP/3.0").refused_there(505),
        line("a version in lower case", "GET /page http/1.1"),
        case(
            "a request line that ends with LF alone is refused",
            get("/page").replace("HTTP/1.1\r\n", "HTTP/1.1\n") + &smuggled(),
        )
        .repelled()
        .served_there(),
        case(
            "a first line of header fields is refused",
            get("/page").replace("GET /page HTTP/1.1\r\n", " "),
        )
        .repelled(),
    ]
}

fn bodies() -> Vec<Case> {
    let broken = |name: &str, body: &str| chunks(name, body).refused_there(502);
    let hello = |line: &str| format!("{line}\r\nhello\r\n0\r\n\r\n");
    vec![
        broken("a chunk size that overflows", &hello("FFFFFFFFFFFFFFFFF")),
        // Theirs waits for as many bytes.
        chunks("a chunk size of 2^63", &hello("8000000000000000")).differs(&FRAMING, [Status(0), NeverWhole]),
        broken("a chunk size with 0x", &hello("0x5")),
        broken("a signed chunk size", &hello("+5")),
        broken("an empty chunk size", &hello("")),
        broken("a chunk size that ends with LF alone", "5\nhello\r\n0\r\n\r\n"),
        broken("a chunk that ends with LF alone", "5\r\nhello\n0\r\n\r\n"),
        broken("a chunk that is longer than its size", &hello("3")),
        chunks("a control byte in a chunk extension", &hello("5;a=\x01b")).served_there(),
        broken("LF in a chunk extension", &hello("5;a=\nb")),
        chunks(
            "a length in the trailers",
            "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        )
        .served_there(),
        broken("a trailer without a colon", "5\r\nhello\r\n0\r\nX-A\r\n\r\n"),
    ]
}

fn caps() -> Vec<Case> {
    let target = |length: usize| get(&format!("/{}", "t".repeat(length - 1)));
    let lines = |count: usize| head("GET /page", &"A: b\r\n".repeat(count - 4));
    let sized = |length: usize| {
        let padding = length - head("GET /page", "P: \r\n").len();
        head("GET /page", &format!("P: {}\r\n", "p".repeat(padding)))
    };
    let over = |name: &str, request: String, status, text| {
        case(format!("{name} is refused"), request)
            .expect([Status(status), Detail(text), Untouched, Closes])
            .passes_there(&CAPS)
    };
    vec![
        case("a target of 8 KiB passes", target(8 * 1024)).passes(),
        case("100 header lines pass", lines(100)).passes(),
        // Placeholders are as long as what they stand for, or longer.
        case("a head of almost 60 KiB passes", sized(60 * 1024 - 16)).passes(),
        over(
            "a target of over 8 KiB",
            target(8 * 1024 + 1),
            414,
            "Request target is too long.",
        ),
        over("a head of 101 header lines", lines(101), 431, "Too many header fields."),
        over(
            "a head of over 60 KiB",
            sized(61 * 1024),
            431,
            "Header section is too large.",
        ),
    ]
}

/// What an app answers that no router may pass on.
fn apps() -> Vec<Case> {
    let text = "Could not connect to the backend sandbox: alpha";
    let bad = |name: &str, answer: String| {
        case(format!("an app's {name} is 502"), get("/page"))
            .answer(answer)
            .expect([Status(502), Detail(text), Asked(1)])
    };
    let passed = |name: &str, answer: String| bad(name, answer).differs(&APP_FRAMING, [Status(200), Body("hello")]);
    let ok = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello");
    let sized = |field: &str| ok(&format!("{field}Content-Length: 5"));
    let hints = |count: usize| "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(count) + &sized("");
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    vec![
        bad("answer with both framings", both.into()).differs(&APP_FRAMING, [Status(200), Body("")]),
        bad("answer with two lengths", sized("Content-Length: 4\r\n")),
        passed("answer with a length twice", sized("Content-Length: 5\r\n")),
        bad("answer with a signed length", ok("Content-Length: +5")),
        bad("answer in another coding", ok("Transfer-Encoding: gzip, chunked")),
        passed("answer with a folded line", sized("X-A: b\r\n c\r\n")),
        passed("answer with a bare LF", sized("X-A: b\n")),
        bad("answer with NUL in a value", sized("X-A: b\0\r\n")),
        passed("answer of HTTP/2.0", sized("").replace("HTTP/1.1", "HTTP/2.0")),
        bad("status line without a number", sized("").replace("200", "OK")),
        bad("status of two digits", sized("").replace("200", "20")),
        passed(
            "head of over 60 KiB",
            sized(&format!("X-A: {}\r\n", "a".repeat(61 * 1024))),
        ),
        passed("head of 101 lines", sized(&"X-A: b\r\n".repeat(100))),
        case("eight informational answers pass", get("/page"))
            .answer(hints(8))
            .passes(),
        case("nine informational answers are 502", get("/page"))
            .answer(hints(9))
            .expect([Status(502), Detail(text), Asked(1)])
            .differs(&INFORMATIONAL, [Status(200), Body("hello")]),
        case("an answer before its request is used for no other", get("/page"))
            .app(App::Closes(
                sized("") + "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
            ))
            .then([Talk::Await("hello"), Talk::Send(get("/page"))])
            .second()
            .expect([Status(200), Body("hello")]),
    ]
}
