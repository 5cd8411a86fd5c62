//! What of a message's head may cross a hop (RFC 9110 section 7.6.1, CONTRACT section 3), for both programs and both
//! directions. Names of ours are stripped always, also when there is nothing to put in their place.

use crate::contract::{
    OWN_HEADER_PREFIX, ROUTING_HEADER_PREFIX, TRACEPARENT, X_REQUEST_ID, X_SANDBOX_ID, X_SANDBOX_NAMESPACE,
    X_SANDBOX_POD_IP, X_SANDBOX_PORT, X_SANDBOX_TIMEOUT, X_SANDBOX_UID, X_SANDGATE_CALLER, X_SANDGATE_OUTCOME,
};
use crate::framing::ExtendedConnect;
use crate::tunnel::Protocol;
use bytes::Bytes;
use data_encoding::BASE64;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// Whether a header concerns one hop only (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2).
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Names that the `http` crate knows compare as numbers.
    [
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
    ]
    .contains(name)
        || matches!(name.as_str(), "http2-settings" | "keep-alive" | "proxy-connection")
}

/// The names of ours that are on most messages. To copy one of these is free; a peer's name is reference-counted first.
static USUAL: [HeaderName; 8] = [
    X_SANDBOX_ID,
    X_SANDBOX_NAMESPACE,
    X_SANDBOX_PORT,
    X_SANDBOX_POD_IP,
    X_SANDBOX_UID,
    X_SANDBOX_TIMEOUT,
    X_SANDGATE_CALLER,
    X_SANDGATE_OUTCOME,
];

/// Removes every header that `gone` names. One look at each header costs a fraction of a look-up for each name that
/// could be there.
fn remove_all(headers: &mut HeaderMap, gone: impl Fn(&HeaderName) -> bool) {
    // Where the last one stood: its place is taken by another, so most of the map need not be looked at again.
    let mut from = 0;
    loop {
        match headers.keys().enumerate().skip(from).find(|(_, name)| gone(name)) {
            Some((place, name)) => {
                from = place;
                let name = USUAL.iter().find(|usual| *usual == name).unwrap_or(name).clone();
                headers.remove(name);
            }
            None if from == 0 => return,
            // Whatever order the map keeps, nothing is left when a look at all of it finds nothing.
            None => from = 0,
        }
    }
}

/// A header that may occur once occurs twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeated;

/// The only value of a header, or `None` where it is absent.
///
/// # Errors
/// [`Repeated`]: two readers could take different ones.
pub fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Repeated> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Repeated),
    }
}

/// A copy in memory of its own, for whoever outlives the message: a value keeps all of the buffer that its head was read into.
pub fn detached(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// A switch of protocols that a request asks for, and how an app that really switches must answer.
#[derive(Debug, Clone)]
pub struct Upgrade {
    protocol: HeaderValue,
    /// Whether success, too, would tell the client that the switch was made.
    is_extended_connect: bool,
    /// For a WebSocket: the `Sec-WebSocket-Accept` that answers its key (RFC 6455 section 4.2.2).
    accept: Option<String>,
}

/// What RFC 6455 section 1.3 appends to a WebSocket's key.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The switch that a request asks for, where this project would forward it: HTTP/1.1, exactly one `Upgrade` that
/// `Connection` names, a single protocol, and not `h2c` (RFC 9113 section 3.1 retired it); for a WebSocket, one key. Without
/// a body: the connection switches when that has ended (RFC 9110 section 7.8), and until then no limit of a tunnel counts.
pub fn requested_upgrade<B>(request: &Request<B>) -> Option<Upgrade> {
    let headers = request.headers();
    let has_body =
        headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if request.version() != Version::HTTP_11 || has_body || !names(headers, "upgrade") {
        return None;
    }
    let protocol = only(headers, &UPGRADE).ok().flatten()?;
    let text = protocol.to_str().ok()?.trim();
    let one_token = !text.is_empty() && !text.contains([',', ' ', '\t']);
    if !one_token || text.eq_ignore_ascii_case("h2c") {
        return None;
    }
    let accept = if text.eq_ignore_ascii_case("websocket") {
        let key = only(headers, &SEC_WEBSOCKET_KEY).ok().flatten()?.to_str().ok()?;
        let answer = digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            format!("{}{WEBSOCKET_GUID}", key.trim()).as_bytes(),
        );
        Some(BASE64.encode(answer.as_ref()))
    } else {
        None
    };
    Some(Upgrade {
        protocol: protocol.clone(),
        is_extended_connect: request.extensions().get::<ExtendedConnect>().is_some(),
        accept,
    })
}

