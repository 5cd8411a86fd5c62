use super::*;
use std::collections::BTreeSet;

/// Each reason with its status, its outcome and its text.
const ANSWERS: [(GateError, u16, &str, &str); 26] = [
    (
        GateError::Framing(Violation::BothFramings),
        400,
        "malformed",
        "Both Content-Length and Transfer-Encoding are present.",
    ),
    (
        GateError::Framing(Violation::TargetTooLong),
        414,
        "malformed",
        "Request target is too long.",
    ),
    (
        GateError::NamesTooMuch,
        400,
        "malformed",
        "Connection or Trailer header is too long.",
    ),
    (GateError::Connect, 405, "malformed", "CONNECT is not supported."),
    (GateError::Target, 400, "malformed", "Invalid request target."),
    (
        GateError::RepeatedPort,
        400,
        "malformed",
        "Duplicate X-Sandbox-Port header.",
    ),
    (GateError::Port, 400, "malformed", "Invalid port format."),
    (
        GateError::RepeatedAssertion,
        400,
        "malformed",
        "Repeated caller assertion.",
    ),
    (GateError::Assertion, 400, "malformed", "Malformed caller assertion."),
    (
        GateError::NoAssertion,
        400,
        "malformed",
        "A router must assert the caller.",
    ),
    (
        GateError::NotARouter,
        400,
        "not-a-router",
        "Only a router may assert a caller.",
    ),
    (
        GateError::PeerExpired,
        503,
        "peer-expired",
        "The certificate of this connection has expired; open another.",
    ),
    (
        GateError::OutOfMemory,
        503,
        "overloaded",
        "The sandbox gate is short of memory; try again.",
    ),
    (
        GateError::Denied(Denied::NoSnapshot),
        503,
        "not-ready",
        "Sandbox gate is not ready: alpha",
    ),
    (
        GateError::Denied(Denied::OwnPort),
        403,
        "denied",
        "Refused by the sandbox policy of alpha.",
    ),
    (
        GateError::Denied(Denied::Policy),
        403,
        "denied",
        "Refused by the sandbox policy of alpha.",
    ),
    (
        GateError::Denied(Denied::AmbiguousPath),
        400,
        "denied",
        "Ambiguous path: the sandbox policy of alpha needs one without empty or dot segments, `;`, `\\` and encoded \
         separators.",
    ),
    (
        GateError::Dial,
        502,
        "dial",
        "Could not connect to the backend sandbox: alpha",
    ),
    (
        GateError::TimedOut,
        504,
        "timeout",
        "Timed out waiting for the backend sandbox: alpha",
    ),
    (
        GateError::Broken,
        502,
        "broken",
        "Could not connect to the backend sandbox: alpha",
    ),
    (
        GateError::BadAnswer,
        502,
        "bad-answer",
        "Could not connect to the backend sandbox: alpha",
    ),
    (
        GateError::Upload(BodyError::TooLarge),
        413,
        "upload",
        "Request body is too large.",
    ),
    (
        GateError::Upload(BodyError::Silent),
        408,
        "upload",
        "Timed out waiting for the request body.",
    ),
    (
        GateError::Upload(BodyError::Broken),
        400,
        "upload",
        "Request body ended early.",
    ),
    (
        GateError::EarlyBytes,
        400,
        "malformed",
        "Bytes followed the upgrade request too early.",
    ),
    (
        GateError::Internal,
        500,
        "malformed",
        "An internal error occurred in the proxy.",
    ),
];

#[test]
fn each_reason_has_its_status_its_outcome_and_its_words() {
    let sandbox: SandboxName = "alpha".parse().unwrap();
    for (error, status, outcome, text) in ANSWERS {
        let response = error.response(&sandbox);
        let headers = response.headers();
        assert_eq!(response.status(), status, "{error:?}");
        assert_eq!(headers[X_SANDGATE_OUTCOME], outcome, "{error:?}");
        assert_eq!(error.outcome().as_str(), outcome, "{error:?}");
        assert_eq!(error.detail(&sandbox), text, "{error:?}");
        // A 503 says when to come again, and nothing else does.
        let again = headers.get(RETRY_AFTER).map(HeaderValue::as_bytes);
        assert_eq!(again, (status == 503).then_some(&b"1"[..]), "{error:?}");
    }
}

/// The next of the list of all reasons: a new one doesn't compile without a place in it.
fn after(error: GateError) -> Option<GateError> {
    use GateError as E;
    Some(match error {
        E::Framing(_) => E::NamesTooMuch,
        E::NamesTooMuch => E::Connect,
        E::Connect => E::Target,
        E::Target => E::RepeatedPort,
        E::RepeatedPort => E::Port,
        E::Port => E::RepeatedAssertion,
        E::RepeatedAssertion => E::Assertion,
        E::Assertion => E::NoAssertion,
        E::NoAssertion => E::NotARouter,
        E::NotARouter => E::PeerExpired,
        E::PeerExpired => E::OutOfMemory,
        E::OutOfMemory => E::Denied(Denied::NoSnapshot),
        E::Denied(Denied::NoSnapshot) => E::Denied(Denied::OwnPort),
        E::Denied(Denied::OwnPort) => E::Denied(Denied::Policy),
        E::Denied(Denied::Policy) => E::Denied(Denied::AmbiguousPath),
        E::Denied(Denied::AmbiguousPath) => E::Dial,
        E::Dial => E::TimedOut,
        E::TimedOut => E::Broken,
        E::Broken => E::BadAnswer,
        E::BadAnswer => E::Upload(BodyError::TooLarge),
        E::Upload(BodyError::TooLarge) => E::Upload(BodyError::Silent),
        E::Upload(BodyError::Silent) => E::Upload(BodyError::Broken),
        E::Upload(BodyError::Broken | BodyError::Reset(_)) => E::EarlyBytes,
        E::EarlyBytes => E::Internal,
        // The page has violations in a table of their own.
        E::Internal | E::Upload(BodyError::Framing(_)) => return None,
    })
}

#[test]
fn the_runbook_has_every_text_with_its_status_and_no_other() {
    let page = include_str!("../../../docs/runbook.md");
    let cells = page.lines().map(|line| line.split(" | ").collect::<Vec<_>>());
    let rows = cells.filter(|cells| matches!(cells[..], [_, _, who, _, _] if who.contains("gate")));
    let row = |cells: Vec<&str>| {
        let status: u16 = cells[0].trim_start_matches("| ").parse().unwrap();
        (status, cells[1].trim_matches('`').to_owned())
    };
    let rows: BTreeSet<_> = rows.map(row).collect();

    let alpha: SandboxName = "alpha".parse().unwrap();
    let first = after(GateError::Framing(Violation::Target));
    // Code isn't marked within code.
    let written = |error: GateError| error.detail(&alpha).replace("alpha", "<id>").replace('`', "");
    let all = std::iter::successors(first, |error| after(*error));
    let mut expected: BTreeSet<_> = all.map(|error| (error.answer().0.as_u16(), written(error))).collect();
    expected.insert((503, TOO_MANY.to_owned()));
    assert_eq!(rows, expected, "docs/runbook.md on the left");
}
