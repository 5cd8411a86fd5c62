//! Judges heads and trailer sections, line by line as the lines arrive.

use super::{Limits, Violation};
use http::{Uri, Version};
use memchr::{memchr, memchr2, memchr3_iter};

/// The longest body a message may announce: what every hop can count in a signed 64-bit integer.
pub(super) const MAX_LENGTH: u64 = u64::MAX >> 1;
/// Digits of [`MAX_LENGTH`].
const MAX_LENGTH_DIGITS: usize = 19;

/// The lines of one head or trailer section. The caller presents the section from its first byte each time.
#[derive(Default)]
pub(super) struct Section {
    /// Where the first line that was not yet returned starts.
    next: usize,
    /// Up to where that line was searched for its end.
    searched: usize,
}

impl Section {
    /// The next line without its CRLF, or nothing when more bytes are needed.
    pub(super) fn line<'a>(&mut self, bytes: &'a [u8], limits: &Limits) -> Result<Option<&'a [u8]>, Violation> {
        let section = bytes.get(..limits.head_bytes).unwrap_or(bytes);
        let unsearched = section.get(self.searched..).unwrap_or_default();
        let found = memchr2(b'\r', b'\n', unsearched);
        self.searched += found.unwrap_or(unsearched.len());
        match section.get(self.searched..).unwrap_or_default() {
            [b'\r', b'\n', ..] => {
                let line = section.get(self.next..self.searched).unwrap_or_default();
                self.searched += 2;
                self.next = self.searched;
                Ok(Some(line))
            }
            [b'\n', ..] => Err(Violation::BareLineFeed),
            [b'\r', _, ..] => Err(Violation::BareCarriageReturn),
            _ if bytes.len() > limits.head_bytes => Err(Violation::HeadTooLarge),
            _ => Ok(None),
        }
    }

    /// How many bytes the lines returned so far have.
    pub(super) fn len(&self) -> usize {
        self.next
    }

    /// Whether the line that comes next, complete or not, is a request line whose target is too long.
    pub(super) fn target_too_long(&self, bytes: &[u8], limits: &Limits) -> bool {
        let section = bytes.get(..limits.head_bytes).unwrap_or(bytes);
        let line = section.get(self.next..).unwrap_or_default();
        if line.len() <= limits.target_bytes {
            return false;
        }
        let mut ends = memchr3_iter(b' ', b'\r', b'\n', line);
        // A line break ends the line, whatever is behind it: no target starts there.
        let method_end = ends.next().filter(|end| line.get(*end) == Some(&b' '));
        let Some(method_end) = method_end else { return false };
        let target_end = ends.next().unwrap_or(line.len());
        target_end - method_end - 1 > limits.target_bytes
    }
}

/// How long a message's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Neither Content-Length nor Transfer-Encoding.
    Unsaid,
    /// Content-Length.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What a section's field lines said so far about framing.
pub(super) struct Fields {
    lines: usize,
    /// Whether there was a Host line.
    pub(super) host: bool,
    /// The body's length.
    pub(super) framing: Framing,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            lines: 0,
            host: false,
            framing: Framing::Unsaid,
        }
    }
}

impl Fields {
    /// Judges one field line: `field-name ":" OWS field-value OWS`.
    pub(super) fn line(&mut self, line: &[u8], limits: &Limits) -> Result<(), Violation> {
        self.lines += 1;
        if self.lines > limits.headers {
            return Err(Violation::TooManyHeaders);
        }
        if let [b' ' | b'\t', ..] = line {
            return Err(Violation::FoldedLine);
        }
        // A token ends at the colon, or the line is wrong.
        let end = line.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(line.len());
        let (name, rest) = line.split_at_checked(end).ok_or(Violation::MissingColon)?;
        let Some((b':', value)) = rest.split_first() else {
            return Err(bad_name(line));
        };
        if name.is_empty() {
            return Err(Violation::FieldName);
        }
        if !is_text(value) {
            return Err(Violation::FieldValue);
        }
        self.framing_field(name, value)
    }

