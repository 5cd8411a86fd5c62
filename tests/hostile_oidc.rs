//! Whoever forges, bends or borrows a token of an OIDC issuer gets nothing: the app sees none of it, and the issuer is not
//! asked more often than the operator allows.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use data_encoding::BASE64URL_NOPAD;
use futures_util::future::join_all;
use ring::hmac;
use sandgate_tests::issuer::{DISCOVERY, Issuer, JWKS, SigningKey, seconds_from_now};
use sandgate_tests::{Mesh, RecordingApp, TOKEN, assert_detail, send, status};
use serde_json::{Value, json};
use std::net::SocketAddr;

const INVALID: &str = "Invalid token.";

fn with(mesh: &Mesh, token: &str) -> String {
    mesh.head("GET /page HTTP/1.1", "").replace(TOKEN, token)
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

/// An issuer with a key of each kind, and a router that takes all of its algorithms.
struct Scene {
    issuer: Issuer,
    rsa: SigningKey,
    p256: SigningKey,
    ed25519: SigningKey,
    mesh: Mesh,
    router: SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        let (rsa, p256) = (SigningKey::rsa("rsa", 0), SigningKey::p256("p256"));
        let ed25519 = SigningKey::ed25519("ed25519");
        let issuer = Issuer::start(&[&rsa, &p256, &ed25519]).await;
        let mesh = Mesh::open(RecordingApp::polite().await).await;
        let router = issuer.run_router(&mesh, &[]);
        let scene = Self {
            issuer,
            rsa,
            p256,
            ed25519,
            mesh,
            router,
        };
        // What the attacks differ from is good.
        let good = scene.p256.sign("ES256", &scene.issuer.claims());
        let response = send(scene.router, with(&scene.mesh, &good)).await;
        assert_eq!(status(&response), 200, "{response}");
        scene.mesh.app.forget();
        scene
    }

    async fn refused(&self, token: &str, context: &str) {
        let response = send(self.router, with(&self.mesh, token)).await;
        assert_detail(&response, 401, INVALID, context);
        self.mesh.app.assert_untouched(context);
    }

    /// Good claims in which this one has another value.
    fn claims(&self, claim: &str, value: Value) -> Value {
        let mut claims = self.issuer.claims();
        claims[claim] = value;
        claims
    }
}

