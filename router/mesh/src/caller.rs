//! Who is calling, how that is written in logs and policies, and how a router asserts it to a gate.
//!
//! Callers are typed: each credential has its own kind, and no kind's name can be spelt as another's. The assertion
//! (header [`X_SANDGATE_CALLER`](crate::contract::X_SANDGATE_CALLER)) has exactly one spelling per caller:
//! `v1;<kind>;<name>[;<group>]*`, percent-encoded, groups shortest first, then by bytes. Any other spelling is refused.

mod kind;

use crate::identity::SpiffeId;
use crate::sandbox::{Namespace, ServiceAccountName};
use http::HeaderValue;
pub(crate) use kind::CallerKind;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_decode_str, utf8_percent_encode};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Longest assertion that a gate reads, in bytes.
pub const MAX_ASSERTION_BYTES: usize = 8 * 1024;
/// Longest name of a caller or group, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Most groups a caller may have.
pub const MAX_GROUPS: usize = 128;
/// What an assertion leaves for groups, encoded: the rest fits the longest kind and a name of which each byte is escaped.
const MAX_GROUPS_ENCODED: usize = MAX_ASSERTION_BYTES - 1024;
/// All but RFC 3986's unreserved characters, so that `;`, `:`, `%` and everything outside ASCII are escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name or a set of groups that no caller can have. It doesn't repeat the name: that came from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// A name or group is empty.
    #[error("a caller's name or group must not be empty")]
    Empty,
    /// A name or group is longer than [`MAX_NAME_BYTES`].
    #[error("a caller's name or group must not be longer than 256 bytes")]
    TooLong,
    /// A name or group holds a control character.
    #[error("a caller's name or group must not hold control characters")]
    ControlCharacter,
    /// A user's name could be taken for another kind of caller.
    #[error(
        "a user's name must not be that of another kind of caller: {}",
        CallerKind::reserved()
    )]
    Reserved,
    /// More than [`MAX_GROUPS`] groups.
    #[error("a caller must not have more than 128 groups")]
    TooManyGroups,
    /// A `ServiceAccount`'s user name isn't one that a `ServiceAccount` can have.
    #[error("a ServiceAccount's user name must hold the names of a namespace and of a ServiceAccount")]
    ServiceAccount,
    /// The groups wouldn't fit an assertion of [`MAX_ASSERTION_BYTES`].
    #[error("a caller's groups must not need more than 7 KiB when percent-encoded")]
    GroupsTooLarge,
}

/// Why a header value isn't an assertion. It doesn't repeat the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AssertionError {
    /// Longer than [`MAX_ASSERTION_BYTES`].
    #[error("caller assertion is longer than 8 KiB")]
    TooLong,
    /// Not `v1;…`: router and gate are of releases that can't work together, or somebody else wrote the header.
    #[error("caller assertion isn't of version v1")]
    Version,
    /// A kind of caller that this release doesn't know.
    #[error("caller assertion is of an unknown kind")]
    Kind,
    /// The name isn't one its kind can have.
    #[error("caller assertion has a name that its kind can't have")]
    Name,
    /// The name or groups break a bound.
    #[error("caller assertion names no valid caller: {0}")]
    Caller(#[from] CallerError),
    /// A caller, but not in the one spelling it has.
    #[error("caller assertion isn't in canonical form")]
    NotCanonical,
}

