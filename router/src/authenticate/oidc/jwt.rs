//! A token as it stands on the wire: a JWS in compact form (RFC 7515 section 7.1), read strictly (RFC 8725).

use super::Refused;
use crate::config::SigningAlgorithm;
use data_encoding::BASE64URL_NOPAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Longest token that is read, in bytes: an issuer that puts more into one would find no server to take it.
const MAX_BYTES: usize = 16 * 1024;
/// Most members of a header or of claims.
const MAX_MEMBERS: usize = 256;
/// Longest key ID in bytes.
const MAX_KEY_ID: usize = 256;
/// What a token may say that it is: an ID token, or an access token (RFC 9068). Others, such as logout tokens, are signed
/// with the same keys.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// A JSON object, each name of which occurs once. What nests in it is left to whoever reads it.
pub(super) struct Object(BTreeMap<String, Value>);

impl Object {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    fn read(part: &str) -> Result<Self, Refused> {
        let json = decoded(part)?;
        serde_json::from_slice(&json).map_err(|_| Refused::Json)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    // Two readers could take different ones.
                    if members.insert(name, value).is_some() || members.len() > MAX_MEMBERS {
                        return Err(A::Error::custom("a name occurs twice, or there are too many"));
                    }
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A token whose form is right. Nobody has verified it.
pub(super) struct Jwt<'a> {
    pub(super) algorithm: SigningAlgorithm,
    /// The key that it says it is signed with. Nothing else in the header leads to a key: `jwk`, `jku`, `x5c` and `x5u` are
    /// the sender's to choose.
    pub(super) key_id: Option<String>,
    pub(super) claims: Object,
    /// What is signed: the token up to its last dot, as it stands.
    pub(super) signed: &'a [u8],
    pub(super) signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    /// Takes a token apart.
    pub(super) fn parse(token: &'a [u8]) -> Result<Self, Refused> {
        if token.len() > MAX_BYTES {
            return Err(Refused::TooLong);
        }
        let text = std::str::from_utf8(token).map_err(|_| Refused::Form)?;
        let (signed, signature) = text.rsplit_once('.').ok_or(Refused::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Form)?;
        if claims.contains('.') {
            return Err(Refused::Form);
        }
        let (algorithm, key_id) = read_header(&Object::read(header)?)?;
        Ok(Self {
            algorithm,
            key_id,
            claims: Object::read(claims)?,
            signed: signed.as_bytes(),
            signature: decoded(signature)?,
        })
    }
}

fn read_header(header: &Object) -> Result<(SigningAlgorithm, Option<String>), Refused> {
    // Whoever doesn't understand an extension that is called critical must not go on (RFC 7515 section 4.1.11).
    if header.get("crit").is_some() {
        return Err(Refused::Critical);
    }
    let typ = header
        .get("typ")
        .map(|typ| typ.as_str().ok_or(Refused::Type))
        .transpose()?;
    if let Some(typ) = typ {
        let typ = typ.to_ascii_lowercase();
        if !TYPES.contains(&typ.strip_prefix("application/").unwrap_or(&typ)) {
            return Err(Refused::Type);
        }
    }
    let algorithm = header.get("alg").and_then(Value::as_str);
    let algorithm = algorithm.and_then(|name| name.parse().ok()).ok_or(Refused::Algorithm)?;
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if id.len() <= MAX_KEY_ID => Some(id.clone()),
        Some(_) => return Err(Refused::Form),
    };
    Ok((algorithm, key_id))
}

