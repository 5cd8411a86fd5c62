//! Policy snapshots: the format, and what is decided by them.

use super::Choices;
use http::Method;
use sandbox_sidecar::authorize::{Denied, OwnPorts, RequestFacts, authorize};
use sandgate_mesh::caller::{Caller, Groups};
use sandgate_mesh::policy::model::{DefaultPolicy, Snapshot, Source, Target};
use sandgate_mesh::policy::{Basis, PolicySnapshot, SnapshotError, Verdict};
use sandgate_mesh::sandbox::AppPort;
use serde_json::{Value, json};
use std::sync::Arc;

const OWN: OwnPorts = OwnPorts {
    mesh: 14443,
    health: 14480,
};

/// A snapshot survives being written again, holds nothing that this release doesn't know, and decides as
/// `docs/policy-snapshot.md` says, which [`judge`] reads from the written form.
pub fn policy_snapshot(data: &[u8]) -> bool {
    let Ok(compiled) = PolicySnapshot::parse(data) else {
        return false;
    };
    let written: Snapshot = serde_json::from_slice(data).unwrap();
    let again = serde_json::to_vec(&written).unwrap();
    let recompiled = PolicySnapshot::parse(&again).unwrap();
    assert_eq!(serde_json::from_slice::<Snapshot>(&again).unwrap(), written);
    assert_eq!(format!("{recompiled:?}"), format!("{compiled:?}"));
    assert_eq!(compiled.generation(), written.generation);

    let mut choices = Choices::of(data);
    unknown(&again, &mut choices);
    let probes = Probes::of(&written, &mut choices);
    probes.each(|caller, port, method, path| {
        let verdict = compiled.evaluate(caller, port, method, path);
        assert_eq!(
            verdict,
            judge(&written, caller, port, method, path),
            "{caller} {port} {method} {path:?}"
        );
        permit(&compiled, &verdict, caller, port, method, path);
    });
    without_rules(&written, &probes);
    true
}

/// One change that another release, or a mistake, could make.
fn unknown(good: &[u8], choices: &mut Choices) {
    let refused = |value: &Value| PolicySnapshot::parse(&serde_json::to_vec(value).unwrap()).unwrap_err();
    let good: Value = serde_json::from_slice(good).unwrap();
    for version in [0, 2, u64::from(u32::MAX) + 2] {
        let mut other = good.clone();
        other["version"] = json!(version);
        assert!(matches!(refused(&other), SnapshotError::Version(found) if found == version));
        other["unknown"] = json!(1);
        assert!(matches!(refused(&other), SnapshotError::Version(found) if found == version));
    }
    let objects = count_objects(&good);
    for (place, value) in [
        (0, json!(null)),
        (choices.below(objects), json!([])),
        (objects - 1, json!(true)),
    ] {
        let mut other = good.clone();
        let mut at = place;
        insert_unknown(&mut other, &mut at, &value);
        assert!(matches!(refused(&other), SnapshotError::Format(_)), "{other}");
    }
    let mut behind = serde_json::to_vec(&good).unwrap();
    behind.push(b'0');
    assert!(PolicySnapshot::parse(&behind).is_err());
}

fn count_objects(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(count_objects).sum::<usize>(),
        Value::Array(items) => items.iter().map(count_objects).sum(),
        _ => 0,
    }
}

/// Puts an unknown field into the object that is `at` objects further on.
fn insert_unknown(value: &mut Value, at: &mut usize, unknown: &Value) -> bool {
    match value {
        Value::Object(fields) => {
            if *at == 0 {
                fields.insert("unknown".into(), unknown.clone());
                return true;
            }
            *at -= 1;
            fields.values_mut().any(|field| insert_unknown(field, at, unknown))
        }
        Value::Array(items) => items.iter_mut().any(|item| insert_unknown(item, at, unknown)),
        _ => false,
    }
}