impl Upgrade {
    /// What the two sides speak behind the switch.
    pub fn protocol(&self) -> Protocol {
        if self.accept.is_some() {
            Protocol::WebSocket
        } else {
            Protocol::Other
        }
    }

    /// Whether an answer with this status, which doesn't switch, would be taken for one that does (RFC 8441 section 5).
    pub fn is_feigned_by(&self, status: StatusCode) -> bool {
        self.is_extended_connect && status.is_success()
    }

    /// Whether the head of a 101 switches to this protocol, and not merely has that number: behind it bytes pass without
    /// being looked at.
    pub fn is_answered_by(&self, headers: &HeaderMap) -> bool {
        let is = |name: &HeaderName, expected: &str, same: fn(&str, &str) -> bool| {
            let value = only(headers, name).ok().flatten().and_then(|value| value.to_str().ok());
            value.is_some_and(|value| same(value.trim(), expected))
        };
        let protocol = self.protocol.to_str().unwrap_or_default().trim();
        names(headers, "upgrade")
            && is(&UPGRADE, protocol, |value, expected| {
                value.eq_ignore_ascii_case(expected)
            })
            && self
                .accept
                .as_deref()
                .is_none_or(|accept| is(&SEC_WEBSOCKET_ACCEPT, accept, |value, expected| value == expected))
    }
}

/// Longest `Connection` and `Trailer` in bytes, together. Each name in them is looked up in the head.
const MAX_NAMING: usize = 1024;

/// Whether a head names so many options and trailers that following them would cost more than the message is worth.
pub fn names_too_much(headers: &HeaderMap) -> bool {
    let length = |name| headers.get_all(name).iter().map(HeaderValue::len).sum::<usize>();
    length(CONNECTION) + length(TRAILER) > MAX_NAMING
}

/// Longest request ID that is kept, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// Keeps a sane request ID, if there is exactly one, or makes one.
pub fn ensure_request_id(headers: &mut HeaderMap) {
    let sane = |value: &HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&value.len())
            && value
                .as_bytes()
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(b))
    };
    if only(headers, &X_REQUEST_ID).ok().flatten().is_some_and(sane) {
        return;
    }
    // Shared from the start: whoever keeps a copy for the log allocates nothing.
    let made = HeaderValue::from_maybe_shared(Bytes::from_owner(random_hex()));
    let made = made.unwrap_or(HeaderValue::from_static("unknown"));
    headers.insert(X_REQUEST_ID, made);
}

/// 128 random bits as 32 digits. Without `format!`, which costs as much as all else that is done for an ID.
fn random_hex() -> [u8; 32] {
    let mut rest = fastrand::u128(..);
    [(); 32].map(|()| {
        let [nibble, ..] = (rest & 15).to_le_bytes();
        rest >>= 4;
        nibble + if nibble < 10 { b'0' } else { b'a' - 10 }
    })
}

/// Whether `Connection` names `option`.
fn names(headers: &HeaderMap, option: &str) -> bool {
    connection_options(headers).any(|found| found.eq_ignore_ascii_case(option))
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

/// Whether a header that `Connection` names is nevertheless kept: a caller must not be able to make a hop drop what
/// frames, routes or attributes the request.
fn outlives_connection(name: &HeaderName) -> bool {
    [
        HOST,
        AUTHORIZATION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        X_REQUEST_ID,
        TRACEPARENT,
    ]
    .contains(name)
        || name.as_str().starts_with("x-forwarded-")
}

/// What a head has of headers that concern one hop only: which of them need to be read before they go.
#[derive(Debug, Default, Clone, Copy)]
struct HopByHop {
    any: bool,
    te: bool,
    trailer: bool,
}

impl HopByHop {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            if is_hop_by_hop(name) {
                found.any = true;
                found.te |= *name == TE;
                found.trailer |= *name == TRAILER;
            }
        }
        found
    }
}

