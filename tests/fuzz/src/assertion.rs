//! The caller assertion.

use sandgate_mesh::caller::{Caller, CallerName, Groups, MAX_ASSERTION_BYTES, UserName};

/// A caller has one assertion, and an assertion one caller. The input is an assertion; it is also taken for the names of
/// callers, one a line, which must survive being asserted.
pub fn assertion(data: &[u8]) -> bool {
    if let Ok(names) = std::str::from_utf8(data) {
        asserted(names);
    }
    let Ok(caller) = Caller::from_assertion(data) else {
        return false;
    };
    assert_eq!(caller.to_assertion().as_bytes(), data, "one spelling");
    assert!(data.len() <= MAX_ASSERTION_BYTES);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~;:%".contains(byte);
    assert!(data.iter().all(plain), "needs no quoting, and holds no control byte");
    named(&caller);
    respelt(data);
    true
}

/// A caller reads as one kind only, and never breaks a log line.
fn named(caller: &Caller) {
    let shown = caller.to_string();
    assert!(!shown.is_empty() && !shown.contains(char::is_control), "{shown:?}");
    let kind = match caller {
        Caller::Anonymous => "anonymous",
        Caller::Static { .. } => "static:",
        Caller::Scoped { .. } => "scoped:",
        Caller::ServiceAccount { .. } => "system:serviceaccount:",
        Caller::User { .. } => "",
        Caller::Spiffe(_) => "spiffe://",
        Caller::Certificate { .. } => "cert:",
    };
    assert!(shown.starts_with(kind), "{shown:?}");
    if kind.is_empty() {
        let others = ["static:", "scoped:", "system:serviceaccount:", "spiffe://", "cert:"];
        assert!(
            !others.iter().any(|other| shown.starts_with(other)) && shown != "anonymous",
            "{shown:?}"
        );
    }
    assert_eq!(caller.is_anonymous(), shown == "anonymous");
    if let Caller::ServiceAccount { groups, .. } | Caller::User { groups, .. } = caller {
        let groups: Vec<&str> = groups.iter().collect();
        assert!(
            groups.is_sorted_by(|one, other| (one.len(), one) < (other.len(), other)),
            "{groups:?}"
        );
        assert!(groups.len() <= 128 && groups.iter().all(|group| (1..=256).contains(&group.len())));
        assert!(
            !groups.iter().any(|group| group.contains(char::is_control)),
            "{groups:?}"
        );
    }
}

/// No other spelling of the same caller is taken.
fn respelt(data: &[u8]) {
    let refused = |other: &[u8]| assert!(Caller::from_assertion(other).is_err(), "{}", other.escape_ascii());
    for more in [";", " ", "\0", "\r\n", "%", ";%", "%0a", "%00", ";;"] {
        refused(&[data, more.as_bytes()].concat());
        refused(&[more.as_bytes(), data].concat());
    }
    refused(&data.to_ascii_uppercase());
    let has_letters = |escape: &[u8]| escape[0] == b'%' && escape[1..].iter().any(u8::is_ascii_uppercase);
    if data.windows(3).any(has_letters) {
        refused(&data.to_ascii_lowercase());
    }
    let name = data.iter().enumerate().filter(|(_, byte)| **byte == b';').nth(1);
    if let Some((end_of_kind, _)) = name {
        let (before, rest) = data.split_at(end_of_kind + 1);
        if rest[0] != b'%' {
            let needless = format!("%{:02X}", rest[0]);
            refused(&[before, needless.as_bytes(), &rest[1..]].concat());
        }
        // A group twice is a set with one.
        let fields: Vec<&[u8]> = rest.split(|byte| *byte == b';').collect();
        if let [_, .., last] = fields.as_slice() {
            refused(&[data, b";", last].concat());
        }
    }
}

/// Every caller that can be made survives being asserted.
fn asserted(names: &str) {
    let mut lines = names.split('\n');
    let name = lines.next().unwrap_or_default();
    let groups = Groups::new(lines);
    let mut callers = Vec::new();
    if let Ok(name) = name.parse::<CallerName>() {
        callers.push(Caller::Static { name: name.clone() });
        callers.push(Caller::Scoped { key_id: name.clone() });
        callers.push(Caller::Certificate { common_name: name });
    }
    if let Ok(id) = name.parse() {
        callers.push(Caller::Spiffe(id));
    }
    if let (Ok(name), Ok(groups)) = (name.parse::<UserName>(), &groups) {
        callers.push(Caller::User {
            name,
            groups: groups.clone(),
        });
    }
    if let (Some((namespace, account)), Ok(groups)) = (name.split_once('/'), groups)
        && let (Ok(namespace), Ok(name)) = (namespace.parse(), account.parse())
    {
        callers.push(Caller::ServiceAccount {
            namespace,
            name,
            groups,
        });
    }
    for (index, caller) in callers.iter().enumerate() {
        let assertion = caller.to_assertion();
        assert_eq!(Caller::from_assertion(assertion.as_bytes()).as_ref(), Ok(caller));
        for other in &callers[..index] {
            assert_ne!(other.to_assertion(), assertion);
            assert_ne!(
                other.to_string(),
                caller.to_string(),
                "two kinds of callers share a name"
            );
        }
        named(caller);
    }
}
