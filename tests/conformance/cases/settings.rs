//! Section 6: flags and variables, and what keeps a router from starting.

use crate::case::{App, Case, case, get, routed, with};
use crate::check::Check::{Asked, Detail, Exits, NeverWhole, Prints, Says, Status};
use crate::decisions::{ALL_AT_ONCE, CREDENTIAL, HEADER_TIMEOUT, TIMEOUT_IS_504, UNDECIDED, USELESS};
use crate::routers::Settings;

const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const TIMED_OUT: &str = "Timed out waiting for the backend sandbox: alpha";

pub(super) fn cases() -> Vec<Case> {
    [accepted(), effective(), decisions(), variables(), refused()].concat()
}

/// Flags with values that change nothing about a plain request.
fn accepted() -> Vec<Case> {
    let flags = [
        "-http-bind-address=127.0.0.1:0",
        "--http-bind-address=localhost:0",
        "--https-bind-address=",
        "--metrics-bind-address=127.0.0.1:0",
        "--health-probe-bind-address=127.0.0.1:0",
        "--mtls-mode=off",
        "--cluster-domain=cluster.local",
        "--proxy-timeout=180s",
        "--proxy-timeout=1m30s",
        "--proxy-timeout=1.5h",
        "--proxy-timeout=200000ms",
        "-proxy-timeout=90s",
        "--response-header-timeout=30s",
        "--shutdown-timeout=30s",
        "--shutdown-timeout=0s",
        "--max-request-body-bytes=1000000",
        "--allow-loopback-pod-ip=true",
        "-allow-loopback-pod-ip",
        "--upstream-max-retries=0",
        "--upstream-max-retries=10",
        "--upstream-retry-initial-delay=200ms",
        "--upstream-retry-max-delay=800ms",
        "--authz-mode=allow-all",
        "-authz-mode=allow-all",
        "--cache-enabled=false",
        "--cache-namespace=",
        "--access-log",
        "--access-log=true",
        "--access-log=false",
        "-access-log=false",
    ];
    let mut cases: Vec<Case> = flags
        .iter()
        .map(|flag| {
            case(format!("{flag} is accepted"), get("/page"))
                .with(Settings::open().flag(flag))
                .passes()
        })
        .collect();
    cases.extend([
        case("a value may be an argument of its own", get("/page"))
            .with(Settings::open().flag("--proxy-timeout").flag("90s"))
            .passes(),
        case("the HTTPS listener's flags are accepted", get("/page"))
            .with(
                Settings::open()
                    .flag("--https-bind-address=127.0.0.1:0")
                    .flag("--tls-cert-file=@FILES@/tls.crt")
                    .flag("--tls-key-file=@FILES@/tls.key")
                    .flag("--tls-client-ca-file=@FILES@/ca.crt")
                    .flag("--mtls-mode=required"),
            )
            .passes(),
        case("--mtls-mode=optional is accepted", get("/page"))
            .with(
                Settings::open()
                    .flag("--https-bind-address=127.0.0.1:0")
                    .flag("--tls-cert-file=@FILES@/tls.crt")
                    .flag("--tls-key-file=@FILES@/tls.key")
                    .flag("--tls-client-ca-file=@FILES@/ca.crt")
                    .flag("--mtls-mode=optional"),
            )
            .passes(),
        case("--response-header-timeout=0s leaves --proxy-timeout", get("/page"))
            .with(Settings::impatient().flag("--response-header-timeout=0s"))
            .app(App::Hangs)
            .expect([Status(504), Detail(TIMED_OUT), Asked(1)])
            .differs(
                &HEADER_TIMEOUT,
                [Exits(2), Says("--response-header-timeout must be positive")],
            ),
    ]);
    cases
}

