//! What the guards promise, as a parser of whole byte strings: slow, strict, and sharing nothing with them but the limits.

use http::Uri;
use sandgate_mesh::framing::Limits;

/// A name and its value without the white space around it.
pub(super) type Field<'a> = (&'a [u8], &'a [u8]);

/// A message's head.
#[derive(Debug)]
pub(super) struct Head<'a> {
    /// The words of the first line; of a status line without the reason.
    pub(super) start: [&'a [u8]; 3],
    pub(super) fields: Vec<Field<'a>>,
    /// Where its first line starts, behind an empty line that was tolerated.
    pub(super) begins: usize,
    /// Behind its empty line.
    pub(super) ends: usize,
}

/// A complete request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) head: Head<'a>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<Field<'a>>,
    /// Where each line of its framing ends, the head's first: the CR of the CRLF.
    pub(super) line_ends: Vec<usize>,
    /// Behind its last byte.
    pub(super) ends: usize,
}

/// What is behind the last complete message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Something that more bytes could complete, or nothing.
    Open,
    /// A head that is refused.
    BadHead,
    /// A head that is not, and a body or trailer section that is.
    BadBody,
}

/// Why a reader stops.
#[derive(Debug)]
enum Stop {
    /// At the end of the input.
    Short,
    Bad,
}

/// Complete requests, what follows them, and how many bytes may be handed on before it: none of an unfinished or refused
/// head or trailer section. Of a bad body it is the most.
pub(super) fn requests<'a>(input: &'a [u8], limits: &Limits) -> (Vec<Request<'a>>, Tail, usize) {
    let mut requests: Vec<Request<'_>> = Vec::new();
    loop {
        let from = requests.last().map_or(0, |request| request.ends);
        let mut line_ends = Vec::new();
        let head = match request_head(input, from, limits, &mut line_ends) {
            Ok(head) => head,
            Err(Stop::Short) => return (requests, Tail::Open, from),
            Err(Stop::Bad) => return (requests, Tail::BadHead, from),
        };
        let mut body = Body {
            input,
            limits,
            at: head.ends,
            passed: head.ends,
            data: Vec::new(),
            line_ends,
        };
        match body.read(framing(&head).unwrap()) {
            Ok(trailers) => requests.push(Request {
                head,
                body: body.data,
                trailers,
                line_ends: body.line_ends,
                ends: body.at,
            }),
            Err(Stop::Short) => return (requests, Tail::Open, body.passed),
            Err(Stop::Bad) => return (requests, Tail::BadBody, body.passed),
        }
    }
}

/// The final response head, if there is one; what follows the heads before it otherwise; and how many bytes those have.
pub(super) fn response<'a>(input: &'a [u8], limits: &Limits) -> (Option<Head<'a>>, Tail, usize) {
    let mut from = 0;
    let mut informational = 0;
    loop {
        let head = match response_head(input, from, limits) {
            Ok(head) => head,
            Err(Stop::Short) => return (None, Tail::Open, from),
            Err(Stop::Bad) => return (None, Tail::BadHead, from),
        };
        if head.start[1][0] != b'1' || head.start[1] == b"101" {
            return (Some(head), Tail::Open, from);
        }
        informational += 1;
        if informational > limits.informational {
            return (None, Tail::BadHead, from);
        }
        from = head.ends;
    }
}

fn request_head<'a>(
    input: &'a [u8],
    from: usize,
    limits: &Limits,
    line_ends: &mut Vec<usize>,
) -> Result<Head<'a>, Stop> {
    let section = Lines {
        input,
        from,
        most: limits.head_bytes,
    };
    let mut at = from;
    let mut begins = from;
    let mut start = None;
    let mut fields = Vec::new();
    loop {
        let line = match section.line(at) {
            Err(Stop::Short) if start.is_none() && long_target(&input[at..], limits) => return Err(Stop::Bad),
            line => line?,
        };
        line_ends.push(at + line.len());
        at += line.len() + 2;
        match start {
            None if line.is_empty() && at == from + 2 => begins = at,
            None if long_target(line, limits) => return Err(Stop::Bad),
            None => start = Some(request_line(line)?),
            Some(start) if line.is_empty() => {
                let head = Head {
                    start,
                    fields,
                    begins,
                    ends: at,
                };
                let hosts = named(&head.fields, "host").count();
                framing(&head)?;
                return if hosts == 0 && head.start[2] == b"HTTP/1.1" {
                    Err(Stop::Bad)
                } else {
                    Ok(head)
                };
            }
            Some(_) => another_field(&mut fields, line, limits)?,
        }
    }
}