/// Removes from an answer's head what concerns only the hop that it arrived on, and re-makes what this project offers on
/// the next one: `Trailer` where the sender announced some, and the accepted `upgrade`.
pub fn cross_hop(headers: &mut HeaderMap, upgrade: Option<&Upgrade>) {
    cross(headers, upgrade, false);
}

/// The same for both kinds of message. Only a request re-makes `TE: trailers`, where its sender takes trailers.
fn cross(headers: &mut HeaderMap, upgrade: Option<&Upgrade>, is_request: bool) {
    let found = HopByHop::of(headers);
    // Read before anything goes: a sender that takes trailers names `TE` in `Connection` too.
    let takes_trailers = is_request && found.te && te_trailers(headers);
    let announced = if found.trailer {
        announced_trailers(headers)
    } else {
        None
    };
    if found.any {
        for name in named_by_connection(headers) {
            headers.remove(name);
        }
        remove_all(headers, is_hop_by_hop);
    }
    if let Some(announced) = announced {
        headers.insert(TRAILER, announced);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade.protocol.clone());
    } else if takes_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The headers that are dropped only because `Connection` names them.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    connection_options(headers)
        .filter(|option| !matches!(*option, "close" | "keep-alive"))
        .filter_map(|option| option.parse().ok())
        .filter(|name| !is_hop_by_hop(name) && !outlives_connection(name))
        .collect()
}

fn te_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// The announced trailer fields that may pass.
fn announced_trailers(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    let fields = lines
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok());
    let allowed: Vec<String> = fields.filter(may_trail).map(|name| name.as_str().to_owned()).collect();
    (!allowed.is_empty())
        .then(|| HeaderValue::from_str(&allowed.join(", ")).ok())
        .flatten()
}

/// Whether a field may stand in a trailer section: nothing that frames, routes, authenticates or identifies
/// (RFC 9110 section 6.5.1).
fn may_trail(name: &HeaderName) -> bool {
    let reserved = [
        HOST,
        AUTHORIZATION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        CONNECTION,
        UPGRADE,
        TE,
        TRAILER,
        http::header::COOKIE,
        http::header::SET_COOKIE,
        EXPECT,
        http::header::CONTENT_TYPE,
        http::header::CONTENT_ENCODING,
    ];
    !reserved.contains(name) && !is_ours(name) && !is_forwarded(name)
}

/// Removes from a trailer section what may not stand there.
pub fn sanitise_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| !may_trail(name));
}

fn is_ours(name: &HeaderName) -> bool {
    let ours = |name: &str| name.starts_with(OWN_HEADER_PREFIX) || name.starts_with(ROUTING_HEADER_PREFIX);
    either_spelling(name, ours)
}

fn is_forwarded(name: &HeaderName) -> bool {
    let forwarded = |name: &str| matches!(name, "forwarded" | "x-real-ip") || name.starts_with("x-forwarded-");
    either_spelling(name, forwarded)
}

/// Whether a name is `wanted` as it stands or with hyphens for its underscores: to apps that get headers as variables
/// (CGI, WSGI) both are the same one.
fn either_spelling(name: &HeaderName, wanted: impl Fn(&str) -> bool) -> bool {
    let name = name.as_str();
    wanted(name) || name.contains('_') && wanted(&name.replace('_', "-"))
}

/// Removes every routing header and every header of our own.
pub fn strip_ours(headers: &mut HeaderMap) {
    remove_all(headers, is_ours);
}

/// Removes everything in which a client says how its request got here. Only proxies that are trusted may say that.
pub fn strip_forwarded(headers: &mut HeaderMap) {
    remove_all(headers, is_forwarded);
}

/// Leaves in a request's head what may go up one hop: nothing of ours, no credential, no expectation (each hop answers
/// that itself), no trace context that could be read in two ways, and of the hop-by-hop headers only the accepted
/// `upgrade`. The same at both programs.
pub fn sanitise_request(headers: &mut HeaderMap, upgrade: Option<&Upgrade>) {
    // Servers of WebSockets compare Origin with Host, which is ours.
    let switches = upgrade.is_some();
    remove_all(headers, |name| {
        is_ours(name) || *name == AUTHORIZATION || *name == EXPECT || switches && *name == ORIGIN
    });
    // W3C Trace Context section 3.2: one, or none.
    if headers.get_all(TRACEPARENT).iter().nth(1).is_some() {
        headers.remove(TRACEPARENT);
    }
    cross(headers, upgrade, true);
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
