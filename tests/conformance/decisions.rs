//! Why our router does something else than agent-sandbox's Go router: the sentences of the contract that decide it.

/// One difference between the routers, which any number of cases show.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The section of the contract.
    pub(crate) section: u8,
    /// Its words; `None` where it says nothing and both routers may be right.
    pub(crate) sentence: Option<&'static str>,
    /// What ours does, for whoever comes from theirs. A row of docs/migration.md.
    pub(crate) ours: &'static str,
    /// What theirs does.
    pub(crate) theirs: &'static str,
}

/// Declares the decisions, and a list of all.
macro_rules! decisions {
    ($($name:ident: $section:literal, $sentence:expr, $ours:literal, $theirs:literal;)*) => {
        $(pub(crate) static $name: Decision = Decision {
            section: $section,
            sentence: $sentence,
            ours: $ours,
            theirs: $theirs,
        };)*

        /// All of them, in the order of the contract.
        pub(crate) static ALL: &[&Decision] = &[$(&$name,)*];
    };
}

decisions! {
    EVERYTHING_ELSE: 1, Some("Everything else is proxied, every method (HEAD, OPTIONS, custom ones too)."),
        "only `GET` and `HEAD /healthz` are the router's own; any other method there, and `OPTIONS *`, is the app's",
        "answers every method at `/healthz`, and `OPTIONS *`, itself";
    REDIRECTS: 1, Some("No redirects of our own, ever: SDKs treat 301/302/303/307/308 as an error."),
        "a path with `//`, `.` or `..` goes to the app as it is",
        "redirects a path with `//`, `.` or `..` to a tidy one";
    PORT_DIGITS: 2, Some("ASCII digits, 1..=65535"),
        "`X-Sandbox-Port: +8888` is 400",
        "`X-Sandbox-Port: +8888` is port 8888";
    PLAIN_ADDRESS: 2, None,
        "the broadcast address in `X-Sandbox-Pod-IP` is 400",
        "tries to connect to the broadcast address in `X-Sandbox-Pod-IP`, and answers 502";
    TIMEOUT: 2, Some("float seconds; invalid, non-finite, <= 0: ignored; above the configured timeout: capped. Never an error"),
        "`X-Sandbox-Timeout` shortens the wait, as it does at the Python router",
        "ignores `X-Sandbox-Timeout`";
    DUPLICATES: 2, Some("A routing header that occurs twice -> 400 `Duplicate <name> header.`"),
        "a routing header that occurs twice is 400",
        "takes the first of a routing header that occurs twice";
    PATHS: 3, Some("Path and query are forwarded byte for byte (SDKs send `%2F`, `%2E%2E` inside file names)."),
        "path and query arrive byte for byte",
        "decodes the path and encodes it anew, so that `%2F` arrives as `/`, and drops an empty query";
    DROPPED: 3, Some("Dropped: `Host`, `Authorization`, every `X-Sandbox-*`, every header of our own (identity, assertions), hop-by-hop headers"),
        "the app gets no `X-Sandbox-*`, no `X-Sandgate-*` and no `HTTP2-Settings`",
        "passes on `X-Sandbox-*`, `X-Sandgate-*` and `HTTP2-Settings`";
    UNDERSCORES: 3, None,
        "drops headers of those names with underscores, too, since many apps can't tell the two apart",
        "passes on `X_Sandbox_ID` and the like";
    HOST: 3, Some("`Host` at the app is `127.0.0.1:<port>`."),
        "`Host` at the app is always `127.0.0.1:<port>`",
        "puts the address or name that it dials into `Host`";
    EXPECT: 3, Some("`Expect: 100-continue` works."),
        "answers `Expect: 100-continue` itself; the app gets no `Expect`",
        "passes `Expect` on, and waits up to a second for the app's 100";
    TRUSTED: 3, Some("inbound ones kept only from `--trusted-proxy-cidrs` / `TRUSTED_PROXY_CIDRS` peers"),
        "keeps what a proxy in `TRUSTED_PROXY_CIDRS` says in `X-Forwarded-*`",
        "never keeps an inbound `X-Forwarded-*`";
    OTHER_FORWARDED: 3, None,
        "drops a client's `Forwarded`, `X-Real-IP` and every other `X-Forwarded-*`",
        "passes on `X-Real-IP` and most other `X-Forwarded-*`";
    REQUEST_ID: 3, Some("`X-Request-ID` (kept if sane, else made)"),
        "every request has one `X-Request-ID`: the client's if it is sane, else a new one",
        "passes on the `X-Request-ID` that the client sent, whatever it is, and makes none";
    TRACEPARENTS: 3, None,
        "drops `traceparent` where there are several",
        "passes on several `traceparent`";
    REQUEST_TRAILERS: 3, Some("Bodies stream both ways, nothing is buffered whole; trailers pass."),
        "trailers of a request reach the app",
        "drops trailers of a request";
    FRAMING: 3, Some("What RFC 9112 calls ambiguous or malformed gets 400, the connection closes, the app sees nothing"),
        "ambiguous or malformed framing is 400, and the connection closes",
        "repairs some bad framing and serves the request and the one behind it; refuses the rest with 400, 501, 502 or 505";
    CAPS: 3, Some("Caps, configurable: request head 60 KiB and 100 headers -> 431, target 8 KiB -> 414."),
        "heads over 60 KiB or 100 lines are 431, targets over 8 KiB are 414; flags change the caps",
        "takes heads of up to 1 MiB";
    APP_FRAMING: 3, Some("The app's head over the caps, of a wrong version, malformed or doubly framed -> 502, and that connection is never used again."),
        "an app's answer that can be read in two ways, or whose head is over the caps, is 502",
        "repairs some such answers, and passes them on";
    INFORMATIONAL: 3, Some("Informational answers: 100 serves `Expect`, 103 may pass, all are counted and bounded"),
        "more than eight informational answers are 502",
        "takes more than eight informational answers";
    HTTP_1_0: 3, Some("`Upgrade: h2c` and any upgrade asked for in HTTP/1.0 are ignored"),
        "an upgrade in HTTP/1.0 is ignored",
        "asks the app for an upgrade that was asked for in HTTP/1.0";
    EARLY_ANSWER: 3, Some("Bodies stream both ways, nothing is buffered whole"),
        "an answer that an app gives before it has the whole body reaches the client at once",
        "an answer that comes before the whole body is held back until the body has come";
    TIMEOUT_IS_504: 4, Some("connect timeout, no response head in time | 504 `Timed out waiting for the backend sandbox: <id>`"),
        "what takes too long is 504, as at the Python router",
        "what takes too long is 502";
    TOO_LARGE: 4, Some("request body over `--max-request-body-bytes` | 413 `Request body is too large.` (Go answers 502)"),
        "a body over `--max-request-body-bytes` is 413",
        "a body over `--max-request-body-bytes` is 502";
    CREDENTIAL: 4, Some("no or bad credential | 401 `Missing or invalid Authorization header.` / `Invalid token.`, with `WWW-Authenticate: Bearer`"),
        "`ROUTER_AUTH_TOKEN` is asked for, as at the Python router",
        "ignores `ROUTER_AUTH_TOKEN`, and lets everybody in";
    STREAMS: 4, Some("it is not a total, so a stream that keeps moving is never cut (Go cuts it)."),
        "`--proxy-timeout` bounds the wait for the head and each silence: a stream that moves is never cut",
        "`--proxy-timeout` bounds the whole request: longer streams are cut";
    RETRIES: 4, Some("Retries: dial-class failures only, 3 retries at 200 -> 400 -> 800 ms"),
        "an upload whose first connection failed arrives at the next attempt",
        "an upload whose first connection failed is 502, whatever the next attempt finds: the first has closed its body";
    HEADER_TIMEOUT: 4, Some("`--response-header-timeout` (0 = only proxy-timeout; Go's 30s kills slow `/execute`)."),
        "`--response-header-timeout` is 0 if not given: only `--proxy-timeout` counts",
        "`--response-header-timeout` is 30 s if not given, and 0 keeps it from starting";
    ACCEPT: 5, None,
        "a 101 that doesn't answer the WebSocket's key is 502",
        "a 101 that doesn't answer the WebSocket's key switches protocols all the same";
    WEBSOCKET_KEY: 5, None,
        "a WebSocket without a key is answered as the plain request it also is",
        "asks the app to open a WebSocket without a key";
    H2C: 5, Some("`Upgrade: h2c` is ignored"),
        "`Upgrade: h2c` is ignored, and `Origin` stays",
        "asks the app to switch to h2c, without `Origin`";
    CONNECT: 5, Some("CONNECT without `:protocol` is 405."),
        "`CONNECT` is 405",
        "`CONNECT` is 404";
    UNDECIDED: 6, Some("Starting without any decision about callers (no `--authz-mode`, no `ROUTER_AUTH_TOKEN`, no `ALLOW_UNAUTHENTICATED_ROUTER`) is refused with a text that names the choices"),
        "doesn't start until somebody has decided who may call",
        "lets everybody in";
    ALL_AT_ONCE: 6, Some("all bad values are reported together"),
        "names all that is wrong with its settings, and exits with 64",
        "names the first that is wrong with its settings, and exits with 2";
    USELESS: 6, None,
        "a flag without effect, such as `--cache-namespace` without `--cache-enabled`, keeps it from starting",
        "ignores flags without effect";
    LABELS: 7, Some("Label values a caller can choose (namespace, method) are bounded: unknown ones count as `other`."),
        "namespaces and methods that nobody knows are counted as `other`",
        "every caller can make new series with a namespace or a method";
    LOG_FIELDS: 7, Some("Access log: one JSON line per request with `method,path,status,duration_ms,client_ip,sandbox_id,sandbox_namespace,bytes_in,bytes_out,user_agent,request_id,caller,upstream,trace_id,span_id`"),
        "an access line also has `bytes_in`, `request_id`, `caller` and `upstream`, the trace without tracing, and in `error` what the router's own answer says; a default namespace is named",
        "an access line has fewer fields, and an empty namespace where the client named none";
}
