//! The query parameter that holds a token, in the address and wherever a browser repeats it. Hides how a query is read.

use http::header::REFERER;
use http::uri::{InvalidUri, PathAndQuery};
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode;
use std::str::FromStr;

/// The parameter's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterName(Box<str>);

/// Why a text can't be the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParameterNameError {
    /// It has characters that an address has in more than one spelling.
    #[error("must be letters, digits, \"-\", \".\", \"_\" and \"~\"")]
    Escaped,
}

impl FromStr for ParameterName {
    type Err = ParameterNameError;
    fn from_str(text: &str) -> Result<Self, ParameterNameError> {
        let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        if !text.is_empty() && text.bytes().all(unreserved) {
            Ok(Self(text.into()))
        } else {
            Err(ParameterNameError::Escaped)
        }
    }
}

/// What a query holds, where the parameter is in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// As often as it occurs, decoded.
    pub(super) values: Vec<Vec<u8>>,
    /// All else, byte for byte; `None` where there is nothing else.
    rest: Option<String>,
}

impl Found {
    /// A path with what is left of its query.
    pub(super) fn without(&self, path: &str) -> Result<PathAndQuery, InvalidUri> {
        match &self.rest {
            Some(rest) => PathAndQuery::try_from(format!("{path}?{rest}")),
            None => PathAndQuery::try_from(path),
        }
    }
}

/// Text as forms encode it (WHATWG URL, section 5.1).
fn decoded(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

/// Takes the parameter out of a query, in whatever way its name is escaped: the app would read it in each.
pub(super) fn take(query: &str, name: &ParameterName) -> Option<Found> {
    let mut values = Vec::new();
    let mut others = Vec::new();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decoded(key) == name.0.as_bytes() {
            values.push(decoded(value));
        } else {
            others.push(pair);
        }
    }
    let rest = (!others.is_empty()).then(|| others.join("&"));
    (!values.is_empty()).then_some(Found { values, rest })
}

/// Takes the parameter out of the address of the page that a request comes from. The router asks browsers not to send that
/// one, but the page may ask for the opposite.
pub(super) fn clean_referer(headers: &mut HeaderMap, name: &ParameterName) {
    let tells = |line: &HeaderValue| line.as_bytes().contains(&b'?');
    if !headers.get_all(REFERER).iter().any(tells) {
        return;
    }
    let lines: Vec<HeaderValue> = headers.get_all(REFERER).iter().cloned().collect();
    headers.remove(REFERER);
    for line in lines {
        // What isn't text is no address.
        let Ok(text) = line.to_str() else { continue };
        let Some((before, found)) = text
            .split_once('?')
            .and_then(|(before, query)| Some((before, take(query, name)?)))
        else {
            headers.append(REFERER, line);
            continue;
        };
        let cleaned = match found.rest {
            Some(rest) => format!("{before}?{rest}"),
            None => before.to_owned(),
        };
        // A part of a header value is one.
        if let Ok(cleaned) = HeaderValue::try_from(cleaned) {
            headers.append(REFERER, cleaned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ParameterName {
        "token".parse().unwrap()
    }

    fn taken(query: &str) -> Option<(Vec<String>, String)> {
        let found = take(query, &name())?;
        let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
        let rest = found.without("/x").unwrap().to_string();
        Some((found.values.iter().map(text).collect(), rest))
    }

    #[test]
    fn the_parameter_goes_in_every_spelling_and_all_else_stays_byte_for_byte() {
        for (query, values, rest) in [
            ("token=a", &["a"][..], "/x"),
            ("token=a&", &["a"], "/x?"),
            ("&token=a", &["a"], "/x?"),
            ("b=%2F&token=a&c", &["a"], "/x?b=%2F&c"),
            ("t%6Fken=a&b==&&c=%zz+", &["a"], "/x?b==&&c=%zz+"),
            ("%74%6f%6b%65%6e=a%2Bb%3D+c", &["a+b= c"], "/x"),
            ("token", &[""], "/x"),
            ("token=", &[""], "/x"),
            ("token=a=b", &["a=b"], "/x"),
            ("token=a&b&token=c", &["a", "c"], "/x?b"),
            ("token=a&tok%65n=a", &["a", "a"], "/x"),
        ] {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            assert_eq!(taken(query), Some((values, rest.to_owned())), "{query}");
        }
        for others in [
            "",
            "a",
            "Token=a",
            "token%20=a",
            "+token=a",
            "a=token=b",
            "xtoken=a",
            "token%=a",
        ] {
            assert_eq!(taken(others), None, "{others}");
        }
    }

    #[test]
    fn a_name_that_addresses_escape_is_refused() {
        for good in ["token", "access_token", "a-b.c~D9"] {
            assert!(good.parse::<ParameterName>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a+b", "a=b", "a&b", "a%62", "t\u{f6}ken", "a/b", "token[]"] {
            assert_eq!(bad.parse::<ParameterName>(), Err(ParameterNameError::Escaped), "{bad}");
        }
    }

    #[test]
    fn the_address_of_a_page_is_repeated_without_the_token() {
        for (sent, passed_on) in [
            ("https://a.example/p/x/?token=a", &["https://a.example/p/x/"][..]),
            ("https://a.example/?b=1&t%6Fken=a&c", &["https://a.example/?b=1&c"]),
            ("https://a.example/?b=token", &["https://a.example/?b=token"]),
            ("https://a.example/token=a", &["https://a.example/token=a"]),
        ] {
            let mut headers: HeaderMap = [(REFERER, sent.parse().unwrap())].into_iter().collect();
            clean_referer(&mut headers, &name());
            let left: Vec<_> = headers.get_all(REFERER).iter().collect();
            assert_eq!(left, passed_on, "{sent}");
        }
        let mut headers = HeaderMap::new();
        headers.append(
            REFERER,
            HeaderValue::from_bytes(b"https://a.example/\xff?token=a").unwrap(),
        );
        headers.append(REFERER, HeaderValue::from_static("https://b.example/?token=a"));
        clean_referer(&mut headers, &name());
        assert_eq!(
            headers.get_all(REFERER).iter().collect::<Vec<_>>(),
            ["https://b.example/"]
        );
    }
}