/// Orders names by length, then by bytes: where names are only looked up, the length alone mostly decides.
pub(crate) fn shortest_first(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

fn check_name(text: &str) -> Result<(), CallerError> {
    if text.is_empty() {
        return Err(CallerError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(CallerError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(CallerError::ControlCharacter);
    }
    Ok(())
}

/// The part of a caller's name that its credential gave: 1 to 256 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallerName(Box<str>);

impl CallerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CallerName {
    type Err = CallerError;
    fn from_str(text: &str) -> Result<Self, CallerError> {
        check_name(text).map(|()| Self(text.into()))
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's name: a [`CallerName`] that can't be taken for another kind of caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserName(CallerName);

impl UserName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for UserName {
    type Err = CallerError;
    fn from_str(text: &str) -> Result<Self, CallerError> {
        let name = text.parse()?;
        match CallerKind::of_name(text) {
            (CallerKind::User, _) => Ok(Self(name)),
            _ => Err(CallerError::Reserved),
        }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A caller's groups, as a set.
///
/// Too many or too long groups are an error, never cut: policies only ever allow, so dropping a group would be safe,
/// but it would deny the caller something at random and say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Groups(Box<[CallerName]>);

impl Groups {
    /// The set of these groups, in any order.
    ///
    /// # Errors
    /// A group that is no [`CallerName`], more than [`MAX_GROUPS`], or more than fit an assertion.
    pub fn new(names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, CallerError> {
        let mut groups: Vec<CallerName> = Vec::new();
        for name in names {
            if groups.len() == MAX_GROUPS {
                return Err(CallerError::TooManyGroups);
            }
            groups.push(name.as_ref().parse()?);
        }
        groups.sort_unstable_by(|one, other| shortest_first(one.as_str(), other.as_str()));
        groups.dedup();
        let encoded = |group: &CallerName| 1 + escaped(group.as_str()).map(str::len).sum::<usize>();
        if groups.iter().map(encoded).sum::<usize>() > MAX_GROUPS_ENCODED {
            return Err(CallerError::GroupsTooLarge);
        }
        Ok(Self(groups.into()))
    }

    /// Whether the caller is in `group`.
    pub(crate) fn contains(&self, group: &str) -> bool {
        self.0
            .binary_search_by(|known| shortest_first(known.as_str(), group))
            .is_ok()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The groups, shortest first, then by bytes.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(CallerName::as_str)
    }
}

/// Who is calling, as the router or the mesh handshake established it.
///
/// `Display` gives the name that logs show and that policies list under `users` (or, for `ServiceAccount`s and SPIFFE
/// IDs, under their own key). No two different kinds share a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Nobody in particular: no credential was asked for. `anonymous`.
    Anonymous,
    /// The holder of a static bearer token. `static:<name>`.
    Static {
        /// The token's configured name.
        name: CallerName,
    },
    /// The holder of a scoped token. `scoped:<key id>`.
    Scoped {
        /// Which key signed the token.
        key_id: CallerName,
    },
    /// A Kubernetes `ServiceAccount`, as the cluster's own issuer or a `TokenReview` named it.
    /// `system:serviceaccount:<namespace>:<name>`.
    ServiceAccount {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: ServiceAccountName,
        /// The groups that came with it.
        groups: Groups,
    },
    /// A user of Kubernetes or of an OIDC issuer. Its bare name.
    User {
        /// The name, with its issuer's prefix.
        name: UserName,
        /// The groups that came with it, with their issuer's prefix.
        groups: Groups,
    },
    /// A client certificate with a SPIFFE ID. `spiffe://…`.
    Spiffe(SpiffeId),
    /// A client certificate without a SPIFFE ID. `cert:<common name>`.
    Certificate {
        /// The subject's common name.
        common_name: CallerName,
    },
}

impl Caller {
    /// The `ServiceAccount` or the user that an API server knows by this name.
    ///
    /// # Errors
    /// A name or groups that no caller can have.
    pub fn of_kubernetes(name: &str, groups: Groups) -> Result<Self, CallerError> {
        let (CallerKind::ServiceAccount, account) = CallerKind::of_name(name) else {
            return Ok(Self::User {
                name: name.parse()?,
                groups,
            });
        };
        let names = account.split_once(':').ok_or(CallerError::ServiceAccount)?;
        Ok(Self::ServiceAccount {
            namespace: names.0.parse().map_err(|_| CallerError::ServiceAccount)?,
            name: names.1.parse().map_err(|_| CallerError::ServiceAccount)?,
            groups,
        })
    }

    /// Whether nobody in particular is calling.
    pub const fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }

    /// Which kind of caller.
    pub(crate) const fn kind(&self) -> CallerKind {
        match self {
            Self::Anonymous => CallerKind::Anonymous,
            Self::Static { .. } => CallerKind::Static,
            Self::Scoped { .. } => CallerKind::Scoped,
            Self::ServiceAccount { .. } => CallerKind::ServiceAccount,
            Self::User { .. } => CallerKind::User,
            Self::Spiffe(_) => CallerKind::Spiffe,
            Self::Certificate { .. } => CallerKind::Certificate,
        }
    }

    /// The value of [`X_SANDGATE_CALLER`](crate::contract::X_SANDGATE_CALLER) that [`Self::from_assertion`] turns into
    /// this caller. Callers are bounded so that it always fits [`MAX_ASSERTION_BYTES`].
    pub fn to_assertion(&self) -> HeaderValue {
        if self.is_anonymous() {
            return HeaderValue::from_static(CallerKind::Anonymous.assertion());
        }
        // Percent-encoded text is always a header value; if that ever broke, the gate must refuse, not guess.
        HeaderValue::try_from(self.assertion(64)).unwrap_or(HeaderValue::from_static("unassertable"))
    }

    /// The assertion, written into a buffer of at first `capacity` bytes.
    fn assertion(&self, capacity: usize) -> String {
        let mut text = String::with_capacity(capacity);
        text.push_str(self.kind().assertion());
        match self {
            Self::Anonymous => {}
            Self::Static { name } | Self::Scoped { key_id: name } | Self::Certificate { common_name: name } => {
                add_field(&mut text, name.as_str());
            }
            Self::ServiceAccount {
                namespace,
                name,
                groups,
            } => {
                // Neither holds what would have to be escaped.
                text.extend([";", namespace.as_str(), ":", name.as_str()]);
                groups.iter().for_each(|group| add_field(&mut text, group));
            }
            Self::User { name, groups } => {
                add_field(&mut text, name.as_str());
                groups.iter().for_each(|group| add_field(&mut text, group));
            }
            Self::Spiffe(id) => add_field(&mut text, id.as_str()),
        }
        text
    }

    /// Reads the value of [`X_SANDGATE_CALLER`](crate::contract::X_SANDGATE_CALLER). Only a router's word counts: the
    /// caller of this function has checked who sent it, and that it came exactly once.
    ///
    /// # Errors
    /// Anything that [`Self::to_assertion`] wouldn't have written.
    pub fn from_assertion(value: &[u8]) -> Result<Self, AssertionError> {
        if value == CallerKind::Anonymous.assertion().as_bytes() {
            return Ok(Self::Anonymous);
        }
        if value.len() > MAX_ASSERTION_BYTES {
            return Err(AssertionError::TooLong);
        }
        let text = std::str::from_utf8(value).map_err(|_| AssertionError::NotCanonical)?;
        let (kind, rest) = text
            .strip_prefix(CallerKind::VERSION)
            .ok_or(AssertionError::Version)?
            .split_once(';')
            .ok_or(AssertionError::Kind)?;
        let mut fields = rest.split(';');
        let name = unescaped(fields.next().unwrap_or_default())?;
        let caller = match CallerKind::asserted(kind).ok_or(AssertionError::Kind)? {
            // Its assertion has no further field.
            CallerKind::Anonymous => return Err(AssertionError::Kind),
            CallerKind::Static => Self::Static { name: name.parse()? },
            CallerKind::Scoped => Self::Scoped { key_id: name.parse()? },
            CallerKind::ServiceAccount => {
                let (namespace, name) = name.split_once(':').ok_or(AssertionError::Name)?;
                Self::ServiceAccount {
                    namespace: namespace.parse().map_err(|_| AssertionError::Name)?,
                    name: name.parse().map_err(|_| AssertionError::Name)?,
                    groups: read_groups(fields)?,
                }
            }
            CallerKind::User => Self::User {
                name: name.parse()?,
                groups: read_groups(fields)?,
            },
            CallerKind::Spiffe => Self::Spiffe(name.parse().map_err(|_| AssertionError::Name)?),
            CallerKind::Certificate => Self::Certificate {
                common_name: name.parse()?,
            },
        };
        // One comparison refuses every other spelling: needless or lower-case escapes, groups out of order or twice,
        // groups or fields where the kind has none.
        if caller.assertion(text.len()) == text {
            Ok(caller)
        } else {
            Err(AssertionError::NotCanonical)
        }
    }
}

fn escaped(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, ESCAPED)
}

fn unescaped(field: &str) -> Result<Cow<'_, str>, AssertionError> {
    percent_decode_str(field)
        .decode_utf8()
        .map_err(|_| AssertionError::NotCanonical)
}

fn add_field(assertion: &mut String, text: &str) {
    assertion.push(';');
    assertion.extend(escaped(text));
}

fn read_groups<'a>(fields: impl Iterator<Item = &'a str>) -> Result<Groups, AssertionError> {
    // Counted before anything is kept: the bound holds for what a peer sends, too.
    let names: Vec<_> = fields.take(MAX_GROUPS + 1).map(unescaped).collect::<Result<_, _>>()?;
    Ok(Groups::new(names)?)
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.kind().prefix();
        match self {
            Self::Anonymous => f.write_str(prefix),
            Self::Static { name } | Self::Scoped { key_id: name } | Self::Certificate { common_name: name } => {
                f.write_str(prefix)?;
                name.fmt(f)
            }
            Self::ServiceAccount { namespace, name, .. } => write!(f, "{prefix}{namespace}:{name}"),
            Self::User { name, .. } => name.fmt(f),
            // The ID holds its prefix itself.
            Self::Spiffe(id) => id.fmt(f),
        }
    }
}

#[cfg(test)]
#[path = "caller_tests.rs"]
pub(crate) mod tests;