fn response_head<'a>(input: &'a [u8], from: usize, limits: &Limits) -> Result<Head<'a>, Stop> {
    let section = Lines {
        input,
        from,
        most: limits.head_bytes,
    };
    let mut at = from;
    let mut start = None;
    let mut fields = Vec::new();
    loop {
        let line = section.line(at)?;
        at += line.len() + 2;
        match start {
            None => start = Some(status_line(line)?),
            Some(start) if line.is_empty() => {
                let head = Head {
                    start,
                    fields,
                    begins: from,
                    ends: at,
                };
                let framing = framing(&head)?;
                let bodiless = head.start[1][0] == b'1' || head.start[1] == b"204";
                let says_body = !matches!(framing, Framing::None | Framing::Length(0));
                return if bodiless && says_body {
                    Err(Stop::Bad)
                } else {
                    Ok(head)
                };
            }
            Some(_) => another_field(&mut fields, line, limits)?,
        }
    }
}

/// The lines of a section that starts at `from` and may have `most` bytes.
struct Lines<'a> {
    input: &'a [u8],
    from: usize,
    most: usize,
}

impl<'a> Lines<'a> {
    /// The line at `at`, without its CRLF.
    fn line(&self, at: usize) -> Result<&'a [u8], Stop> {
        let room = self.from + self.most;
        let visible = &self.input[at..self.input.len().min(room)];
        let end = visible.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        match end.map(|end| (end, &visible[end..])) {
            Some((end, [b'\r', b'\n', ..])) => Ok(&visible[..end]),
            Some((_, [b'\n', ..] | [_, _, ..])) => Err(Stop::Bad),
            _ if self.input.len() > room => Err(Stop::Bad),
            _ => Err(Stop::Short),
        }
    }
}

/// Whether a request line, complete or not, has a target over the limit.
fn long_target(line: &[u8], limits: &Limits) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.split(|byte| *byte == b' ')
        .nth(1)
        .is_some_and(|target| target.len() > limits.target_bytes)
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

fn trimmed(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn request_line(line: &[u8]) -> Result<[&[u8]; 3], Stop> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Err(Stop::Bad);
    };
    let fits = is_token(method)
        && method != b"SANDGATE-REFUSED"
        && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')
        && Uri::try_from(target).is_ok()
        && matches!(version, b"HTTP/1.0" | b"HTTP/1.1");
    if fits {
        Ok([method, target, version])
    } else {
        Err(Stop::Bad)
    }
}

fn status_line(line: &[u8]) -> Result<[&[u8]; 3], Stop> {
    let words: Vec<&[u8]> = line.splitn(3, |byte| *byte == b' ').collect();
    let (version, status, reason) = match words[..] {
        [version, status] => (version, status, &b""[..]),
        [version, status, reason] => (version, status, reason),
        _ => return Err(Stop::Bad),
    };
    let status_fits = matches!(status, [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9']);
    if status_fits && is_text(reason) && matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
        Ok([version, status, b""])
    } else {
        Err(Stop::Bad)
    }
}

fn named<'a>(fields: &[Field<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, value)| *value)
}

/// Adds a field line. What is wrong with the fields so far is known with the line that makes it so.
fn another_field<'a>(fields: &mut Vec<Field<'a>>, line: &'a [u8], limits: &Limits) -> Result<(), Stop> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Stop::Bad)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if fields.len() == limits.headers || !is_token(name) || !is_text(value) {
        return Err(Stop::Bad);
    }
    fields.push((name, trimmed(value)));
    let count = |name| named(fields, name).count();
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    let lengths_fit = named(fields, "content-length").all(|text| length(text).is_some());
    let codings_fit = named(fields, "transfer-encoding").all(|text| text.eq_ignore_ascii_case(b"chunked"));
    if count("host") <= 1 && lengths + codings <= 1 && lengths_fit && codings_fit {
        Ok(())
    } else {
        Err(Stop::Bad)
    }
}

fn length(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok()?;
    let fits = (1..=19).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits
        .parse()
        .ok()
        .filter(|length| fits && i64::try_from(*length).is_ok())
}

