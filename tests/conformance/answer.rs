//! Bytes that a router sent -> answers.

/// One answer, whole or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The informational ones before it.
    pub(crate) interim: Vec<u16>,
    pub(crate) head: String,
    /// Without the frames of its chunks.
    pub(crate) body: Vec<u8>,
    /// Behind the chunks.
    pub(crate) trailers: String,
    /// Whether a client would take it for complete.
    pub(crate) whole: bool,
}

/// All answers in `bytes`. `to_head`: they answer HEAD, which has no body. `ended`: nothing more will come.
pub(crate) fn parse(mut bytes: &[u8], to_head: bool, ended: bool) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut interim = Vec::new();
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end + 4]).into_owned();
        bytes = &bytes[end + 4..];
        let status = status(&head);
        if (100..200).contains(&status) && status != 101 {
            interim.push(status);
            continue;
        }
        // Only the first of a connection asks with HEAD.
        let bodiless = to_head && answers.is_empty() || matches!(status, 204 | 304);
        let (body, trailers, taken) = if bodiless {
            (Vec::new(), String::new(), Some(0))
        } else {
            body(&head, bytes, status == 101 || ended)
        };
        answers.push(Answer {
            status,
            interim: std::mem::take(&mut interim),
            head,
            body,
            trailers,
            whole: taken.is_some(),
        });
        bytes = &bytes[taken.unwrap_or(bytes.len())..];
    }
    answers
}

/// A body, its trailers, and how many bytes both take; `None` where they aren't all there.
fn body(head: &str, bytes: &[u8], ended: bool) -> (Vec<u8>, String, Option<usize>) {
    if values(head, "transfer-encoding").any(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return chunks(bytes);
    }
    match values(head, "content-length")
        .next()
        .map(|length| length.parse::<usize>().unwrap())
    {
        Some(length) if bytes.len() >= length => (bytes[..length].to_vec(), String::new(), Some(length)),
        Some(_) => (bytes.to_vec(), String::new(), None),
        // Until the connection ends; what follows a switch of protocols is whole whenever it is looked at.
        None => (bytes.to_vec(), String::new(), ended.then_some(bytes.len())),
    }
}

fn chunks(bytes: &[u8]) -> (Vec<u8>, String, Option<usize>) {
    let (mut data, mut at) = (Vec::new(), 0);
    while let Some(line) = find(&bytes[at..], b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
        at += line + 2;
        if size == 0 {
            let trailers = |end: usize| String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
            return match find(&bytes[at - 2..], b"\r\n\r\n") {
                Some(end) => (data, trailers(end), Some(at + end + 2)),
                None => (data, String::new(), None),
            };
        }
        let end = bytes.len().min(at + size);
        data.extend_from_slice(&bytes[at..end]);
        if bytes.len() < at + size + 2 {
            return (data, String::new(), None);
        }
        at += size + 2;
    }
    (data, String::new(), None)
}

/// The values of a header of a head, one for each line of it.
pub(crate) fn values<'a>(head: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn status(head: &str) -> u16 {
    let code = head.split(' ').nth(1).and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[test]
fn answers_are_told_apart() {
    let all = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\
               Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nrest";
    let answers = parse(all.as_bytes(), false, false);
    assert_eq!(answers.len(), 3);
    assert_eq!(
        (answers[0].interim.as_slice(), answers[0].body.as_slice()),
        (&[100][..], &b"ok"[..])
    );
    assert_eq!(
        (answers[1].body.as_slice(), answers[1].trailers.as_str()),
        (&b"ab"[..], "A: b\r\n")
    );
    assert!(answers[0].whole && answers[1].whole && !answers[2].whole);
    assert!(parse(all.as_bytes(), false, true)[2].whole);
}

#[test]
fn a_cut_answer_is_not_whole() {
    for cut in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na",
    ] {
        let answers = parse(cut.as_bytes(), false, true);
        assert!(answers.len() == 1 && !answers[0].whole, "{cut}");
    }
}