/// A snapshot whose policies have no rules shuts the sandbox, and so does none.
fn without_rules(written: &Snapshot, probes: &Probes) {
    let mut emptied = written.clone();
    for policy in &mut emptied.policies {
        policy.rules.clear();
    }
    if emptied.policies.is_empty() {
        emptied.default_policy = DefaultPolicy::Deny;
    }
    let emptied = PolicySnapshot::parse(&serde_json::to_vec(&emptied).unwrap()).unwrap();
    probes.each(|caller, port, method, path| {
        assert_eq!(emptied.evaluate(caller, port, method, path), Verdict::Denied);
        for snapshot in [Some(&emptied), None] {
            let facts = facts(port, method, path);
            assert!(authorize(caller, &facts, snapshot, &OWN).is_err());
        }
    });
}

fn facts<'a>(port: AppPort, method: &'a Method, path: &'a str) -> RequestFacts<'a> {
    RequestFacts {
        direct: false,
        port,
        method,
        path,
    }
}

/// A permit is what the verdict says, for the port asked for, and never for one of the gate's own.
fn permit(
    snapshot: &PolicySnapshot,
    verdict: &Verdict,
    caller: &Arc<Caller>,
    port: AppPort,
    method: &Method,
    path: &str,
) {
    let facts = facts(port, method, path);
    let direct = RequestFacts { direct: true, ..facts };
    let decided = authorize(caller, &facts, Some(snapshot), &OWN);
    let decided_directly = authorize(caller, &direct, Some(snapshot), &OWN);
    if [OWN.mesh, OWN.health].contains(&port.get()) {
        assert_eq!(decided.unwrap_err(), Denied::OwnPort);
        assert_eq!(decided_directly.unwrap_err(), Denied::OwnPort);
        return;
    }
    match verdict {
        Verdict::Allowed(basis) => {
            let permit = decided.unwrap();
            assert_eq!((permit.port().get(), permit.basis()), (port.get(), basis));
            assert_eq!(
                decided_directly.is_ok(),
                *basis != Basis::Default,
                "the default lets no direct caller in"
            );
        }
        Verdict::Denied => assert_eq!(decided.unwrap_err(), Denied::Policy),
        Verdict::AmbiguousPath => assert_eq!(decided.unwrap_err(), Denied::AmbiguousPath),
    }
}

/// Requests near a snapshot's rules.
struct Probes {
    callers: Vec<Arc<Caller>>,
    ports: Vec<AppPort>,
    methods: Vec<Method>,
    paths: Vec<String>,
}

impl Probes {
    fn of(written: &Snapshot, choices: &mut Choices) -> Self {
        let rules = || written.policies.iter().flat_map(|policy| &policy.rules);
        let targets = || rules().flat_map(|rule| &rule.to);
        let mut callers: Vec<Caller> = rules().flat_map(|rule| &rule.from).flat_map(callers_near).collect();
        let mut ports: Vec<u16> = targets()
            .flat_map(|target| &target.ports)
            .chain(&written.ports)
            .copied()
            .collect();
        let mut methods: Vec<String> = targets()
            .flat_map(|target| target.methods.iter().flatten())
            .cloned()
            .collect();
        let mut paths: Vec<String> = targets()
            .flat_map(|target| target.paths.iter().flatten())
            .flat_map(|pattern| paths_near(pattern))
            .collect();
        // A few of each: their product is asked.
        few(&mut callers, 6, choices);
        few(&mut ports, 3, choices);
        few(&mut methods, 2, choices);
        few(&mut paths, 6, choices);
        callers.extend([
            Caller::Anonymous,
            Caller::Static {
                name: "nobody".parse().unwrap(),
            },
        ]);
        ports.extend([OWN.mesh, 9]);
        methods.push("GET".into());
        paths.extend(["/", "*", "/a%2fb", "/%2e%2e/a"].map(str::to_owned));
        Self {
            callers: callers.into_iter().map(Arc::new).collect(),
            ports: ports.into_iter().filter_map(AppPort::new).collect(),
            methods: methods.iter().map(|method| method.parse().unwrap()).collect(),
            paths,
        }
    }

