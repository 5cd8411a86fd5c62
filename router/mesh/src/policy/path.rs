//! Which request paths a policy can judge, and which it allows.
//!
//! A path is compared byte for byte as it will be forwarded. That is only safe while the app can't read the same bytes
//! as another path: `/public/%2e%2E/admin` starts with `/public/` and ends at `/admin`. So a path that programs read in
//! different ways matches no pattern at all.

use super::texts::Texts;

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 1024;

/// Why a pattern can't stand in a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("longer than 1024 bytes")]
    TooLong,
    #[error("`*` may only stand at the end, as a whole segment: `/prefix/*`")]
    Wildcard,
    #[error(
        "must be an absolute path that all programs read alike: no query, `//`, dot segments, `;`, `\\`, %2F or %25"
    )]
    Ambiguous,
}

/// Exact paths and prefixes.
#[derive(Debug)]
pub(super) struct Paths {
    exact: Texts,
    /// Each ends with `/`.
    prefixes: Texts,
}

/// Either of the two things a pattern can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern<'a> {
    Exact(&'a str),
    /// Ends with `/`.
    Prefix(&'a str),
}

impl<'a> Pattern<'a> {
    /// Reads `/exact` or `/prefix/*`. A prefix covers `/prefix/` and what is below, not `/prefix`.
    pub(super) fn parse(text: &'a str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN {
            return Err(PatternError::TooLong);
        }
        let prefix = text.strip_suffix('*').filter(|prefix| prefix.ends_with('/'));
        let path = prefix.unwrap_or(text);
        if path.contains('*') {
            return Err(PatternError::Wildcard);
        }
        if !is_unambiguous(path) {
            return Err(PatternError::Ambiguous);
        }
        Ok(prefix.map_or(Self::Exact(text), Self::Prefix))
    }
}

impl Paths {
    pub(super) fn new(patterns: &[Pattern<'_>]) -> Self {
        let exact = |pattern: &Pattern<'_>| {
            if let Pattern::Exact(path) = pattern {
                Some((*path).into())
            } else {
                None
            }
        };
        let prefix = |pattern: &Pattern<'_>| {
            if let Pattern::Prefix(path) = pattern {
                Some((*path).into())
            } else {
                None
            }
        };
        Self {
            exact: patterns.iter().filter_map(exact).collect(),
            prefixes: patterns.iter().filter_map(prefix).collect(),
        }
    }

    /// Whether a pattern covers `path`, which [`is_unambiguous`].
    pub(super) fn cover(&self, path: &str) -> bool {
        let Self { exact, prefixes } = self;
        exact.contains(path) || prefixes.iter().any(|prefix| path.starts_with(prefix))
    }
}

/// Whether every program reads `path` (without query) as the same resource.
pub(super) fn is_unambiguous(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let (inner, last) = rest
        .rsplit_once('/')
        .map_or((None, rest), |(inner, last)| (Some(inner), last));
    // Only the last segment may be empty: `/a/` is plain, `/a//b` is collapsed by some and kept by others.
    inner
        .into_iter()
        .flat_map(|inner| inner.split('/'))
        .all(|segment| !segment.is_empty() && is_plain(segment))
        && is_plain(last)
}

/// Whether a segment holds nothing that could split it, end the path, or make it a dot segment.
fn is_plain(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    let mut length = 0;
    let mut only_dots = true;
    let mut escape_before = None;
    while let Some(byte) = bytes.next() {
        let escape = if byte == b'%' {
            match unescape(&mut bytes) {
                Some(escape) if !hides_something(escape, escape_before) => Some(escape),
                _ => return false,
            }
        } else if matches!(byte, b'\\' | b'#' | b';' | b'?') || !byte.is_ascii_graphic() {
            return false;
        } else {
            None
        };
        only_dots &= escape.unwrap_or(byte) == b'.';
        length += 1;
        escape_before = escape;
    }
    !(only_dots && matches!(length, 1 | 2))
}

/// The byte that the two hexadecimal digits after a `%` stand for.
fn unescape(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
    let value = digit()? * 16 + digit()?;
    u8::try_from(value).ok()
}

/// Whether an escaped byte is a separator, an escape or a control character, or begins an overlong UTF-8 sequence,
/// which lenient decoders take for one of those (RFC 3629 section 10).
fn hides_something(escape: u8, escape_before: Option<u8>) -> bool {
    let overlong = match (escape_before, escape) {
        (_, 0xC0 | 0xC1) => true,
        (Some(0xE0), next) => next < 0xA0,
        (Some(0xF0), next) => next < 0x90,
        _ => false,
    };
    overlong || escape.is_ascii_control() || matches!(escape, b'/' | b'\\' | b'%')
}
