//! Addresses of documents on the web, of which only HTTPS is taken.

use http::Uri;
use std::fmt;
use std::str::FromStr;

/// An absolute `https` URL without user information or fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsUrl(Uri);

/// Why a text is no [`HttpsUrl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpsUrlError {
    /// No URL, or one without a host.
    #[error("is no URL; write it like https://issuer.example")]
    Form,
    /// Another scheme.
    #[error("must begin with https://: whoever can change what comes over plain HTTP decides who calls")]
    Scheme,
    /// A user's name or password.
    #[error("must not hold a user's name or password")]
    UserInfo,
    /// A fragment.
    #[error("must not hold a fragment (#...)")]
    Fragment,
}

impl HttpsUrl {
    /// The whole of it.
    pub(crate) fn uri(&self) -> &Uri {
        &self.0
    }

    /// Host and port as `Host` has them.
    pub(crate) fn authority(&self) -> &str {
        self.0.authority().map(http::uri::Authority::as_str).unwrap_or_default()
    }

    /// Whether it holds a query.
    pub(super) fn has_query(&self) -> bool {
        self.0.query().is_some()
    }
}

impl FromStr for HttpsUrl {
    type Err = HttpsUrlError;
    fn from_str(text: &str) -> Result<Self, HttpsUrlError> {
        // `Uri` drops fragments without a word.
        if text.contains('#') {
            return Err(HttpsUrlError::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| HttpsUrlError::Form)?;
        match uri.scheme_str() {
            Some("https") => {}
            Some(_) => return Err(HttpsUrlError::Scheme),
            None => return Err(HttpsUrlError::Form),
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(HttpsUrlError::UserInfo);
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(HttpsUrlError::Form);
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_as_connections_need_it() {
        for (text, authority) in [
            ("https://a.example", "a.example"),
            ("https://a.example:8443/x?y=z", "a.example:8443"),
            ("https://[::1]:1/x/", "[::1]:1"),
        ] {
            let url: HttpsUrl = text.parse().unwrap();
            assert_eq!(url.authority(), authority, "{text}");
            assert_eq!(*url.uri(), text, "{text}");
        }
    }

    #[test]
    fn nothing_but_https_is_taken() {
        for (text, error) in [
            ("", HttpsUrlError::Form),
            ("a.example", HttpsUrlError::Form),
            ("/path", HttpsUrlError::Form),
            ("https://", HttpsUrlError::Form),
            ("https://a b", HttpsUrlError::Form),
            ("http://a.example", HttpsUrlError::Scheme),
            ("http://127.0.0.1", HttpsUrlError::Scheme),
            ("file:///etc/passwd", HttpsUrlError::Form),
            ("https://user@a.example", HttpsUrlError::UserInfo),
            ("https://a.example#x", HttpsUrlError::Fragment),
        ] {
            assert_eq!(text.parse::<HttpsUrl>(), Err(error), "{text}");
        }
    }
}
