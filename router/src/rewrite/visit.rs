//! How a browser came to a mounted app: what of its credential the answer has to keep from others.

use http::HeaderValue;

/// What a request presents its credential in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Presented {
    /// In `Authorization`, over the connection, or not at all.
    #[default]
    Otherwise,
    InAddress,
    InCookie,
}

/// How a browser came to an app.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    pub(crate) presented: Presented,
    /// Whether the address that the browser shows has a token in it, be it of use or not.
    pub(crate) told_by_address: bool,
    /// The token that the answer makes a cookie of.
    pub(crate) kept: Option<HeaderValue>,
}

impl Visit {
    /// Whether it was a cookie that let the browser in: the browser sends it whoever asks.
    pub(crate) fn is_by_cookie(&self) -> bool {
        self.presented == Presented::InCookie
    }
}