/// Flags and variables that change what a client sees.
fn effective() -> Vec<Case> {
    let late = |name: &str, settings: Settings| {
        case(name, get("/page"))
            .with(settings)
            .app(App::Hangs)
            .expect([Status(504), Detail(TIMED_OUT), Asked(1)])
            .differs(&TIMEOUT_IS_504, [Status(502), Detail(UNREACHABLE), Asked(1)])
    };
    let variable = |value| Settings::open().variable("PROXY_TIMEOUT_SECONDS", value);
    vec![
        late(
            "--proxy-timeout bounds the wait",
            Settings::open().flag("--proxy-timeout=900ms"),
        ),
        late("PROXY_TIMEOUT_SECONDS bounds the wait", variable("1")),
        late("PROXY_TIMEOUT_SECONDS may have a fraction", variable("0.9")),
        late(
            "a flag wins over its variable",
            variable("3600").flag("--proxy-timeout=1s"),
        ),
        late(
            "the later of two flags wins",
            Settings::open().flag("--proxy-timeout=1h").flag("--proxy-timeout=1s"),
        ),
        case("--allow-loopback-pod-ip=false refuses loopback", get("/page"))
            .with(Settings::open().flag("-allow-loopback-pod-ip=false"))
            .refused(400, "Invalid target IP address."),
        case(
            "--max-request-body-bytes bounds bodies",
            crate::case::head("POST /up", "Content-Length: 11\r\n") + "more than 10",
        )
        .with(Settings::open().flag("--max-request-body-bytes=10"))
        .expect([Status(413), NeverWhole])
        .differs(&crate::decisions::TOO_LARGE, [Status(502), NeverWhole]),
    ]
}

fn decisions() -> Vec<Case> {
    let unauthenticated = |value| Settings::undecided().variable("ALLOW_UNAUTHENTICATED_ROUTER", value);
    let undecided = |name: &str, settings: Settings| {
        case(format!("{name} is no decision about callers"), get("/page"))
            .with(settings)
            .expect([
                Exits(64),
                Says("ROUTER_AUTH_TOKEN"),
                Says("--authz-mode=allow-all"),
                Says("ALLOW_UNAUTHENTICATED_ROUTER"),
            ])
            .passes_there(&UNDECIDED)
    };
    let mut cases = vec![
        undecided("nothing", Settings::undecided()),
        undecided(
            "a blank token",
            Settings::undecided().variable("ROUTER_AUTH_TOKEN", " \t"),
        ),
        undecided("false", unauthenticated("false")),
        undecided("0", unauthenticated("0")),
        undecided("an empty variable", unauthenticated("")),
        case(
            "the token of the variable is trimmed",
            with("Authorization: Bearer correct-horse\r\n"),
        )
        .with(Settings::undecided().variable("ROUTER_AUTH_TOKEN", " correct-horse\n"))
        .passes(),
        case("a token wins over ALLOW_UNAUTHENTICATED_ROUTER", get("/page"))
            .with(unauthenticated("true").variable("ROUTER_AUTH_TOKEN", "correct-horse"))
            .refused(401, "Missing or invalid Authorization header.")
            .passes_there(&CREDENTIAL),
    ];
    for value in ["1", "true", "t", "yes", "y", "on", "TRUE", " On "] {
        cases.push(
            case(
                format!("ALLOW_UNAUTHENTICATED_ROUTER={value} lets everybody in"),
                get("/page"),
            )
            .with(unauthenticated(value))
            .passes(),
        );
    }
    cases
}

