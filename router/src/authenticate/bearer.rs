//! The bearer token of a request (RFC 6750 section 2.1).

use crate::error::RouterError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sandgate_mesh::headers::only;

/// The token, without the white space around it, if the head has an `Authorization` at all.
///
/// # Errors
/// It has another one, or several: two readers could take different ones.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, RouterError> {
    let value = only(headers, &AUTHORIZATION).map_err(|_| RouterError::NoCredential)?;
    let Some(value) = value else { return Ok(None) };
    match value.as_bytes().split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(Some(token.trim_ascii())),
        _ => Err(RouterError::NoCredential),
    }
}

/// The token, where there has to be one.
///
/// # Errors
/// There is none; see [`bearer`].
pub(super) fn required(headers: &HeaderMap) -> Result<&[u8], RouterError> {
    bearer(headers)?.ok_or(RouterError::NoCredential)
}
