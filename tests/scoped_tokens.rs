//! Scoped tokens at a real router, with a gate behind it and without: who holds one gets to its sandbox, and of whatever else
//! is tried with it, or without the keys, the app sees nothing.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use data_encoding::BASE64URL_NOPAD;
use sandgate_mesh::policy::model::Source;
use sandgate_mesh::scoped_token::{Claims, Scope, Secrets, SigningKey};
use sandgate_mesh::telemetry::seconds_since_1970;
use sandgate_tests::folder::Folder;
use sandgate_tests::{Mesh, RecordingApp, assert_detail, rule, send, status};
use std::net::SocketAddr;
use std::time::SystemTime;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const BAD: (u16, &str) = (401, "Invalid token.");
const MISSING: (u16, &str) = (401, "Missing or invalid Authorization header.");
const OTHER_SANDBOX: (u16, &str) = (403, "Token is not valid for this sandbox.");
/// A domain under which no name can exist: a label has at most 63 bytes, so no resolver asks a server.
const NO_DOMAIN: &str = "--cluster-domain=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// The keys of both versions, and routers that have the files they need of them: through the gate, and straight to the app.
struct World {
    mesh: Mesh,
    secrets: Secrets,
    key: SigningKey,
    routers: [SocketAddr; 2],
    flags: Vec<String>,
    _folder: Folder,
}

impl World {
    async fn new() -> Self {
        Self::around(Mesh::open(RecordingApp::polite().await).await)
    }

    fn around(mesh: Mesh) -> Self {
        let folder = Folder::new();
        let key = SigningKey::generate().unwrap().0;
        folder.rename_over("secret", [SECRET, b"\n"].concat());
        folder.rename_over("keys.pem", key.public_pem());
        let flags = vec![
            "--auth-token=".into(),
            "--authz-mode=scoped-token".into(),
            format!("--authz-scoped-token-secret-file={}", folder.path("secret").display()),
            format!(
                "--authz-scoped-token-public-keys-file={}",
                folder.path("keys.pem").display()
            ),
        ];
        let given: Vec<&str> = flags.iter().map(String::as_str).collect();
        Self {
            routers: mesh.run_both(&given),
            secrets: Secrets::parse(SECRET).unwrap(),
            key,
            flags,
            mesh,
            _folder: folder,
        }
    }

    /// The same claims, signed by either key.
    fn both(&self, claims: &Claims) -> [String; 2] {
        [self.secrets.mint(claims).unwrap(), self.key.mint(claims).unwrap()]
    }

    /// A request to `alpha` with these fields, each ended with CRLF.
    fn request(&self, line: &str, fields: &str) -> String {
        let port = self.mesh.ports.app;
        format!(
            "{line} HTTP/1.1\r\nHost: sandbox.example\r\nX-Sandbox-ID: alpha\r\nX-Sandbox-Port: {port}\r\nConnection: close\r\n\
             {fields}\r\n"
        )
    }

    async fn assert_refused(&self, request: &str, (code, text): (u16, &str), attack: &str) {
        for router in self.routers {
            assert_detail(&send(router, request).await, code, text, attack);
            self.mesh.app.assert_untouched(attack);
        }
    }

    async fn assert_let_in(&self, request: &str, context: &str) {
        for router in self.routers {
            let response = send(router, request).await;
            assert_eq!(status(&response), 200, "{context}: {response}");
            let head = self.mesh.app.take_only_request().head.to_ascii_lowercase();
            assert!(
                !head.contains("authorization") && !head.contains("v1.") && !head.contains("v2."),
                "{head}"
            );
        }
    }
}

/// `Authorization` with this token.
fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn now() -> u64 {
    seconds_since_1970(SystemTime::now())
}

/// What binds nothing but a sandbox, for an hour.
fn claims(sandbox: &str) -> Claims {
    let (namespace, name) = sandbox.split_once('/').unwrap();
    Claims {
        scope: Scope {
            sandbox: sandgate_mesh::sandbox::SandboxKey {
                namespace: namespace.parse().unwrap(),
                name: name.parse().unwrap(),
            },
            uid: None,
            port: None,
            method: None,
            path: None,
        },
        expires: now() + 3600,
    }
}

