//! What must be so after a case, and whether it is.

use crate::answer::values;
use crate::observe::{Seen, access_line};
use sandgate_tests::Request;
use serde_json::Value;
use std::fmt;

/// One thing that must be so. `@PORT@` and `@IP@` stand for the app's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// The answer's status; 0 where the connection ends without one.
    Status(u16),
    /// The whole answer is an error in the words clients know: JSON with this detail and nothing else.
    Detail(&'static str),
    /// The answer's body, whole and exactly.
    Body(&'static str),
    /// What a client never takes for a complete answer.
    Broken,
    /// The values of a header of the answer, one for each line of it.
    Field(&'static str, &'static [&'static str]),
    /// What stands behind the answer's chunks.
    Trailers(&'static str),
    /// Informational answers before it.
    Interim(&'static [u16]),
    /// Another request is served on the connection.
    Stays,
    /// The connection ends.
    Closes,
    /// Not a byte came to the app.
    Untouched,
    /// So many requests came to the app, all whole.
    Asked(usize),
    /// No whole request came to the app.
    NeverWhole,
    /// The request line that the app got.
    Line(&'static str),
    /// The values of a header that the app got, one for each line of it.
    Got(&'static str, &'static [&'static str]),
    /// A value that the router made: one, of 32 hexadecimal digits.
    Made(&'static str),
    /// The data of the body that the app got.
    Upload(&'static str),
    /// How many bytes of it.
    UploadLength(usize),
    /// All that the app got holds this, trailers and further bytes too.
    Holds(&'static str),
    /// Nothing that the app got holds this text, which is in lower case.
    Lacks(&'static str),
    /// The router doesn't start, and ends with this code.
    Exits(i32),
    /// It says so on standard error.
    Says(&'static str),
    /// It says so on standard output.
    Prints(&'static str),
    /// A line of the metrics begins so.
    Counted(&'static str),
    /// No line of them begins so.
    Uncounted(&'static str),
    /// A field of the request's line in the log, as JSON.
    Logged(&'static str, &'static str),
    /// Its line has a field of this name, whatever it says.
    Names(&'static str),
    /// There is no line of it.
    Unlogged,
    /// Neither log nor metrics hold this text.
    Unsaid(&'static str),
}

impl Check {
    /// Whether another request on the connection is needed to tell.
    pub(crate) fn needs_probe(&self) -> bool {
        matches!(self, Self::Stays | Self::Closes) || self.needs_metrics() || self.needs_log()
    }

    pub(crate) fn needs_metrics(&self) -> bool {
        matches!(self, Self::Counted(_) | Self::Uncounted(_) | Self::Unsaid(_))
    }

    pub(crate) fn needs_log(&self) -> bool {
        matches!(
            self,
            Self::Logged(..) | Self::Names(_) | Self::Unlogged | Self::Unsaid(_)
        )
    }

    /// Whether it is so.
    pub(crate) fn holds(&self, seen: &Seen) -> bool {
        match self {
            Self::Exits(code) => seen.left.as_ref().is_some_and(|left| left.code == Some(*code)),
            Self::Says(text) => seen.left.as_ref().is_some_and(|left| left.stderr.contains(text)),
            Self::Prints(text) => seen.left.as_ref().is_some_and(|left| left.stdout.contains(text)),
            _ if seen.left.is_some() => false,
            Self::Status(_) | Self::Detail(_) | Self::Body(_) | Self::Broken | Self::Field(..) | Self::Trailers(_) => {
                self.holds_of_answer(seen)
            }
            Self::Interim(codes) => seen.answer.as_ref().is_some_and(|answer| answer.interim == *codes),
            Self::Stays => seen.stays == Some(true),
            Self::Closes => seen.stays == Some(false),
            Self::Counted(text) => seen.metrics.lines().any(|line| line.starts_with(text)),
            Self::Uncounted(text) => {
                !seen.metrics.is_empty() && !seen.metrics.lines().any(|line| line.starts_with(text))
            }
            Self::Logged(..) | Self::Names(_) | Self::Unlogged => self.holds_of_line(seen),
            Self::Unsaid(text) => !seen.metrics.is_empty() && !seen.log.contains(text) && !seen.metrics.contains(text),
            _ => self.holds_of_app(seen),
        }
    }

    fn holds_of_answer(&self, seen: &Seen) -> bool {
        let Some(answer) = &seen.answer else {
            return matches!(self, Self::Status(0));
        };
        match self {
            Self::Status(status) => answer.status == *status,
            Self::Body(text) => answer.whole && answer.body == text.as_bytes(),
            Self::Broken => !answer.whole,
            Self::Field(name, expected) => values(&answer.head, name).eq(expected.iter().map(|text| seen.fill(text))),
            Self::Trailers(text) => answer.trailers.eq_ignore_ascii_case(text),
            Self::Detail(text) => {
                let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
                answer.whole
                    && body == Some(serde_json::json!({ "detail": text }))
                    && values(&answer.head, "content-type").eq(["application/json"])
            }
            _ => false,
        }
    }

    fn holds_of_app(&self, seen: &Seen) -> bool {
        let whole = seen.requests.iter().filter(|request| request.complete).count();
        match self {
            Self::Untouched => seen.requests.is_empty(),
            Self::Asked(times) => seen.requests.len() == *times && whole == *times,
            Self::NeverWhole => whole == 0,
            Self::Holds(wanted) => seen.all_that_came().contains(wanted),
            Self::Lacks(unwanted) => whole > 0 && !seen.all_that_came().to_ascii_lowercase().contains(unwanted),
            _ => seen
                .requests
                .first()
                .is_some_and(|request| self.holds_of_request(request, seen)),
        }
    }

    fn holds_of_request(&self, request: &Request, seen: &Seen) -> bool {
        match self {
            Self::Line(line) => request.head.starts_with(&format!("{line} HTTP/1.1\r\n")),
            Self::Got(name, expected) => values(&request.head, name).eq(expected.iter().map(|text| seen.fill(text))),
            Self::Made(name) => {
                let made: Vec<&str> = values(&request.head, name).collect();
                matches!(made.as_slice(), [id] if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
            }
            Self::Upload(data) => request.complete && request.data() == data.as_bytes(),
            Self::UploadLength(length) => request.complete && request.data().len() == *length,
            _ => false,
        }
    }

    fn holds_of_line(&self, seen: &Seen) -> bool {
        let line = access_line(&seen.log, &seen.path);
        match (self, line) {
            (Self::Unlogged, line) => line.is_none(),
            (Self::Names(name), Some(line)) => line.get(name).is_some(),
            (Self::Logged(name, json), Some(line)) => {
                let expected: Value = serde_json::from_str(&seen.fill(json)).unwrap();
                line.get(name) == Some(&expected)
            }
            _ => false,
        }
    }
}

impl Seen {
    fn fill(&self, text: &str) -> String {
        text.replace("@PORT@", &self.port.to_string()).replace("@IP@", &self.ip)
    }

    fn all_that_came(&self) -> String {
        let texts = self.requests.iter().map(|request| {
            let body = String::from_utf8_lossy(&request.body);
            format!("{}{body}", request.head)
        });
        texts.collect()
    }
}

/// What was seen, in one line: as much of it as `Summary`'s reader needs to tell two routers apart.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(left) = &self.left {
            let said = left.stderr.lines().last().unwrap_or_default();
            return write!(f, "exits with {:?}: {}", left.code, cut(said));
        }
        match &self.answer {
            None => write!(f, "no answer")?,
            Some(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                write!(f, "{} {}", answer.status, cut(body.trim_end()))?;
                if !answer.whole {
                    write!(f, " (cut)")?;
                }
            }
        }
        match self.stays {
            Some(true) => write!(f, "; stays")?,
            Some(false) => write!(f, "; closes")?,
            None => {}
        }
        match self.requests.as_slice() {
            [] => write!(f, "; app: nothing"),
            requests => {
                let line = requests[0].head.lines().next().unwrap_or_default();
                write!(f, "; app: {} x {}", requests.len(), cut(line))
            }
        }
    }
}

fn cut(text: &str) -> String {
    let text: String = text.escape_debug().take(70).collect();
    text.replace("\\\"", "\"")
}
