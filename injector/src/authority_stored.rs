//! What the authority's Secret holds, read and checked. Hides its entries' names from those who use it.

use crate::authority::{Authority, AuthorityError, ExternalAuthority, NewRoot, Root, RootId};
use crate::rotation::{Rotation, Step};
use k8s_openapi::ByteString;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The entry with the root that signs.
pub(crate) const CERTIFICATE: &str = "tls.crt";
/// Its key.
pub(crate) const KEY: &str = "tls.key";
/// The certificate of a root that will sign later: trusted ahead of time.
pub(crate) const NEXT_CERTIFICATE: &str = "next.crt";
/// Its key; none where somebody replaces the root by hand.
pub(crate) const NEXT_KEY: &str = "next.key";
/// The certificate of the root that signed before: trusted as long as somebody may need it.
pub(crate) const PREVIOUS_CERTIFICATE: &str = "previous.crt";
/// Its key: some gates know the control plane by that root only.
pub(crate) const PREVIOUS_KEY: &str = "previous.key";
/// The certificate of the root that was retired last. Nobody trusts it; pods were born with it beside the one that signs.
pub(crate) const RETIRED_CERTIFICATE: &str = "retired.crt";
/// Where roots come from: [`FILES`], or none where the injector makes them.
pub(crate) const SOURCE: &str = "source";
/// Somebody else makes them, and gives them to the injector in files.
pub(crate) const FILES: &str = "files";
/// Where the replacement of the root is.
pub(crate) const ROTATION: &str = "rotation";

/// The Secret's data.
pub(crate) type Content = BTreeMap<String, ByteString>;

/// Why nobody can say where the replacement of the root is. The roots serve as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    /// Somebody wrote something else there, or a later release did.
    #[error("entry {ROTATION} can't be read: {0}; remove it, or run the release that has written it")]
    Unreadable(String),
    /// Somebody changed the roots by hand.
    #[error(
        "entry {ROTATION} is in the step {0}, and the roots beside it aren't those of that step: put them back, or remove that \
         entry with {NEXT_CERTIFICATE}, {NEXT_KEY}, {PREVIOUS_CERTIFICATE} and {PREVIOUS_KEY}"
    )]
    OtherRoots(Step),
    /// The next root could never sign.
    #[error("entry {NEXT_KEY}: {0}")]
    NextKey(AuthorityError),
}

/// What the Secret held when it was last read.
pub(crate) struct Stored {
    /// The root that signs.
    pub(crate) authority: Authority,
    /// The one that signed before, as long as there are gates that may know no other.
    pub(crate) previous: Option<Authority>,
    /// Every root that is to be trusted: the one that signs first.
    pub(crate) roots: Vec<Root>,
    /// The one of them that signed before.
    pub(crate) leaves: Option<Root>,
    /// The one that was retired last: nobody trusts it, and gates may have been born with it.
    pub(crate) retired: Option<Root>,
    /// Where the replacement of the root is; none if there never was one.
    pub(crate) rotation: Result<Option<Rotation>, Misfit>,
    pub(crate) content: Content,
}

impl Stored {
    /// What this content means.
    ///
    /// # Errors
    /// The entry that can't be used, and why.
    pub(crate) fn read(content: Content) -> Result<Self, (&'static str, AuthorityError)> {
        let now = SystemTime::now();
        let part = |key: &str| content.get(key).map(|part| part.0.as_slice()).unwrap_or_default();
        let authority = authority(part(CERTIFICATE), part(KEY), now).map_err(|cause| {
            let about_key = matches!(cause, AuthorityError::Key | AuthorityError::KeyMismatch);
            (if about_key { KEY } else { CERTIFICATE }, cause)
        })?;
        let root = |key: &'static str| match part(key) {
            [] => Ok(None),
            pem => Root::from_pem(pem).map(Some).map_err(|cause| (key, cause)),
        };
        let (next, previous, retired) = (
            root(NEXT_CERTIFICATE)?,
            root(PREVIOUS_CERTIFICATE)?,
            root(RETIRED_CERTIFICATE)?,
        );
        let rotation = rotation(&content, authority.root(), next.as_ref(), previous.as_ref());
        // Nobody is under it any more once it has expired.
        let previous = previous.filter(|root| root.valid_at(now));
        let leaves = previous.clone();
        let roots = [Some(authority.root().clone()), next, previous.clone()];
        let previous = match (previous, part(PREVIOUS_KEY)) {
            (None, _) | (_, []) => None,
            (Some(_), key) => {
                let found = self::authority(part(PREVIOUS_CERTIFICATE), key, now);
                Some(found.map_err(|cause| (PREVIOUS_KEY, cause))?)
            }
        };
        Ok(Self {
            authority,
            previous,
            roots: roots.into_iter().flatten().collect(),
            leaves,
            retired,
            rotation,
            content,
        })
    }

    /// Whether the Secret held the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.content == other.content
    }

    /// The replacement that is under way.
    pub(crate) fn under_way(&self) -> Option<&Rotation> {
        self.last().filter(|rotation| rotation.is_under_way())
    }

    /// The last replacement, if there was one that can be read.
    fn last(&self) -> Option<&Rotation> {
        self.rotation.as_ref().ok().and_then(Option::as_ref)
    }

    /// Whether somebody else makes the roots.
    pub(crate) fn is_external(&self) -> bool {
        is_external(&self.content)
    }

    /// Whether a root isn't to be taken from anywhere.
    pub(crate) fn has_left(&self, root: &Root) -> bool {
        self.last().is_some_and(|rotation| rotation.has_left(root))
    }

    /// What the next replacement has to keep in mind of those before it.
    pub(crate) fn formerly(&self) -> Vec<RootId> {
        self.last().map(Rotation::formerly).unwrap_or_default()
    }

    /// The roots that are never to be trusted again.
    pub(crate) fn left(&self) -> &[RootId] {
        self.last().map(Rotation::left).unwrap_or_default()
    }
}

