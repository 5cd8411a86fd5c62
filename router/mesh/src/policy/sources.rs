//! Whom a rule is for.
//!
//! Callers are compared kind by kind, so that a user can't be let in by a text that was meant for another kind.

use super::texts::Texts;
use crate::caller::{Caller, CallerKind, CallerName, Groups, UserName};
use crate::identity::SpiffeId;
use crate::sandbox::{Namespace, ServiceAccountName};

/// All callers that a rule's `from` entries list. They are alternatives, so one set serves for all entries.
#[derive(Debug, Default)]
pub(super) struct Sources {
    anyone: bool,
    /// Sorted.
    service_accounts: Box<[(Namespace, ServiceAccountName)]>,
    users: Texts,
    statics: Texts,
    scoped: Texts,
    certificates: Texts,
    groups: Texts,
    spiffe_ids: Texts,
    /// Each ends with `/`.
    spiffe_prefixes: Texts,
}

impl Sources {
    /// Whether `caller` is listed.
    pub(super) fn admit(&self, caller: &Caller) -> bool {
        // In full, so that what is compiled is also looked at.
        let Self {
            anyone,
            service_accounts,
            users,
            statics,
            scoped,
            certificates,
            groups: listed,
            spiffe_ids,
            spiffe_prefixes,
        } = self;
        if *anyone {
            return true;
        }
        match caller {
            Caller::Anonymous => false,
            Caller::Static { name } => statics.contains(name.as_str()),
            Caller::Scoped { key_id } => scoped.contains(key_id.as_str()),
            Caller::ServiceAccount {
                namespace,
                name,
                groups,
            } => {
                let order =
                    |known: &(Namespace, ServiceAccountName)| known.0.cmp(namespace).then_with(|| known.1.cmp(name));
                service_accounts.binary_search_by(order).is_ok() || share_group(listed, groups)
            }
            Caller::User { name, groups } => users.contains(name.as_str()) || share_group(listed, groups),
            Caller::Spiffe(id) => {
                spiffe_ids.contains(id.as_str()) || spiffe_prefixes.iter().any(|prefix| id.as_str().starts_with(prefix))
            }
            Caller::Certificate { common_name } => certificates.contains(common_name.as_str()),
        }
    }
}

fn share_group(listed: &Texts, theirs: &Groups) -> bool {
    // Walk the shorter set and search the longer: people can be in a hundred groups, rules list a few.
    if listed.len() < theirs.len() {
        listed.iter().any(|group| theirs.contains(group))
    } else {
        theirs.iter().any(|group| listed.contains(group))
    }
}

/// One item of a `from` entry's lists.
#[derive(Debug)]
pub(super) enum Source {
    Anyone,
    ServiceAccount(Namespace, ServiceAccountName),
    User(Box<str>),
    Static(Box<str>),
    Scoped(Box<str>),
    Certificate(Box<str>),
    Group(Box<str>),
    SpiffeId(Box<str>),
    SpiffePrefix(Box<str>),
}

impl Source {
    /// Reads `<namespace>/<name>`.
    pub(super) fn service_account(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('/')
            .and_then(|(namespace, name)| Some(Self::ServiceAccount(namespace.parse().ok()?, name.parse().ok()?)));
        parts.ok_or_else(|| "must be <namespace>/<name>, without wildcards".to_owned())
    }

    /// Reads a user's name or another kind's name with its prefix.
    pub(super) fn user(text: &str) -> Result<Self, String> {
        let name = |name: &str| name.parse::<CallerName>().map(|name| name.as_str().into());
        let (kind, rest) = CallerKind::of_name(text);
        match kind {
            CallerKind::Static => name(rest).map(Self::Static),
            CallerKind::Scoped => name(rest).map(Self::Scoped),
            CallerKind::Certificate => name(rest).map(Self::Certificate),
            CallerKind::User => text.parse::<UserName>().map(|user| Self::User(user.as_str().into())),
            // It would never match: say where it belongs.
            CallerKind::Anonymous | CallerKind::ServiceAccount | CallerKind::Spiffe => {
                return Err("names no user: use serviceAccounts, spiffeIDs or anonymous for such callers".to_owned());
            }
        }
        .map_err(|error| error.to_string())
    }

    /// Reads a group's name.
    pub(super) fn group(text: &str) -> Result<Self, String> {
        text.parse::<CallerName>()
            .map(|group| Self::Group(group.as_str().into()))
            .map_err(|error| error.to_string())
    }

    /// Reads a SPIFFE ID or `<SPIFFE ID>/*`, which covers what is below it, not itself.
    pub(super) fn spiffe_id(text: &str) -> Result<Self, String> {
        let parse = |id: &str| id.parse::<SpiffeId>().map_err(|error| error.to_string());
        match text.strip_suffix("/*") {
            Some(prefix) => parse(prefix).map(|id| Self::SpiffePrefix(format!("{id}/").into())),
            None => parse(text).map(|id| Self::SpiffeId(id.as_str().into())),
        }
    }
}

impl FromIterator<Source> for Sources {
    fn from_iter<I: IntoIterator<Item = Source>>(sources: I) -> Self {
        let mut anyone = false;
        let mut service_accounts = Vec::new();
        let [
            mut users,
            mut statics,
            mut scoped,
            mut certificates,
            mut groups,
            mut spiffe_ids,
            mut spiffe_prefixes,
        ] = [const { Vec::new() }; 7];
        for source in sources {
            match source {
                Source::Anyone => anyone = true,
                Source::ServiceAccount(namespace, name) => service_accounts.push((namespace, name)),
                Source::User(name) => users.push(name),
                Source::Static(name) => statics.push(name),
                Source::Scoped(key_id) => scoped.push(key_id),
                Source::Certificate(common_name) => certificates.push(common_name),
                Source::Group(group) => groups.push(group),
                Source::SpiffeId(id) => spiffe_ids.push(id),
                Source::SpiffePrefix(prefix) => spiffe_prefixes.push(prefix),
            }
        }
        service_accounts.sort_unstable();
        service_accounts.dedup();
        let set = |texts: Vec<Box<str>>| texts.into_iter().collect();
        Self {
            anyone,
            service_accounts: service_accounts.into(),
            users: set(users),
            statics: set(statics),
            scoped: set(scoped),
            certificates: set(certificates),
            groups: set(groups),
            spiffe_ids: set(spiffe_ids),
            spiffe_prefixes: set(spiffe_prefixes),
        }
    }
}
