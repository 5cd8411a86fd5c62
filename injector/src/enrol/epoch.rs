//! The epoch: what a leader of the control plane raises before it says anything, so that gates refuse what a former one
//! still says; and with it, how long that lasts which former ones have given. Hides where both are kept and that several may
//! raise it.

use crate::authority_stored::CERTIFICATE;
use crate::kubernetes::{RequestError, bounded};
use crate::names::{EPOCH_ENTRY, FIELD_MANAGER, IDENTITIES_ENTRY};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use sandgate_mesh::telemetry::seconds_since_1970;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// How often it is tried when somebody else changes the Secret at the same time.
const TRIES: u32 = 5;

/// How long identities live where nobody has chosen.
const USUAL_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// An epoch that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) number: u64,
    /// When each identity has ended that was given before it.
    pub(super) former_until: SystemTime,
}

/// How long identities last, as each leader writes it down before it gives any: the next may give shorter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Given {
    /// How long this leader's live, in seconds.
    lifetime: u64,
    /// When the last of its predecessors' has ended, in seconds since 1970.
    former_until: u64,
}

/// Why there is no new epoch.
#[derive(Debug, thiserror::Error)]
pub(super) enum EpochError {
    /// The Secret isn't there, or nobody has filled it yet.
    #[error("the Secret holds no root yet")]
    NotFilled,
    /// Somebody wrote something else there.
    #[error("the Secret's entry {0} can't be read, or not be raised; remove it, and it is made anew")]
    Unreadable(&'static str),
    /// The API server didn't take it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A defect of this program.
    #[error("the Secret's entry {IDENTITIES_ENTRY} can't be written: {0}")]
    Write(#[from] serde_json::Error),
}

/// A new epoch, higher than each that was before, of a leader whose identities live so long. It is in the Secret when this
/// returns.
///
/// # Errors
/// See [`EpochError`].
pub(super) async fn raise(
    client: Client,
    namespace: &str,
    secret: &str,
    lifetime: Duration,
) -> Result<Epoch, EpochError> {
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
        let now = SystemTime::now();
        let number = next(data.get(EPOCH_ENTRY), now)?;
        let given = given(data.get(IDENTITIES_ENTRY), lifetime, now)?;
        data.insert(EPOCH_ENTRY.into(), ByteString(number.to_string().into_bytes()));
        data.insert(IDENTITIES_ENTRY.into(), ByteString(serde_json::to_vec(&given)?));
        let former_until = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(given.former_until))
            .ok_or(EpochError::Unreadable(IDENTITIES_ENTRY))?;
        // With the version that was read: of two leaders one has the lower number, and both know which.
        match bounded(api.replace(secret, &params, &found)).await {
            Ok(_) => return Ok(Epoch { number, former_until }),
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
    Ok(raised.ok_or(EpochError::Unreadable(EPOCH_ENTRY))?.max(floor))
}

/// What the leader that begins now writes down. The one before it may have given identities until this moment.
fn given(stored: Option<&ByteString>, lifetime: Duration, now: SystemTime) -> Result<Given, EpochError> {
    let before = match stored {
        Some(stored) => serde_json::from_slice(&stored.0).map_err(|_| EpochError::Unreadable(IDENTITIES_ENTRY))?,
        // Nobody yet, or a release that didn't write it down.
        None => Given {
            lifetime: lifetime.max(USUAL_LIFETIME).as_secs(),
            former_until: 0,
        },
    };
    let last = seconds_since_1970(now).saturating_add(before.lifetime);
    Ok(Given {
        lifetime: lifetime.as_secs(),
        former_until: before.former_until.max(last),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_higher_than_the_last_whatever_the_clock_and_the_secret_say() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let after = |stored: &str, seconds| next(Some(&ByteString(stored.into())), at(seconds));
        assert_eq!(next(None, at(500)).unwrap(), 500);
        assert_eq!(after("7", 500).unwrap(), 500, "it may come from an old copy");
        assert_eq!(after("500", 500).unwrap(), 501);
        assert_eq!(after(" 900\n", 500).unwrap(), 901, "the clock may be wrong");
        for bad in ["", "x", "-1", "18446744073709551615", "\u{0}"] {
            assert!(
                matches!(after(bad, 500), Err(EpochError::Unreadable(EPOCH_ENTRY))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn what_former_leaders_have_given_lasts_as_long_as_it_was_given_for() {
        const HOUR: u64 = 3600;
        let begin = |stored: Option<Given>, hours, at| {
            let stored = stored.map(|given| ByteString(serde_json::to_vec(&given).unwrap()));
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(at * HOUR);
            given(stored.as_ref(), Duration::from_secs(hours * HOUR), now).unwrap()
        };
        let of = |lifetime, until| Given {
            lifetime: lifetime * HOUR,
            former_until: until * HOUR,
        };
        let first = begin(None, 48, 1000);
        assert_eq!(first, of(48, 1048));
        assert_eq!(
            begin(None, 1, 1000),
            of(1, 1024),
            "a release before gave them for a day"
        );
        // A shorter lifetime ends nothing that was given before, however many leaders follow.
        let second = begin(Some(first), 1, 1100);
        assert_eq!(second, of(1, 1148));
        let third = begin(Some(second), 1, 1101);
        assert_eq!(third, of(1, 1148));
        // Nor a longer one in between.
        let fourth = begin(Some(third), 100, 1102);
        assert_eq!(begin(Some(fourth), 1, 1103), of(1, 1203));
        assert_eq!(begin(Some(third), 1, 1500), of(1, 1501));
        for bad in ["", "x", "{}", r#"{"lifetime":-1,"formerUntil":0}"#] {
            let found = given(Some(&ByteString(bad.into())), USUAL_LIFETIME, SystemTime::now());
            assert!(
                matches!(found, Err(EpochError::Unreadable(IDENTITIES_ENTRY))),
                "{bad:?}"
            );
        }
    }
}
