//! From the written policy to the form that is evaluated: checks every name, bound and pattern once, and says where
//! something is wrong.
//!
//! Every struct of the written form is taken apart in full: a field that nobody compiled would be accepted and ignored.

use super::path::{Paths, Pattern};
use super::sources::{Source, Sources};
use super::{Policy, PolicySnapshot, Rule, Target, model};
use crate::sandbox::AppPort;
use http::Method;
use std::collections::HashSet;

/// Most policies in a snapshot.
const MAX_POLICIES: usize = 256;
/// Most rules in a policy, and most `from` and `to` entries in a rule.
const MAX_RULES: usize = 64;
/// Most items in any other list.
const MAX_ITEMS: usize = 256;
/// Longest name of a policy, as Kubernetes bounds an object's name.
const MAX_POLICY_NAME: usize = 253;
/// Longest method, in bytes.
const MAX_METHOD: usize = 32;

/// What is wrong, and where: the place is written from the inside out on the way up.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) place: String,
    pub(super) problem: String,
}

impl Flaw {
    fn new(problem: impl Into<String>) -> Self {
        Self {
            place: String::new(),
            problem: problem.into(),
        }
    }

    fn at(mut self, step: &str) -> Self {
        let separator = if self.place.is_empty() { "" } else { "." };
        self.place = format!("{step}{separator}{}", self.place);
        self
    }
}

/// Compiles a whole snapshot. Its version has been checked.
pub(super) fn snapshot(written: &model::Snapshot) -> Result<PolicySnapshot, Flaw> {
    let model::Snapshot {
        version: _,
        generation,
        default_policy,
        ports: default_ports,
        policies,
    } = written;
    let policies = each("policies", policies, MAX_POLICIES, policy)?;
    let mut names = HashSet::new();
    for (index, policy) in policies.iter().enumerate() {
        if !names.insert(&policy.name) {
            return Err(Flaw::new("another policy has this name")
                .at("name")
                .at(&format!("policies[{index}]")));
        }
    }
    Ok(PolicySnapshot {
        generation: *generation,
        default_policy: *default_policy,
        default_ports: ports(default_ports)?,
        policies: policies.into(),
    })
}

fn policy(written: &model::Policy) -> Result<Policy, Flaw> {
    let model::Policy { name, rules } = written;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if !(1..=MAX_POLICY_NAME).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(Flaw::new("must be 1 to 253 lower-case letters, digits, hyphens and dots").at("name"));
    }
    let rules = each("rules", rules, MAX_RULES, rule)?;
    Ok(Policy {
        name: name.as_str().into(),
        rules: rules.into(),
    })
}

fn rule(written: &model::Rule) -> Result<Rule, Flaw> {
    let model::Rule { from, to } = written;
    let sources = some("from", from, MAX_RULES, source)?;
    let targets = some("to", to, MAX_RULES, target)?;
    Ok(Rule {
        sources: sources.into_iter().flatten().collect::<Sources>(),
        targets: targets.into(),
    })
}

/// Reads one item of a `from` entry's list.
type Read = fn(&str) -> Result<Source, String>;

fn source(written: &model::Source) -> Result<Vec<Source>, Flaw> {
    let model::Source {
        service_accounts,
        users,
        groups,
        spiffe_ids,
        anonymous,
    } = written;
    let mut sources = Vec::new();
    if *anonymous {
        sources.push(Source::Anyone);
    }
    let lists: [(_, _, Read); 4] = [
        ("serviceAccounts", service_accounts, Source::service_account),
        ("users", users, Source::user),
        ("groups", groups, Source::group),
        ("spiffeIDs", spiffe_ids, Source::spiffe_id),
    ];
    for (field, list, read) in lists {
        let Some(list) = list else { continue };
        sources.extend(some(field, list, MAX_ITEMS, |text: &String| {
            read(text).map_err(Flaw::new)
        })?);
    }
    if sources.is_empty() {
        return Err(Flaw::new(
            "names nobody: list serviceAccounts, users, groups or spiffeIDs, or set anonymous: true",
        ));
    }
    Ok(sources)
}

fn target(written: &model::Target) -> Result<Target, Flaw> {
    let model::Target {
        ports: app_ports,
        methods,
        paths,
    } = written;
    let methods = match methods {
        Some(methods) => Some(some("methods", methods, MAX_ITEMS, |text: &String| method(text))?.into()),
        None => None,
    };
    let paths = match paths {
        Some(paths) => {
            let pattern = |text| Pattern::parse(text).map_err(|error| Flaw::new(error.to_string()));
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            Some(Paths::new(&some("paths", &paths, MAX_ITEMS, |text: &&str| {
                pattern(text)
            })?))
        }
        None => None,
    };
    Ok(Target {
        ports: ports(app_ports)?,
        methods,
        paths,
    })
}

fn ports(written: &[u16]) -> Result<Box<[AppPort]>, Flaw> {
    let port = |port: &u16| AppPort::new(*port).ok_or_else(|| Flaw::new("must be a port number from 1 to 65535"));
    some("ports", written, MAX_ITEMS, port).map(Vec::into)
}

/// Methods are case-sensitive (RFC 9110 section 9.1): `get` or `*` would match nothing that a client sends.
fn method(text: &str) -> Result<Method, Flaw> {
    let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let plain = text.len() <= MAX_METHOD && text.bytes().all(allowed);
    let method = Method::from_bytes(text.as_bytes()).ok().filter(|_| plain);
    method.ok_or_else(|| Flaw::new("must be an upper-case HTTP method of at most 32 characters"))
}

/// As [`each`], for a list that must not be empty: an empty one could be read as nothing or as everything.
fn some<'a, T, U>(
    field: &str,
    items: &'a [T],
    most: usize,
    build: impl FnMut(&'a T) -> Result<U, Flaw>,
) -> Result<Vec<U>, Flaw> {
    if items.is_empty() {
        return Err(Flaw::new("must not be empty").at(field));
    }
    each(field, items, most, build)
}

/// Builds every item of a bounded list.
fn each<'a, T, U>(
    field: &str,
    items: &'a [T],
    most: usize,
    mut build: impl FnMut(&'a T) -> Result<U, Flaw>,
) -> Result<Vec<U>, Flaw> {
    if items.len() > most {
        return Err(Flaw::new(format!("has {} items, more than {most}", items.len())).at(field));
    }
    let numbered = |(index, item)| build(item).map_err(|flaw| flaw.at(&format!("{field}[{index}]")));
    items.iter().enumerate().map(numbered).collect()
}
