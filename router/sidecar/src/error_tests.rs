use super::*;

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
