//! One shared bearer token (RFC 6750), as `ROUTER_AUTH_TOKEN` gives it.

use super::{Authenticated, bearer};
use crate::error::RouterError;
use http::HeaderMap;
use sandgate_mesh::caller::Caller;
use subtle::ConstantTimeEq;

/// Holders of the token are all the same caller.
#[derive(Debug)]
pub(crate) struct StaticToken {
    token: Box<[u8]>,
    holder: Authenticated,
}

impl StaticToken {
    pub(crate) fn new(token: &str) -> anyhow::Result<Self> {
        let holder = Caller::Static {
            name: "default".parse()?,
        }
        .into();
        Ok(Self {
            token: token.as_bytes().into(),
            holder,
        })
    }

    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<Authenticated, RouterError> {
        // In constant time, so that nobody can find the token byte by byte.
        if bool::from(bearer::required(headers)?.ct_eq(&self.token)) {
            Ok(self.holder.clone())
        } else {
            Err(RouterError::BadCredential)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::AUTHORIZATION;

    #[test]
    fn only_the_exact_token_in_a_single_header_is_let_in() {
        let token = StaticToken::new("s3cret").unwrap();
        let check = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            token.check(&headers).map(|found| found.caller.to_string())
        };
        assert_eq!(check(&["Bearer s3cret"]), Ok("static:default".into()));
        assert_eq!(check(&["bearer s3cret"]), Ok("static:default".into()));
        for missing in [
            &[][..],
            &["s3cret"],
            &["Basic s3cret"],
            &["Bearer"],
            &["Bearer s3cret", "Bearer s3cret"],
        ] {
            assert_eq!(check(missing), Err(RouterError::NoCredential), "{missing:?}");
        }
        for wrong in [
            "Bearer s3cre",
            "Bearer s3cret1",
            "Bearer S3CRET",
            "Bearer  ",
            "Bearer s3cret s3cret",
        ] {
            assert_eq!(check(&[wrong]), Err(RouterError::BadCredential), "{wrong}");
        }
    }
}