/// Base64url in its one spelling: no padding, no white space, no set bits behind the last byte.
fn decoded(part: &str) -> Result<Vec<u8>, Refused> {
    BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| Refused::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        format!("{}.{}.AAAA", part(header), part(claims))
    }

    fn refused(token: &str) -> Refused {
        Jwt::parse(token.as_bytes()).err().unwrap()
    }

    #[test]
    fn a_token_is_taken_apart() {
        let text = token(
            r#"{"alg":"ES256","kid":"k","typ":"JWT","jku":"https://evil.example"}"#,
            r#"{"sub":"a"}"#,
        );
        let jwt = Jwt::parse(text.as_bytes()).unwrap();
        assert_eq!(jwt.algorithm, SigningAlgorithm::Es256);
        assert_eq!(jwt.key_id.as_deref(), Some("k"));
        assert_eq!(jwt.claims.get("sub"), Some(&Value::from("a")));
        assert_eq!(jwt.signed, text.rsplit_once('.').unwrap().0.as_bytes());
        assert_eq!(jwt.signature, [0; 3]);
        for typ in ["at+jwt", "application/at+JWT"] {
            assert!(Jwt::parse(token(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#), "{}").as_bytes()).is_ok());
        }
    }

    #[test]
    fn whatever_could_be_read_in_two_ways_is_refused() {
        let good = token(r#"{"alg":"RS256"}"#, "{}");
        assert!(Jwt::parse(good.as_bytes()).is_ok());
        for bad in [
            String::new(),
            "a".into(),
            "..".into(),
            "...".into(),
            good.replace('.', ""),
            format!("{good}."),
            format!("{good}.AAAA"),
            format!("{good}="),
            format!("{good} "),
            // A set bit behind the last byte.
            good.replace(".AAAA", ".AAB"),
            good.replace(".AAAA", ".A+AA"),
        ] {
            assert!(matches!(refused(&bad), Refused::Form | Refused::Json), "{bad}");
        }
        for (header, claims) in [
            (r#"{"alg":"RS256"} x"#, "{}"),
            (r#"{"alg":"RS256","alg":"ES256"}"#, "{}"),
            (r#"{"alg":"RS256","\u0061lg":"ES256"}"#, "{}"),
            (r#"{"alg":"RS256"}"#, r#"{"sub":"a","sub":"b"}"#),
            (r#"{"alg":"RS256"}"#, "[]"),
            (r#"{"alg":"RS256"}"#, "null"),
            (r#"["RS256"]"#, "{}"),
        ] {
            assert_eq!(refused(&token(header, claims)), Refused::Json, "{header} {claims}");
        }
        let many: Vec<_> = (0..257).map(|number| format!(r#""{number}":0"#)).collect();
        assert_eq!(
            refused(&token(r#"{"alg":"RS256"}"#, &format!("{{{}}}", many.join(",")))),
            Refused::Json
        );
        assert_eq!(refused(&"a".repeat(MAX_BYTES + 1)), Refused::TooLong);
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(refused(&token(r#"{"alg":"RS256"}"#, &deep)), Refused::Json);
    }

    #[test]
    fn a_header_that_asks_for_anything_else_is_refused() {
        for (header, expected) in [
            (r#"{"alg":"none"}"#, Refused::Algorithm),
            (r#"{"alg":"None"}"#, Refused::Algorithm),
            (r#"{"alg":"HS256"}"#, Refused::Algorithm),
            (r#"{"alg":"rs256"}"#, Refused::Algorithm),
            (r#"{"alg":["RS256"]}"#, Refused::Algorithm),
            (r#"{"alg":null}"#, Refused::Algorithm),
            ("{}", Refused::Algorithm),
            (r#"{"alg":"RS256","crit":["b64"],"b64":false}"#, Refused::Critical),
            (r#"{"alg":"RS256","crit":[]}"#, Refused::Critical),
            (r#"{"alg":"RS256","crit":null}"#, Refused::Critical),
            (r#"{"alg":"RS256","typ":"logout+jwt"}"#, Refused::Type),
            (r#"{"alg":"RS256","typ":7}"#, Refused::Type),
            (r#"{"alg":"RS256","kid":7}"#, Refused::Form),
            (r#"{"alg":"RS256","kid":null}"#, Refused::Form),
        ] {
            assert_eq!(refused(&token(header, "{}")), expected, "{header}");
        }
    }
}