#[tokio::test]
async fn a_token_opens_its_own_sandbox_and_never_reaches_it() {
    let world = World::new().await;
    for token in world.both(&claims("default/alpha")) {
        for line in ["GET /", "POST /execute?a=v", "DELETE /files/a%2Fb"] {
            world.assert_let_in(&world.request(line, &bearer(&token)), line).await;
        }
        let spelt = format!("AUTHORIZATION: bearer  {token} \r\n");
        world.assert_let_in(&world.request("GET /", &spelt), &spelt).await;
    }
}

#[tokio::test]
async fn a_token_for_another_sandbox_or_namespace_opens_nothing() {
    let world = World::new().await;
    for other in ["default/beta", "team-b/alpha", "alpha/default", "default/alpha-1"] {
        for token in world.both(&claims(other)) {
            let request = world.request("GET /", &bearer(&token));
            world.assert_refused(&request, OTHER_SANDBOX, other).await;
        }
    }
    // Who may not ask for it doesn't learn whether its address is known, either.
    for token in world.both(&claims("default/alpha")) {
        let request = world.request("GET /", &bearer(&token)).replace("alpha", "nobody");
        world.assert_refused(&request, OTHER_SANDBOX, "nobody").await;
    }
}

#[tokio::test]
async fn an_expired_token_opens_nothing() {
    let world = World::new().await;
    for expires in [0, 1, now() - 1] {
        let expired = Claims {
            expires,
            ..claims("default/alpha")
        };
        for token in world.both(&expired) {
            let request = world.request("GET /", &bearer(&token));
            world
                .assert_refused(&request, BAD, &format!("ended at {expires}"))
                .await;
        }
    }
}