    fn each(&self, mut ask: impl FnMut(&Arc<Caller>, AppPort, &Method, &str)) {
        for caller in &self.callers {
            for port in &self.ports {
                for method in &self.methods {
                    for path in &self.paths {
                        ask(caller, *port, method, path);
                    }
                }
            }
        }
    }
}

fn few<T>(items: &mut Vec<T>, most: usize, choices: &mut Choices) {
    while items.len() > most {
        let gone = choices.below(items.len());
        items.swap_remove(gone);
    }
}

/// Callers that a source lists, and ones with the same text of another kind.
fn callers_near(source: &Source) -> Vec<Caller> {
    let mut callers = Vec::new();
    let mut kinds = |name: &str, groups: &[&str]| {
        let groups = Groups::new(groups).unwrap();
        callers.extend(name.parse().map(|name| Caller::Static { name }));
        callers.extend(name.parse().map(|key_id| Caller::Scoped { key_id }));
        callers.extend(name.parse().map(|common_name| Caller::Certificate { common_name }));
        callers.extend(name.parse().map(Caller::Spiffe));
        if let Some((namespace, name)) = name.split_once('/')
            && let (Ok(namespace), Ok(name)) = (namespace.parse(), name.parse())
        {
            let groups = groups.clone();
            callers.push(Caller::ServiceAccount {
                namespace,
                name,
                groups,
            });
        }
        callers.extend(name.parse().map(|name| Caller::User { name, groups }));
    };
    let lists = [&source.service_accounts, &source.users, &source.spiffe_ids];
    for text in lists.into_iter().flatten().flatten() {
        let bare = ["static:", "scoped:", "cert:"]
            .iter()
            .find_map(|kind| text.strip_prefix(kind));
        kinds(bare.unwrap_or(text), &[]);
        if let Some(prefix) = text.strip_suffix("/*") {
            for id in [prefix.to_owned(), format!("{prefix}/a"), format!("{prefix}a")] {
                kinds(&id, &[]);
            }
        }
    }
    for group in source.groups.iter().flatten() {
        kinds(group, &[]);
        kinds("near", &["another", group]);
        kinds("near/near", &[group, "yet-another"]);
    }
    callers
}

/// Paths that a pattern covers, just doesn't, or seems to.
fn paths_near(pattern: &str) -> Vec<String> {
    let base = pattern.strip_suffix('*').unwrap_or(pattern);
    let short = base.strip_suffix('/').unwrap_or(base);
    let plain = ["", "a", "a/b", "/", "../a", "a;b", "\u{e4}"];
    let escaped = ["%2e%2e/a", "%2fa", "%C0%AF", "%e0%80%af", "%E0%A4%85", "%f0%80%80%af"];
    plain
        .into_iter()
        .chain(escaped)
        .map(|more| format!("{base}{more}"))
        .chain([short.to_owned(), format!("{short}a"), pattern.to_owned()])
        .collect()
}

/// The verdict as the format's documentation words it.
fn judge(snapshot: &Snapshot, caller: &Caller, port: AppPort, method: &Method, path: &str) -> Verdict {
    if snapshot.policies.is_empty() {
        let admitted = match snapshot.default_policy {
            DefaultPolicy::Deny => false,
            DefaultPolicy::Authenticated => *caller != Caller::Anonymous,
            DefaultPolicy::Anonymous => true,
        };
        return if admitted && snapshot.ports.contains(&port.get()) {
            Verdict::Allowed(Basis::Default)
        } else {
            Verdict::Denied
        };
    }
    let readable = reads_alike(path);
    let mut refusal = Verdict::Denied;
    for policy in &snapshot.policies {
        for (index, rule) in policy.rules.iter().enumerate() {
            if !rule.from.iter().any(|source| lists(source, caller)) {
                continue;
            }
            let covering = rule.to.iter().filter(|target| covers(target, port, method));
            for target in covering {
                match &target.paths {
                    Some(_) if !readable => refusal = Verdict::AmbiguousPath,
                    Some(patterns) if !patterns.iter().any(|pattern| matches_path(pattern, path)) => {}
                    _ => {
                        let policy = policy.name.as_str().into();
                        return Verdict::Allowed(Basis::Rule { policy, rule: index });
                    }
                }
            }
        }
    }
    refusal
}