#[tokio::test]
async fn a_token_without_a_signature_opens_nothing() {
    let scene = Scene::new().await;
    let claims = scene.issuer.claims().to_string();
    for name in ["none", "None", "NONE", "nOnE", ""] {
        for kid in ["", r#","kid":"rsa""#] {
            let signed = format!("{}.{}", b64(format!(r#"{{"alg":"{name}"{kid}}}"#)), b64(&claims));
            for token in [format!("{signed}."), signed.clone(), format!("{signed}.AA")] {
                scene.refused(&token, name).await;
            }
        }
    }
    // A good one, without its signature.
    let good = scene.p256.sign("ES256", &scene.issuer.claims());
    let signed = good.rsplit_once('.').unwrap().0;
    for signature in [String::new(), b64([0; 64]), b64([0; 32]), b64([0xff; 64])] {
        scene.refused(&format!("{signed}.{signature}"), &signature).await;
    }
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret() {
    let scene = Scene::new().await;
    let jwk = scene.rsa.jwk();
    let modulus = BASE64URL_NOPAD.decode(jwk["n"].as_str().unwrap().as_bytes()).unwrap();
    for secret in [
        jwk.to_string().into_bytes(),
        modulus,
        jwk["n"].as_str().unwrap().into(),
        Vec::new(),
    ] {
        for (name, algorithm) in [("HS256", hmac::HMAC_SHA256), ("HS512", hmac::HMAC_SHA512)] {
            let header = json!({"alg": name, "kid": "rsa"}).to_string();
            let signed = format!("{}.{}", b64(header), b64(scene.issuer.claims().to_string()));
            let tag = hmac::sign(&hmac::Key::new(algorithm, &secret), signed.as_bytes());
            scene.refused(&format!("{signed}.{}", b64(tag)), name).await;
        }
    }
}

#[tokio::test]
async fn a_token_is_verified_by_the_key_it_names_and_in_that_keys_own_way() {
    let scene = Scene::new().await;
    let claims = scene.issuer.claims().to_string();
    let Scene { rsa, p256, ed25519, .. } = &scene;
    let kinds = [(rsa, "RS256"), (p256, "ES256"), (ed25519, "EdDSA")];
    for (signer, by) in kinds {
        for (named, algorithm) in kinds {
            if by == algorithm {
                continue;
            }
            let context = format!("{by} as {algorithm} of {}", named.id);
            // The header lies about the key, about the algorithm, or about both.
            for (alg, kid) in [(by, &named.id), (algorithm, &signer.id), (algorithm, &named.id)] {
                let header = json!({"alg": alg, "kid": kid}).to_string();
                scene.refused(&signer.sign_raw(by, &header, &claims), &context).await;
            }
        }
    }
    for (made, said) in [
        ("RS256", "PS256"),
        ("PS256", "RS256"),
        ("RS256", "RS512"),
        ("RS384", "RS256"),
    ] {
        let header = json!({"alg": said, "kid": "rsa"}).to_string();
        scene.refused(&rsa.sign_raw(made, &header, &claims), said).await;
    }
    // Without a key's ID and with two keys that could be meant, none is guessed.
    let second = SigningKey::p256("second");
    scene.issuer.serve_keys(&[p256, &second]);
    let router = scene.issuer.run_router(&scene.mesh, &[]);
    for key in [p256, &second] {
        let token = key.sign_raw("ES256", r#"{"alg":"ES256"}"#, &claims);
        assert_detail(&send(router, with(&scene.mesh, &token)).await, 401, INVALID, "no kid");
    }
    scene.mesh.app.assert_untouched("no kid");
}

#[tokio::test]
async fn a_key_of_the_senders_own_is_never_used() {
    let scene = Scene::new().await;
    let claims = scene.issuer.claims().to_string();
    let evil = Issuer::start(&[]).await;
    for id in ["p256", "evil"] {
        let own = SigningKey::p256(id);
        evil.serve_keys(&[&own]);
        let place = format!("{}{JWKS}", evil.url);
        for (name, value) in [
            ("jwk", own.jwk()),
            ("jku", json!(place)),
            ("x5u", json!(place)),
            ("x5c", json!(["MIIB"])),
        ] {
            for kid in [Some(id), None] {
                let mut header = json!({"alg": "ES256", "typ": "JWT"});
                header[name] = value.clone();
                if let Some(kid) = kid {
                    header["kid"] = kid.into();
                }
                let token = own.sign_raw("ES256", &header.to_string(), &claims);
                scene.refused(&token, name).await;
            }
        }
    }
    // The issuer's own name for the sender's server is no way to it, either.
    let own = SigningKey::p256("own");
    scene
        .refused(&own.sign("ES256", &evil.claims()), "another issuer")
        .await;
    assert_eq!(evil.asked(JWKS) + evil.asked(DISCOVERY), 0);
}

#[tokio::test]
async fn a_good_signature_on_other_claims_opens_nothing() {
    let scene = Scene::new().await;
    let many: Vec<_> = (0..200).map(|number| format!("group-{number}")).collect();
    for (claim, value) in [
        ("exp", json!(seconds_from_now(-120))),
        ("exp", json!("never")),
        ("exp", json!(null)),
        ("nbf", json!(seconds_from_now(300))),
        ("iat", json!(seconds_from_now(300))),
        // The same key signs for other services and other tenants.
        ("aud", json!("other")),
        ("aud", json!(["other", "sandbox"])),
        ("aud", json!([])),
        ("aud", json!([["sandboxes"]])),
        ("aud", json!({"0": "sandboxes"})),
        ("aud", json!(null)),
        ("iss", json!(format!("{}/", scene.issuer.url))),
        ("iss", json!(scene.issuer.url.to_uppercase())),
        ("iss", json!("https://other.example")),
        ("iss", json!([scene.issuer.url])),
        ("iss", json!(null)),
        ("sub", json!("")),
        ("sub", json!(null)),
        ("sub", json!(["alice"])),
        ("sub", json!("a\u{0}lice")),
        ("sub", json!("alice\r\nX-Sandbox-Id: beta")),
        ("sub", json!("a".repeat(1000))),
        ("groups", json!(many)),
        ("groups", json!([["developers"]])),
        ("groups", json!({"developers": true})),
        ("groups", json!(["a\nb"])),
        ("groups", json!([""])),
    ] {
        let context = format!("{claim}: {value:.100}");
        scene
            .refused(&scene.p256.sign("ES256", &scene.claims(claim, value)), &context)
            .await;
    }
    let mut endless = scene.issuer.claims();
    endless.as_object_mut().unwrap().remove("exp");
    scene.refused(&scene.p256.sign("ES256", &endless), "no exp").await;
    // An audience among others is one.
    let token = scene
        .p256
        .sign("ES256", &scene.claims("aud", json!(["other", "sandboxes"])));
    assert_eq!(status(&send(scene.router, with(&scene.mesh, &token)).await), 200);
}

#[tokio::test]
async fn whatever_two_readers_could_read_in_two_ways_opens_nothing() {
    let scene = Scene::new().await;
    let good = scene.issuer.claims().to_string();
    let twice = |name: &str, value: &str| format!("{},\"{name}\":{value}}}", good.trim_end_matches('}'));
    let header = r#"{"alg":"ES256","kid":"p256"}"#;
    let critical = r#"{"alg":"ES256","kid":"p256","crit":["exp"]}"#;
    for (header, claims) in [
        (header, twice("sub", "\"root\"")),
        (header, twice("s\\u0075b", "\"root\"")),
        (header, twice("aud", "\"sandboxes\"")),
        (header, twice("exp", "9999999999")),
        (header, format!("{good}{good}")),
        (header, format!("[{good}]")),
        (header, "[".repeat(9000)),
        (r#"{"alg":"ES256","kid":"p256","alg":"none"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"p256","kid":"p256"}"#, good.clone()),
        (r#"{"alg":"ES256","kid":["p256"]}"#, good.clone()),
        (r#"{"alg":"ES256","kid":"p256","typ":"logout+jwt"}"#, good.clone()),
        (critical, good.clone()),
        (
            r#"{"alg":"ES256","kid":"p256","crit":["b64"],"b64":false}"#,
            good.clone(),
        ),
    ] {
        let context = format!("{header} {claims:.300}");
        scene
            .refused(&scene.p256.sign_raw("ES256", header, &claims), &context)
            .await;
    }
    // Other spellings of a good token.
    let token = scene.p256.sign("ES256", &scene.issuer.claims());
    let padding = format!("{token}=");
    let more = format!("{token}.");
    let five = format!("{token}.{}.{}", b64("x"), b64("y"));
    for token in [
        &padding,
        &more,
        &five,
        &token.replace('.', ".."),
        &token[1..],
        &token[..token.len() - 2],
    ] {
        scene.refused(token, "spelling").await;
    }
    // A long one is not even looked at.
    let long = scene
        .p256
        .sign("ES256", &scene.claims("padding", json!("x".repeat(17 * 1024))));
    scene.refused(&long, "too long").await;
}

#[tokio::test]
async fn an_algorithm_that_is_not_allowed_opens_nothing() {
    let scene = Scene::new().await;
    let router = scene
        .issuer
        .run_router(&scene.mesh, &["--authz-oidc-signing-algs=ES256"]);
    let claims = scene.issuer.claims();
    for (key, algorithm, code) in [
        (&scene.rsa, "RS256", 401),
        (&scene.ed25519, "EdDSA", 401),
        (&scene.p256, "ES256", 200),
    ] {
        let response = send(router, with(&scene.mesh, &key.sign(algorithm, &claims))).await;
        assert_eq!(status(&response), code, "{algorithm}: {response}");
    }
    scene.mesh.app.take_only_request();
}

#[tokio::test]
async fn made_up_key_ids_do_not_make_the_router_hammer_the_issuer() {
    let scene = Scene::new().await;
    // By default the issuer is asked at most once in ten seconds; a slow machine may need some of these.
    let requests = (0..300).map(|number| {
        let evil = SigningKey::p256(&format!("made-up-{number}"));
        let request = with(&scene.mesh, &evil.sign("ES256", &scene.issuer.claims()));
        let router = scene.router;
        tokio::spawn(async move { send(router, request).await })
    });
    for response in join_all(requests.collect::<Vec<_>>()).await {
        assert_detail(&response.unwrap(), 401, INVALID, "made up");
    }
    scene.mesh.app.assert_untouched("made up");
    let asked = scene.issuer.asked(JWKS);
    assert!((1..=7).contains(&asked), "{asked}");
    // Whoever is known was served all the while, and is now.
    let good = scene.p256.sign("ES256", &scene.issuer.claims());
    assert_eq!(status(&send(scene.router, with(&scene.mesh, &good)).await), 200);
}
