//! The epoch: what a leader of the control plane raises before it says anything, so that gates refuse what a former one
//! still says. Hides where it is kept and that several may raise it.

use crate::authority_stored::CERTIFICATE;
use crate::kubernetes::{RequestError, bounded};
use crate::names::{EPOCH_ENTRY, FIELD_MANAGER};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use sandgate_mesh::telemetry::seconds_since_1970;
use std::time::SystemTime;

/// How often it is tried when somebody else changes the Secret at the same time.
const TRIES: u32 = 5;

/// Why there is no new epoch.
#[derive(Debug, thiserror::Error)]
pub(super) enum EpochError {
    /// The Secret isn't there, or nobody has filled it yet.
    #[error("the Secret holds no root yet")]
    NotFilled,
    /// Somebody wrote something else there.
    #[error("the Secret's entry {EPOCH_ENTRY} isn't a number that can be raised; remove it, and it is made anew")]
    Unreadable,
    /// The API server didn't take it.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// A new epoch, higher than each that was before. It is in the Secret when this returns.
///
/// # Errors
/// See [`EpochError`].
pub(super) async fn raise(client: Client, namespace: &str, secret: &str) -> Result<u64, EpochError> {
    let api = Api::<Secret>::namespaced(client, namespace);
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
    };
    let mut tries_left = TRIES;
    loop {
        tries_left -= 1;
        let mut found = bounded(api.get_opt(secret)).await?.ok_or(EpochError::NotFilled)?;
        let data = found.data.get_or_insert_default();
        if !data.contains_key(CERTIFICATE) {
            return Err(EpochError::NotFilled);
        }
        let next = next(data.get(EPOCH_ENTRY), SystemTime::now())?;
        data.insert(EPOCH_ENTRY.into(), ByteString(next.to_string().into_bytes()));
        // With the version that was read: of two leaders one has the lower number, and both know which.
        match bounded(api.replace(secret, &params, &found)).await {
            Ok(_) => return Ok(next),
            Err(error) if error.is_conflict() && tries_left > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// One more than the last, and not below the time in seconds: where the Secret was put back from an old copy, gates have
/// seen epochs that it doesn't know of.
fn next(stored: Option<&ByteString>, now: SystemTime) -> Result<u64, EpochError> {
    let floor = seconds_since_1970(now);
    let Some(stored) = stored else { return Ok(floor) };
    let stored: Option<u64> = std::str::from_utf8(&stored.0)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let raised = stored.and_then(|stored| stored.checked_add(1));
    Ok(raised.ok_or(EpochError::Unreadable)?.max(floor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_epoch_is_higher_than_the_last_whatever_the_clock_and_the_secret_say() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let after = |stored: &str, seconds| next(Some(&ByteString(stored.into())), at(seconds));
        assert_eq!(next(None, at(500)).unwrap(), 500);
        assert_eq!(after("7", 500).unwrap(), 500, "it may come from an old copy");
        assert_eq!(after("500", 500).unwrap(), 501);
        assert_eq!(after(" 900\n", 500).unwrap(), 901, "the clock may be wrong");
        for bad in ["", "x", "-1", "18446744073709551615", "\u{0}"] {
            assert!(matches!(after(bad, 500), Err(EpochError::Unreadable)), "{bad:?}");
        }
    }
}