#[derive(Debug, Clone, Copy)]
enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// How the body of a complete head is framed. Its fields fit one by one.
fn framing(head: &Head<'_>) -> Result<Framing, Stop> {
    let chunked = named(&head.fields, "transfer-encoding").next().is_some();
    match named(&head.fields, "content-length").next().and_then(length) {
        None if chunked && head.start.contains(&&b"HTTP/1.0"[..]) => Err(Stop::Bad),
        None if chunked => Ok(Framing::Chunked),
        None => Ok(Framing::None),
        Some(length) => Ok(Framing::Length(length)),
    }
}

/// A request's body while it is read.
struct Body<'a, 'l> {
    input: &'a [u8],
    limits: &'l Limits,
    at: usize,
    /// Behind what may be handed on.
    passed: usize,
    data: Vec<u8>,
    line_ends: Vec<usize>,
}

impl<'a> Body<'a, '_> {
    fn read(&mut self, framing: Framing) -> Result<Vec<Field<'a>>, Stop> {
        match framing {
            Framing::None => Ok(Vec::new()),
            Framing::Length(length) => self.take(length).map(|()| Vec::new()),
            Framing::Chunked => self.chunks(),
        }
    }

    fn take(&mut self, length: u64) -> Result<(), Stop> {
        let rest = &self.input[self.at..];
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.data.extend_from_slice(&rest[..length.min(rest.len())]);
        self.at += length.min(rest.len());
        self.passed = self.at;
        if length > rest.len() { Err(Stop::Short) } else { Ok(()) }
    }

    fn chunks(&mut self) -> Result<Vec<Field<'a>>, Stop> {
        let mut extensions = 0;
        loop {
            let rest = &self.input[self.at..];
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let line = &rest[..end.unwrap_or(rest.len())];
            // A peer learns of a bad byte before the line is complete.
            self.passed = self.input.len();
            let size = chunk_size(line, end.is_some(), &mut extensions)?;
            match end.map(|end| &rest[end..]) {
                None | Some([b'\r']) => return Err(Stop::Short),
                Some([b'\r', b'\n', ..]) => {}
                Some(_) => return Err(Stop::Bad),
            }
            self.line_ends.push(self.at + line.len());
            self.at += line.len() + 2;
            self.passed = self.at;
            if size == 0 {
                return self.trailers();
            }
            self.take(size)?;
            let rest = &self.input[self.at..];
            if !b"\r\n".starts_with(&rest[..rest.len().min(2)]) {
                self.passed = self.input.len();
                return Err(Stop::Bad);
            }
            self.passed = self.at + rest.len().min(2);
            if rest.len() < 2 {
                return Err(Stop::Short);
            }
            self.line_ends.push(self.at);
            self.at += 2;
        }
    }

    fn trailers(&mut self) -> Result<Vec<Field<'a>>, Stop> {
        let section = Lines {
            input: self.input,
            from: self.at,
            most: self.limits.head_bytes,
        };
        let mut fields = Vec::new();
        loop {
            let line = section.line(self.at)?;
            self.line_ends.push(self.at + line.len());
            self.at += line.len() + 2;
            if line.is_empty() {
                self.passed = self.at;
                return Ok(fields);
            }
            another_field(&mut fields, line, self.limits)?;
            let forbidden = ["host", "content-length", "transfer-encoding"];
            if forbidden.iter().any(|name| named(&fields, name).next().is_some()) {
                return Err(Stop::Bad);
            }
        }
    }
}

/// A chunk's size: `1*16HEXDIG *( *( SP / HTAB ) ";" text )`. A line that isn't complete may stop anywhere.
fn chunk_size(line: &[u8], complete: bool, extensions: &mut usize) -> Result<u64, Stop> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extension) = line.split_at(digits);
    if digits.is_empty() {
        return if complete || !extension.is_empty() {
            Err(Stop::Bad)
        } else {
            Ok(0)
        };
    }
    *extensions += extension.len();
    let size = u64::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).ok();
    let size = size
        .filter(|size| digits.len() <= 16 && i64::try_from(*size).is_ok())
        .ok_or(Stop::Bad)?;
    let starts = extension.iter().position(|byte| !matches!(byte, b' ' | b'\t'));
    let fits = match starts.map(|at| extension[at]) {
        Some(first) => first == b';' && is_text(extension),
        None => extension.is_empty() || !complete,
    };
    if fits && line.len() <= 256 && *extensions < 16 * 1024 {
        Ok(size)
    } else {
        Err(Stop::Bad)
    }
}