/// Variables of both routers, also with values that they warn of.
fn variables() -> Vec<Case> {
    let taken = [
        ("PROXY_TIMEOUT_SECONDS", "soon"),
        ("PROXY_TIMEOUT_SECONDS", "-1"),
        ("PROXY_TIMEOUT_SECONDS", "0"),
        ("PROXY_TIMEOUT_SECONDS", ""),
        ("CLUSTER_DOMAIN", ""),
        ("CLUSTER_DOMAIN", "cluster.local"),
        ("MAX_KEEPALIVE_CONNECTIONS", "0"),
        ("MAX_KEEPALIVE_CONNECTIONS", "-1"),
        ("MAX_KEEPALIVE_CONNECTIONS", "many"),
        ("WEBSOCKET_IDLE_TIMEOUT_SECONDS", "0"),
        ("WEBSOCKET_IDLE_TIMEOUT_SECONDS", "soon"),
        ("WEBSOCKET_MAX_LIFETIME_SECONDS", "0"),
        ("WEBSOCKET_MAX_LIFETIME_SECONDS", "-1"),
        ("WEBSOCKET_MAX_CONNECTIONS_PER_CLIENT", "0"),
        ("WEBSOCKET_MAX_MESSAGE_BYTES", "16777216"),
        ("TRUSTED_PROXY_CIDRS", ""),
        ("TRUSTED_PROXY_CIDRS", "nonsense"),
        ("KUBECONFIG", "/nowhere"),
    ];
    let taken = taken.map(|(name, value)| {
        case(format!("{name}={value} is no reason not to start"), get("/page"))
            .with(Settings::open().variable(name, value))
            .passes()
    });
    let mut cases: Vec<Case> = taken.into();
    cases.push(
        // A name that no resolver asks a server for: a label has at most 63 bytes.
        case(
            "CLUSTER_DOMAIN is where names are looked up",
            routed("X-Sandbox-Pod-IP", &[]),
        )
        .with(Settings::open().variable(
            "CLUSTER_DOMAIN",
            "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
        ))
        .refused(502, UNREACHABLE),
    );
    cases
}

fn refused() -> Vec<Case> {
    let kept_out = |name: &str, settings: Settings, text| {
        case(format!("{name} keeps the router from starting"), get("/page"))
            .with(settings)
            .expect([Says(text)])
    };
    let useless = |flag: &'static str, needed| {
        kept_out(flag, Settings::open().flag(flag), needed)
            .expect([Exits(64)])
            .passes_there(&USELESS)
    };
    vec![
        useless("--cache-namespace=team-a", "--cache-enabled"),
        useless("--kubeconfig=/nowhere", "--cache-enabled"),
        useless("--tls-cert-file=/nowhere", "--https-bind-address"),
        kept_out(
            "an unknown flag",
            Settings::open().flag("--no-such-flag"),
            "no-such-flag",
        )
        .expect([Exits(2)]),
        kept_out(
            "a bad duration",
            Settings::open().flag("--proxy-timeout=soon"),
            "proxy-timeout",
        ),
        kept_out(
            "a duration without a unit",
            Settings::open().flag("--proxy-timeout=180"),
            "proxy-timeout",
        ),
        kept_out(
            "a proxy timeout of 0",
            Settings::open().flag("--proxy-timeout=0s"),
            "proxy-timeout",
        ),
        kept_out(
            "a negative body limit",
            Settings::open().flag("--max-request-body-bytes=-1"),
            "max-request-body-bytes",
        ),
        kept_out(
            "an unknown mode of mTLS",
            Settings::open().flag("--mtls-mode=maybe"),
            "mtls-mode",
        ),
        kept_out(
            "an unknown mode of callers",
            Settings::undecided().flag("--authz-mode=maybe"),
            "authz-mode",
        ),
        kept_out(
            "mTLS without a listener",
            Settings::open().flag("--mtls-mode=required"),
            "https-bind-address",
        ),
        kept_out(
            "an HTTPS listener without a certificate",
            Settings::open().flag("--https-bind-address=127.0.0.1:0"),
            "tls-cert-file",
        ),
        kept_out(
            "several bad values",
            Settings::open()
                .flag("--proxy-timeout=0s")
                .flag("--mtls-mode=required")
                .flag("--upstream-max-retries=-1"),
            "upstream-max-retries",
        )
        .expect([Exits(64), Says("proxy-timeout"), Says("mtls-mode")])
        .differs(&ALL_AT_ONCE, [Exits(2)]),
        case("--version says the version and ends", get("/page"))
            .with(Settings::open().flag("--version"))
            .expect([Exits(0), Prints("sandbox-router")]),
    ]
}