    fn framing_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Violation> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host {
                    return Err(Violation::HostRepeated);
                }
                self.host = true;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.framing = match self.framing {
                    Framing::Unsaid => Framing::Length(length(value)?),
                    Framing::Length(_) => return Err(Violation::ContentLengthRepeated),
                    Framing::Chunked => return Err(Violation::BothFramings),
                };
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.framing = match self.framing {
                    Framing::Unsaid if without_edges(value).eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
                    Framing::Unsaid | Framing::Chunked => return Err(Violation::TransferEncoding),
                    Framing::Length(_) => return Err(Violation::BothFramings),
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// The framing of a complete head in `version`.
    pub(super) fn framing_in(&self, version: Version) -> Result<Framing, Violation> {
        if self.framing == Framing::Chunked && version == Version::HTTP_10 {
            return Err(Violation::TransferEncodingInHttp10);
        }
        Ok(self.framing)
    }
}

/// Judges a trailer section: field lines that leave the message's framing and host alone (RFC 9110 section 6.5.1).
#[derive(Default)]
pub(super) struct Trailers {
    section: Section,
    fields: Fields,
}

impl Trailers {
    /// The section's length, or nothing when more bytes are needed.
    pub(super) fn judge(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Violation> {
        while let Some(line) = self.section.line(bytes, limits)? {
            if line.is_empty() {
                return Ok(Some(self.section.len()));
            }
            self.fields.line(line, limits)?;
            if self.fields.host || self.fields.framing != Framing::Unsaid {
                return Err(Violation::TrailerField);
            }
        }
        Ok(None)
    }
}

/// Judges a request line: exactly `method SP target SP HTTP/1.0|1.1`, and not with the method `reserved`.
pub(super) fn request_line(line: &[u8], reserved: &str) -> Result<Version, Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Violation::RequestLine);
    };
    if !is_token(method) {
        return Err(Violation::RequestLine);
    }
    let version = http_version(version)?;
    if method == reserved.as_bytes() {
        return Err(Violation::ReservedMethod);
    }
    if is_target(target) {
        Ok(version)
    } else {
        Err(Violation::Target)
    }
}

/// Judges a status line, `HTTP/1.0|1.1 SP 3DIGIT [SP reason]`, and returns the version and the status.
pub(super) fn status_line(line: &[u8]) -> Result<(Version, u16), Violation> {
    let (version, rest) = line.split_at_checked(8).ok_or(Violation::StatusLine)?;
    let version = http_version(version)?;
    let (status, reason) = rest.split_at_checked(4).ok_or(Violation::StatusLine)?;
    let [b' ', hundreds @ b'1'..=b'5', tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = status else {
        return Err(Violation::StatusLine);
    };
    if !(reason.is_empty() || reason.starts_with(b" ") && is_text(reason)) {
        return Err(Violation::StatusLine);
    }
    let digit = |byte: &u8| u16::from(*byte - b'0');
    Ok((version, digit(hundreds) * 100 + digit(tens) * 10 + digit(ones)))
}

fn http_version(word: &[u8]) -> Result<Version, Violation> {
    match word {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        _ => Err(Violation::Version),
    }
}

/// Whether hyper takes the target, in full. Of an origin-form target it takes these bytes (a test compares), of the
/// rarer forms what [`Uri`] takes.
pub(super) fn is_target(target: &[u8]) -> bool {
    if !target.starts_with(b"/") {
        return target.iter().all(|byte| matches!(byte, 0x21..=0x7e) && *byte != b'#') && Uri::try_from(target).is_ok();
    }
    let query = memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at_checked(query).unwrap_or_default();
    path.iter()
        .all(|byte| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'`'))
        && query
            .iter()
            .all(|byte| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'"'))
}

/// What is wrong with a field line whose first bytes up to a colon are no `token`.
fn bad_name(line: &[u8]) -> Violation {
    match memchr(b':', line).and_then(|colon| line.get(..colon)) {
        None => Violation::MissingColon,
        Some([.., b' ' | b'\t']) => Violation::SpaceBeforeColon,
        Some(_) => Violation::FieldName,
    }
}

/// Whether the bytes are `token` (RFC 9110 section 5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES.get(usize::from(byte)).is_some_and(|token| *token)
}

/// By byte: whether a `token` may have it. Every name in every head is looked up here.
static TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut rest: &[u8] = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    while let [byte, others @ ..] = rest {
        if let Some((_, [token, ..])) = table.split_at_mut_checked(*byte as usize) {
            *token = true;
        }
        rest = others;
    }
    table
};

/// Whether the bytes have no control byte but HTAB.
fn is_text(bytes: &[u8]) -> bool {
    // Without a way out early the compiler can look at many bytes at once.
    bytes.iter().fold(true, |text, byte| text & is_text_byte(*byte))
}

/// HTAB, SP, VCHAR or obs-text (RFC 9110 section 5.5).
pub(super) fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The bytes without the optional white space around them.
fn without_edges(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// A Content-Length's value: digits, and nothing else.
fn length(value: &[u8]) -> Result<u64, Violation> {
    let digits = without_edges(value);
    if digits.is_empty() || digits.len() > MAX_LENGTH_DIGITS {
        return Err(Violation::ContentLength);
    }
    let mut length = 0_u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(Violation::ContentLength);
        }
        // Nineteen digits fit into a u64.
        length = length * 10 + u64::from(*digit - b'0');
    }
    if length > MAX_LENGTH {
        Err(Violation::ContentLength)
    } else {
        Ok(length)
    }
}