fn lists(source: &Source, caller: &Caller) -> bool {
    let has = |list: &Option<Vec<String>>, text: &str| list.iter().flatten().any(|item| item == text);
    let in_group = |groups: &Groups| groups.iter().any(|group| has(&source.groups, group));
    source.anonymous
        || match caller {
            Caller::Anonymous => false,
            Caller::Static { name } => has(&source.users, &format!("static:{name}")),
            Caller::Scoped { key_id } => has(&source.users, &format!("scoped:{key_id}")),
            Caller::Certificate { common_name } => has(&source.users, &format!("cert:{common_name}")),
            Caller::ServiceAccount {
                namespace,
                name,
                groups,
            } => has(&source.service_accounts, &format!("{namespace}/{name}")) || in_group(groups),
            Caller::User { name, groups } => has(&source.users, name.as_str()) || in_group(groups),
            Caller::Spiffe(id) => source
                .spiffe_ids
                .iter()
                .flatten()
                .any(|item| match item.strip_suffix('*') {
                    Some(prefix) => id.as_str().starts_with(prefix),
                    None => id.as_str() == item,
                }),
        }
}

fn covers(target: &Target, port: AppPort, method: &Method) -> bool {
    let any_of = |list: &Option<Vec<String>>| {
        list.as_ref()
            .is_none_or(|list| list.iter().any(|item| item == method.as_str()))
    };
    target.ports.contains(&port.get()) && any_of(&target.methods)
}

fn matches_path(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(prefix) => path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')),
        None => pattern == path,
    }
}

/// Whether all programs take the path for the same resource: decoded first, then looked at, unlike the gate does it.
fn reads_alike(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/').map(|rest| rest.split('/').collect::<Vec<_>>()) else {
        return false;
    };
    let empty_inside = segments.iter().rev().skip(1).any(|segment| segment.is_empty());
    !empty_inside
        && segments.iter().all(|segment| {
            let Some(decoded) = decode(segment) else { return false };
            let bytes: Vec<u8> = decoded.iter().map(|(byte, _)| *byte).collect();
            bytes != b"." && bytes != b".." && !overlong(&decoded)
        })
}

/// The segment's bytes, each with whether it was escaped; `None` if it holds what may not be in one, plain or escaped.
fn decode(segment: &str) -> Option<Vec<(u8, bool)>> {
    let mut decoded = Vec::new();
    let mut rest = segment.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        let byte = match first {
            b'%' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                rest = &rest[2..];
                let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let byte = u8::from_str_radix(digits, 16).ok().filter(|_| hexadecimal)?;
                if byte < b' ' || byte == 0x7f || b"/\\%".contains(&byte) {
                    return None;
                }
                byte
            }
            b'!'..=b'~' if !b"\\#;?".contains(first) => *first,
            _ => return None,
        };
        decoded.push((byte, *first == b'%'));
    }
    Some(decoded)
}

/// Lenient decoders take such bytes for a separator or a dot (RFC 3629 section 10).
fn overlong(decoded: &[(u8, bool)]) -> bool {
    decoded.iter().any(|(byte, _)| matches!(byte, 0xc0 | 0xc1))
        || decoded.windows(2).any(|pair| match pair {
            [(0xe0, _), (next, true)] => *next < 0xa0,
            [(0xf0, _), (next, true)] => *next < 0x90,
            _ => false,
        })
}
