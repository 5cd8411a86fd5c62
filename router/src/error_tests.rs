use super::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::str::FromStr;

const PAGE: &str = include_str!("../../docs/runbook.md");

/// The reason that comes after this one in the list of all: a new one doesn't compile without a place in it.
fn after(error: &RouterError) -> Option<RouterError> {
    use RouterError as E;
    let id = || SandboxName::from_str("id").unwrap();
    Some(match error {
        E::Framing(_) => E::Connect,
        E::Connect => E::Overloaded,
        E::Overloaded => E::NoCredential,
        E::NoCredential => E::BadCredential,
        E::BadCredential => E::CertificateOver(Over::Expired),
        E::CertificateOver(Over::Expired) => E::CertificateOver(Over::Withdrawn),
        E::CertificateOver(Over::Withdrawn) => E::Unreviewed,
        E::Unreviewed => E::NoAccess(id()),
        E::NoAccess(_) => E::OutOfScope(Bound::Sandbox),
        E::OutOfScope(Bound::Sandbox) => E::OutOfScope(Bound::Port),
        E::OutOfScope(Bound::Port) => E::OutOfScope(Bound::Method),
        E::OutOfScope(Bound::Method) => E::OutOfScope(Bound::Path),
        E::OutOfScope(Bound::Path) => E::ForeignOrigin,
        E::ForeignOrigin => E::ForeignPage,
        E::ForeignPage => E::BadRoute("Invalid request target."),
        E::BadRoute(_) => E::Duplicate("<header>"),
        E::Duplicate(_) => E::NoIdentity,
        E::NoIdentity => E::NotReady(id()),
        E::NotReady(_) => E::Ungated(id()),
        E::Ungated(_) => E::ForeignPod(id()),
        E::ForeignPod(_) => E::Unreachable(id()),
        E::Unreachable(_) => E::TimedOut(id()),
        E::TimedOut(_) => E::Broken(id()),
        E::Broken(_) => E::Upload(BodyError::TooLarge),
        E::Upload(BodyError::TooLarge) => E::Upload(BodyError::Broken),
        E::Upload(BodyError::Broken | BodyError::Reset(_)) => E::Upload(BodyError::Silent),
        E::Upload(BodyError::Silent) => E::EarlyBytes,
        E::EarlyBytes => E::TooManyUpgrades(NonZeroUsize::MAX),
        E::TooManyUpgrades(_) => E::TooManyReviews(usize::MAX),
        // The page has violations in a table of their own, and limits of callers and sandboxes are listed where they are.
        E::Upload(BodyError::Framing(_)) | E::TooManyReviews(_) | E::LimitReached(_) => return None,
    })
}

/// As the page writes it.
fn written(error: &RouterError) -> (u16, String) {
    let Words { status, detail, .. } = error.words();
    let detail = detail
        .replace(&NonZeroUsize::MAX.to_string(), "<limit>")
        .replace(&u32::MAX.to_string(), "<limit>");
    let named = format!("{detail} ").replace(" id ", " <id> ").replace(" id.", " <id>.");
    (status.as_u16(), named.trim_end().to_owned())
}

/// Status and text of the page's rows about answers of the router's own.
fn rows() -> BTreeSet<(u16, String)> {
    let cells = PAGE.lines().map(|line| line.split(" | ").collect::<Vec<_>>());
    let rows = cells.filter(|cells| matches!(cells[..], [_, _, who, _, _] if who.contains("router")));
    let row = |cells: Vec<&str>| {
        let status = cells[0].trim_start_matches("| ").parse().unwrap();
        (status, cells[1].trim_matches('`').to_owned())
    };
    rows.map(row).collect()
}

/// The texts beside those of [`RouterError`] itself: what routing says is wrong with a request, and what is said to
/// connections that are one too many.
fn texts_elsewhere(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts_elsewhere(&path, found);
        } else if !path.to_string_lossy().ends_with("tests.rs") {
            let source = fs::read_to_string(path).unwrap();
            let parts: Vec<_> = source.split('"').collect();
            for pair in parts.windows(2) {
                let is_route = ["BadRoute(", "bad("]
                    .iter()
                    .any(|before| pair[0].trim_end().ends_with(before));
                if is_route || pair[1].ends_with("; try again.") {
                    found.insert(pair[1].to_owned());
                }
            }
        }
    }
}

#[test]
fn the_runbook_has_every_text_with_its_status_and_no_other() {
    let first = RouterError::Framing(Violation::Target);
    let reached = LimitReached::all(&SandboxName::from_str("id").unwrap());
    let all: Vec<_> = std::iter::successors(after(&first), after)
        .chain(reached.map(RouterError::LimitReached))
        .collect();
    assert!(all.len() >= 25, "{all:?}");
    let mut expected: BTreeSet<_> = all.iter().map(written).collect();
    let mut elsewhere = BTreeSet::new();
    texts_elsewhere(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut elsewhere);
    assert!(elsewhere.len() >= 12, "{elsewhere:?}");
    let known: BTreeSet<_> = expected.iter().map(|(_, text)| text.clone()).collect();
    for text in elsewhere.difference(&known) {
        let status = match text.as_str() {
            "The router has too many connections from this address; try again." => 429,
            text if text.ends_with("; try again.") => 503,
            _ => 400,
        };
        expected.insert((status, text.clone()));
    }
    assert_eq!(rows(), expected, "docs/runbook.md on the left");
}