/// Whether somebody else makes the roots, as this content says.
pub(crate) fn is_external(content: &Content) -> bool {
    content.get(SOURCE).is_some_and(|source| source.0 == FILES.as_bytes())
}

/// What the first replica stores.
pub(crate) fn new_content() -> Result<Content, rcgen::Error> {
    let root = NewRoot::generate()?;
    Ok(Content::from([
        part(CERTIFICATE, root.certificate_pem),
        part(KEY, root.key_pem),
    ]))
}

/// What it stores where somebody else makes the roots.
pub(crate) fn external_content(authority: &ExternalAuthority) -> Content {
    Content::from([
        part(CERTIFICATE, authority.certificate_pem()),
        part(KEY, authority.key_pem().to_owned()),
        part(SOURCE, FILES.to_owned()),
    ])
}

fn part(key: &str, text: String) -> (String, ByteString) {
    (key.to_owned(), ByteString(text.into_bytes()))
}

fn authority(certificate: &[u8], key: &[u8], now: SystemTime) -> Result<Authority, AuthorityError> {
    Authority::from_pem(certificate, key, now)
}

/// The replacement that is stored, if the roots beside it are its own.
fn rotation(
    content: &Content,
    signs: &Root,
    next: Option<&Root>,
    previous: Option<&Root>,
) -> Result<Option<Rotation>, Misfit> {
    let Some(stored) = content.get(ROTATION).filter(|stored| !stored.0.is_empty()) else {
        return Ok(None);
    };
    let rotation: Rotation =
        serde_json::from_slice(&stored.0).map_err(|error| Misfit::Unreadable(error.to_string()))?;
    let is = |root: Option<&Root>, id: &RootId| root.is_some_and(|root| root.id() == *id);
    let old_is = |root| matches!(rotation.from.as_slice(), [old] if is(root, old));
    let (to, signs) = (rotation.to, Some(signs));
    let fits = match rotation.step {
        Step::Distribute => old_is(signs) && is(next, &to) && previous.is_none(),
        Step::Switch => is(signs, &to) && old_is(previous) && next.is_none(),
        Step::Retire => is(signs, &to) && previous.is_none() && next.is_none(),
        // Somebody has replaced the root by hand since: what was before has nothing to say any more.
        Step::Done if !is(signs, &to) => return Ok(None),
        Step::Done => true,
    };
    if !fits {
        return Err(Misfit::OtherRoots(rotation.step));
    }
    if rotation.step == Step::Distribute {
        let part = |key: &str| content.get(key).map(|part| part.0.as_slice()).unwrap_or_default();
        authority(part(NEXT_CERTIFICATE), part(NEXT_KEY), SystemTime::now()).map_err(Misfit::NextKey)?;
    }
    Ok(Some(rotation))
}

#[cfg(test)]
impl Stored {
    /// What a Secret holds after it was filled.
    pub(crate) fn new() -> Self {
        Self::of(new_content().unwrap())
    }

    /// What a Secret holds with this content.
    pub(crate) fn of(content: Content) -> Self {
        Self::read(content).map_err(|(_, cause)| cause).unwrap()
    }

    /// The same, read once more.
    pub(crate) fn read_again(&self) -> Self {
        Self::of(self.content.clone())
    }

    /// The same where the other's root is the next.
    pub(crate) fn with_next(&self, other: &Self) -> Self {
        let mut content = self.content.clone();
        content.insert(NEXT_CERTIFICATE.into(), other.content[CERTIFICATE].clone());
        Self::of(content)
    }
}

#[cfg(test)]
#[path = "authority_stored_tests.rs"]
mod tests;