#[tokio::test]
async fn a_token_that_somebody_changed_opens_nothing() {
    let world = World::new().await;
    let [for_beta, for_alpha] = [claims("default/beta"), claims("default/alpha")].map(|claims| world.both(&claims));
    for (beta, alpha) in for_beta.iter().zip(&for_alpha) {
        let (head, proof) = beta.rsplit_once('.').unwrap();
        let (start, payload) = head.rsplit_once('.').unwrap();
        let json = String::from_utf8(BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap();
        let altered = |from: &str, to: &str| {
            let payload = BASE64URL_NOPAD.encode(json.replace(from, to).as_bytes());
            format!("{start}.{payload}.{proof}")
        };
        let flipped = if proof.starts_with('A') { "B" } else { "A" };
        for (attack, token) in [
            ("payload altered", altered("beta", "alpha")),
            (
                "payload of another token",
                format!("{}.{proof}", alpha.rsplit_once('.').unwrap().0),
            ),
            ("key repeated", altered("{", r#"{"name":"alpha","#)),
            (
                "proof altered",
                format!("{}.{flipped}{}", alpha.rsplit_once('.').unwrap().0, &proof[1..]),
            ),
            ("proof cut", alpha[..alpha.len() - 2].to_owned()),
            ("proof left out", format!("{}.", alpha.rsplit_once('.').unwrap().0)),
            ("padding", format!("{alpha}=")),
            (
                "version swapped",
                alpha
                    .replacen("v1.", "V.", 1)
                    .replacen("v2.", "v1.", 1)
                    .replacen("V.", "v2.", 1),
            ),
            ("version unknown", alpha.replacen('v', "v3.v", 1)),
            ("not a token", "s3cret".into()),
            ("too long", format!("{alpha}{}", "A".repeat(5_000))),
        ] {
            let request = world.request("GET /", &bearer(&token));
            world.assert_refused(&request, BAD, attack).await;
        }
    }
}

#[tokio::test]
async fn whoever_knows_the_public_key_or_has_another_key_mints_nothing() {
    let world = World::new().await;
    let pem = world.key.public_pem();
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = data_encoding::BASE64.decode(base64.as_bytes()).unwrap();
    let known = [base64.as_bytes(), &der, &der[12..], &base64.as_bytes()[16..]];
    // White space at an end would be cut off, and a key of chance may have it.
    for secret in known.into_iter().filter_map(|known| Secrets::parse(known).ok()) {
        let v1 = secret.mint(&claims("default/alpha")).unwrap();
        let v2 = v1.replacen("v1.", &format!("v2.{}.", world.key.id()), 1);
        for token in [v1, v2] {
            let request = world.request("GET /", &bearer(&token));
            world.assert_refused(&request, BAD, "the public key as a secret").await;
        }
    }
    let (stranger, private) = SigningKey::generate().unwrap();
    let in_its_name = SigningKey::parse(private.as_bytes(), Some(world.key.id().clone())).unwrap();
    let other_secret = Secrets::parse(b"a-secret-that-the-router-doesnt-have").unwrap();
    for token in [
        stranger.mint(&claims("default/alpha")).unwrap(),
        in_its_name.mint(&claims("default/alpha")).unwrap(),
        other_secret.mint(&claims("default/alpha")).unwrap(),
    ] {
        let request = world.request("GET /", &bearer(&token));
        world.assert_refused(&request, BAD, "another key").await;
    }
}

#[tokio::test]
async fn a_bound_token_is_of_no_use_for_another_path_method_or_port() {
    let world = World::new().await;
    let mut bound = claims("default/alpha");
    bound.scope.path = Some("/files/a%2Fb".parse().unwrap());
    bound.scope.method = Some(http::Method::GET);
    bound.scope.port = Some(world.mesh.ports.app.to_string().parse().unwrap());
    let token = bearer(&world.key.mint(&bound).unwrap());
    world
        .assert_let_in(&world.request("GET /files/a%2Fb", &token), "as bound")
        .await;
    world
        .assert_let_in(&world.request("GET /files/a%2Fb?q=1", &token), "any query")
        .await;
    world
        .assert_let_in(
            &world.request("GET http://x.example/files/a%2Fb", &token),
            "absolute form",
        )
        .await;
    for (line, text) in [
        ("POST /files/a%2Fb", "Token is not valid for this method."),
        ("HEAD /files/a%2Fb", "Token is not valid for this method."),
        ("GET /files/a/b", "Token is not valid for this path."),
        ("GET /files/a%2fb", "Token is not valid for this path."),
        ("GET /files/a%2Fb/", "Token is not valid for this path."),
        ("GET /files/x/../a%2Fb", "Token is not valid for this path."),
        ("GET //files/a%2Fb", "Token is not valid for this path."),
        ("GET /?/files/a%2Fb", "Token is not valid for this path."),
        ("GET http://x.example?/files/a%2Fb", "Token is not valid for this path."),
    ] {
        if line.starts_with("HEAD") {
            for router in world.routers {
                assert_eq!(status(&send(router, world.request(line, &token)).await), 403);
            }
            world.mesh.app.assert_untouched(line);
        } else {
            world
                .assert_refused(&world.request(line, &token), (403, text), line)
                .await;
        }
    }
    let elsewhere = format!("X-Sandbox-Port: {}\r\n", world.mesh.ports.health);
    let request = world.request("GET /files/a%2Fb", &token);
    let (own, _) = request.split_once("X-Sandbox-Port").unwrap();
    let request = format!("{own}{elsewhere}Connection: close\r\n{token}\r\n");
    world
        .assert_refused(&request, (403, "Token is not valid for this port."), "another port")
        .await;
    world.mesh.health.assert_untouched("another port");
    // Headers by which frameworks take a request for another one don't widen a token, and reach the app as they are.
    let overriding = world.request(
        "POST /other",
        &format!("X-HTTP-Method-Override: GET\r\nX-Original-URL: /files/a%2Fb\r\n{token}"),
    );
    world
        .assert_refused(&overriding, (403, "Token is not valid for this method."), "override")
        .await;
}

#[tokio::test]
async fn a_token_for_one_sandbox_object_opens_nothing_where_nobody_knows_which_one_that_is() {
    let world = World::new().await;
    let mut bound = claims("default/alpha");
    bound.scope.uid = Some("4f737e4b-22dc-4a61-a2db-c765fe28f967".parse().unwrap());
    let token = bearer(&world.key.mint(&bound).unwrap());
    for fields in [
        "",
        "X-Sandbox-UID: 4f737e4b-22dc-4a61-a2db-c765fe28f967\r\n",
        "X-Sandbox-UID: another\r\n",
        "X-Sandbox-Pod-IP: 10.0.0.1\r\n",
    ] {
        let request = world.request("GET /", &format!("{token}{fields}"));
        world.assert_refused(&request, OTHER_SANDBOX, fields).await;
    }
}

#[tokio::test]
async fn a_token_anywhere_but_in_one_authorization_header_is_none() {
    let world = World::new().await;
    for token in world.both(&claims("default/alpha")) {
        for (attack, line, fields) in [
            ("none", "GET /".to_owned(), String::new()),
            (
                "query",
                format!("GET /?token={token}&access_token={token}"),
                String::new(),
            ),
            (
                "cookie",
                "GET /".into(),
                format!("Cookie: token={token}; Authorization={token}\r\n"),
            ),
            (
                "another scheme",
                "GET /".into(),
                format!("Authorization: Basic {token}\r\n"),
            ),
            ("no scheme", "GET /".into(), format!("Authorization: {token}\r\n")),
            ("twice", "GET /".into(), bearer(&token).repeat(2)),
            (
                "for a proxy",
                "GET /".into(),
                format!("Proxy-Authorization: Bearer {token}\r\n"),
            ),
        ] {
            world
                .assert_refused(&world.request(&line, &fields), MISSING, attack)
                .await;
        }
    }
}

/// Without gates and without a cache, an address that a client names would be believed: a token for one sandbox would open
/// all addresses.
#[tokio::test]
async fn a_token_does_not_lead_to_an_address_that_its_holder_names() {
    let world = World::new().await;
    let hint = |token: &str| {
        let fields = format!("{}X-Sandbox-Pod-IP: 127.0.0.1\r\n", bearer(token));
        world.request("GET /", &fields).replace("alpha", "beta")
    };
    let unproven = [
        "--mesh=off",
        "--allow-loopback-pod-ip",
        "--upstream-max-retries=0",
        NO_DOMAIN,
    ];
    let given = world
        .flags
        .iter()
        .map(String::as_str)
        .chain(unproven)
        .collect::<Vec<_>>();
    let router = world.mesh.run_router(&given);
    for token in world.both(&claims("default/beta")) {
        let response = send(router, hint(&token)).await;
        assert_detail(&response, 502, "Could not connect to the backend sandbox: beta", "hint");
        world.mesh.app.assert_untouched("hint");
    }
    // Anybody else's hint counts there: that is what the token must not have.
    let everybody = world
        .mesh
        .run_router(&[&["--auth-token=", "--authz-mode=allow-all"], &unproven[..]].concat());
    assert_eq!(status(&send(everybody, hint("none")).await), 200);
}

#[tokio::test]
async fn a_gates_policy_knows_the_holder_by_the_key() {
    let only = |user: &'static str| {
        let source = Source {
            users: Some(vec![user.into()]),
            ..Source::default()
        };
        async move {
            let mesh = Mesh::start(RecordingApp::polite().await, |ports| rule(source, ports.app, &[], &[])).await;
            World::around(mesh)
        }
    };
    let world = only("scoped:v1").await;
    let [v1, v2] = world
        .both(&claims("default/alpha"))
        .map(|token| world.request("GET /", &bearer(&token)));
    let [through_gate, _] = world.routers;
    assert_eq!(status(&send(through_gate, &v1).await), 200);
    world.mesh.app.forget();
    let refused = send(through_gate, &v2).await;
    assert_detail(
        &refused,
        403,
        "Refused by the sandbox policy of alpha.",
        "another holder",
    );
    world.mesh.app.assert_untouched("another holder");
}

#[tokio::test]
async fn a_kept_connection_is_judged_anew_with_each_request() {
    let world = World::new().await;
    let other = world.request("GET /", &bearer(&world.key.mint(&claims("default/beta")).unwrap()));
    for token in world.both(&claims("default/alpha")) {
        let own = world
            .request("GET /", &bearer(&token))
            .replace("Connection: close\r\n", "");
        let response = send(world.routers[0], format!("{own}{own}{other}")).await;
        let statuses: Vec<&str> = response.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
        assert_eq!(statuses, ["200", "200", "403"], "{response}");
        assert_eq!(world.mesh.app.requests().len(), 2);
        world.mesh.app.forget();
    }
}
