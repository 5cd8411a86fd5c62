//! What each step of a replacement writes: pure, from one content of the Secret to the next. Each is whole, so that nobody
//! ever reads half of one.

use super::{Cause, Rotation, Step};
use crate::authority::{AuthorityError, ExternalAuthority, NewRoot, Root, RootId};
use crate::authority_stored::{
    CERTIFICATE, Content, FILES, KEY, Misfit, NEXT_CERTIFICATE, NEXT_KEY, PREVIOUS_CERTIFICATE, PREVIOUS_KEY,
    RETIRED_CERTIFICATE, ROTATION, SOURCE, Stored, is_external,
};
use k8s_openapi::ByteString;
use sandgate_mesh::telemetry::seconds_since_1970;
use std::time::SystemTime;

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotMoved {
    /// There is nothing to begin from.
    #[error("it holds no root yet; the injector makes one when it starts")]
    Empty,
    /// What is there can't be used.
    #[error("{0}: {1}")]
    Unusable(&'static str, AuthorityError),
    /// What is there contradicts itself.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// One at a time.
    #[error("a replacement is under way already, in the step {0}; `root status` says what it waits for")]
    UnderWay(Step),
    /// Somebody does the same with other means.
    #[error(
        "it holds {0}, which no replacement has put there: somebody replaces the root by hand; finish that first, or remove it"
    )]
    ByHand(&'static str),
    /// There is nothing to make.
    #[error(
        "the root comes from files (--authority-certificate-file), and is renewed where those are made: by cert-manager, or \
         by whoever writes them. The injector then does the rest by itself. If somebody else has the key: `root rotate --leaked`"
    )]
    External,
    /// What was replaced isn't trusted any more, and can't be again.
    #[error("the root in the files was replaced before, and is never to be trusted again; have another issued")]
    Left,
    /// Somebody was faster.
    #[error("the replacement has moved on meanwhile, or another has begun")]
    Overtaken,
    /// Nobody waits for that.
    #[error("no replacement waits for a confirmation")]
    NothingToConfirm,
    /// There is nothing that follows.
    #[error("no replacement is under way")]
    NothingUnderWay,
    /// No randomness.
    #[error("no root can be made: {0}")]
    Generate(#[from] rcgen::Error),
    /// A defect of this program.
    #[error("the replacement can't be written: {0}")]
    Write(#[from] serde_json::Error),
}

/// A new root is made and trusted; the present one signs.
///
/// # Errors
/// A replacement is under way, there is nothing to replace, or roots come from elsewhere.
pub(crate) fn begun(content: &Content, cause: Cause, now: SystemTime) -> Result<Content, NotMoved> {
    if is_external(content) {
        return Err(NotMoved::External);
    }
    begun_with(content, NewRoot::generate()?, cause, now)
}

/// The same with an authority that somebody else has made.
///
/// # Errors
/// A replacement is under way, there is nothing to replace, or that root was replaced before.
pub(crate) fn begun_from_files(
    content: &Content,
    authority: &ExternalAuthority,
    now: SystemTime,
) -> Result<Content, NotMoved> {
    if stored(content)?.has_left(authority.root()) {
        return Err(NotMoved::Left);
    }
    let root = NewRoot {
        certificate_pem: authority.certificate_pem(),
        key_pem: authority.key_pem().to_owned(),
    };
    begun_with(content, root, Cause::Files, now)
}

/// From now on somebody else makes the roots, or nobody else does.
pub(crate) fn sourced(content: &Content, external: bool) -> Content {
    let mut next = content.clone();
    if external {
        put(&mut next, SOURCE, FILES.to_owned());
    } else {
        next.remove(SOURCE);
    }
    next
}

fn begun_with(content: &Content, root: NewRoot, cause: Cause, now: SystemTime) -> Result<Content, NotMoved> {
    let stored = stored(content)?;
    match &stored.rotation {
        Err(misfit) => return Err(misfit.clone().into()),
        Ok(Some(rotation)) if rotation.is_under_way() => return Err(NotMoved::UnderWay(rotation.step)),
        Ok(_) => {}
    }
    for key in [NEXT_CERTIFICATE, PREVIOUS_CERTIFICATE] {
        if content.get(key).is_some_and(|part| !part.0.is_empty()) {
            return Err(NotMoved::ByHand(key));
        }
    }
    let mut next = content.clone();
    let rotation = Rotation {
        step: Step::Distribute,
        since: seconds_since_1970(now),
        cause,
        from: vec![stored.authority.root().id()],
        to: id(&root)?,
        former: stored.formerly(),
        confirmed: false,
    };
    put(&mut next, NEXT_CERTIFICATE, root.certificate_pem);
    put(&mut next, NEXT_KEY, root.key_pem);
    written(next, &rotation)
}

/// The step after the one that `from` is in.
///
/// # Errors
/// The Secret isn't in that step any more.
pub(crate) fn moved_on(content: &Content, from: &Rotation, now: SystemTime) -> Result<Content, NotMoved> {
    let Some(there) = stored(content)?.rotation? else {
        return Err(NotMoved::Overtaken);
    };
    if !there.is_same_step(from) {
        return Err(NotMoved::Overtaken);
    }
    let mut next = content.clone();
    let step = match there.step {
        Step::Distribute => {
            rename(&mut next, CERTIFICATE, PREVIOUS_CERTIFICATE);
            rename(&mut next, KEY, PREVIOUS_KEY);
            rename(&mut next, NEXT_CERTIFICATE, CERTIFICATE);
            rename(&mut next, NEXT_KEY, KEY);
            Step::Switch
        }
        Step::Switch => {
            // Pods that were born meanwhile know it beside the new one.
            rename(&mut next, PREVIOUS_CERTIFICATE, RETIRED_CERTIFICATE);
            next.remove(PREVIOUS_KEY);
            Step::Retire
        }
        Step::Retire => Step::Done,
        Step::Done => return Err(NotMoved::NothingUnderWay),
    };
    let rotation = Rotation {
        step,
        since: seconds_since_1970(now),
        confirmed: false,
        ..there
    };
    written(next, &rotation)
}

/// What nobody here can see has followed, as somebody says who does.
///
/// # Errors
/// No replacement waits for that.
pub(crate) fn confirmed(content: &Content) -> Result<Content, NotMoved> {
    match stored(content)?.rotation? {
        Some(rotation) if matches!(rotation.step, Step::Distribute | Step::Switch) && !rotation.confirmed => {
            let rotation = Rotation {
                confirmed: true,
                ..rotation
            };
            written(content.clone(), &rotation)
        }
        _ => Err(NotMoved::NothingToConfirm),
    }
}

/// A new root signs, and every other is gone: somebody else has a key. That holds in whatever step the Secret is.
///
/// # Errors
/// There is nothing to replace.
pub(crate) fn replaced_at_once(content: &Content, now: SystemTime) -> Result<Content, NotMoved> {
    let stored = stored(content)?;
    let (root, mut next) = (NewRoot::generate()?, content.clone());
    // Under another certificate a key that leaked is as bad.
    let mut former = stored.formerly();
    former.extend(stored.roots.iter().map(Root::key_id));
    let rotation = Rotation {
        step: Step::Retire,
        since: seconds_since_1970(now),
        cause: Cause::Leak,
        from: stored.roots.iter().map(Root::id).collect(),
        to: id(&root)?,
        former,
        confirmed: false,
    };
    for key in [
        NEXT_CERTIFICATE,
        NEXT_KEY,
        PREVIOUS_CERTIFICATE,
        PREVIOUS_KEY,
        RETIRED_CERTIFICATE,
    ] {
        next.remove(key);
    }
    put(&mut next, CERTIFICATE, root.certificate_pem);
    put(&mut next, KEY, root.key_pem);
    written(next, &rotation)
}

fn stored(content: &Content) -> Result<Stored, NotMoved> {
    if content.is_empty() {
        return Err(NotMoved::Empty);
    }
    Stored::read(content.clone()).map_err(|(key, cause)| NotMoved::Unusable(key, cause))
}

fn id(root: &NewRoot) -> Result<RootId, NotMoved> {
    let root = Root::from_pem(root.certificate_pem.as_bytes());
    root.map(|root| root.id())
        .map_err(|cause| NotMoved::Unusable(NEXT_CERTIFICATE, cause))
}

fn put(content: &mut Content, key: &str, text: String) {
    content.insert(key.to_owned(), ByteString(text.into_bytes()));
}

fn rename(content: &mut Content, from: &str, to: &str) {
    if let Some(part) = content.remove(from) {
        content.insert(to.to_owned(), part);
    }
}

fn written(mut content: Content, rotation: &Rotation) -> Result<Content, NotMoved> {
    put(&mut content, ROTATION, serde_json::to_string(rotation)?);
    // Nothing is ever written that couldn't be read.
    stored(&content)?.rotation?;
    Ok(content)
}

/// What the Secret holds in the three steps of a replacement of `before`'s root.
#[cfg(test)]
pub(crate) fn each_after(before: &Stored) -> [Stored; 3] {
    let now = SystemTime::now();
    let mut content = begun(&before.content, Cause::Command, now).unwrap();
    [Step::Distribute, Step::Switch, Step::Retire].map(|step| {
        let there = Stored::of(content.clone());
        let rotation = there.rotation.clone().unwrap().unwrap();
        assert_eq!(rotation.step, step);
        content = moved_on(&content, &rotation, now).unwrap();
        there
    })
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
