//! An OIDC issuer over HTTPS: its discovery document, its keys, and tokens that are signed with them.

use crate::Mesh;
use crate::folder::Folder;
use data_encoding::BASE64URL_NOPAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_mesh::credentials::FrontCredentials;
use sandgate_mesh::tls::{FrontClients, MtlsMode, accept_front, front_server_config};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::rustls::ServerConfig;

/// RSA keys of 2048 bits, made for these tests and used nowhere else: *ring* makes none.
const RSA: [&[u8]; 2] = [include_bytes!("keys/rsa-1.pkcs8"), include_bytes!("keys/rsa-2.pkcs8")];
/// Where the discovery document is.
pub const DISCOVERY: &str = "/.well-known/openid-configuration";
/// Where the keys are.
pub const JWKS: &str = "/keys";

enum Pair {
    Rsa(RsaKeyPair),
    Ec(&'static str, usize, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A key that tokens are signed with.
pub struct SigningKey {
    /// Its `kid`.
    pub id: String,
    pair: Pair,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

impl SigningKey {
    /// One of the two RSA keys there are, 0 or 1.
    pub fn rsa(id: &str, number: usize) -> Self {
        let pair = Pair::Rsa(RsaKeyPair::from_pkcs8(RSA[number]).unwrap());
        Self { id: id.into(), pair }
    }

    /// A new P-256 key.
    pub fn p256(id: &str) -> Self {
        Self::ec(id, "P-256", 32, &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    /// A new P-384 key.
    pub fn p384(id: &str) -> Self {
        Self::ec(id, "P-384", 48, &ECDSA_P384_SHA384_FIXED_SIGNING)
    }

    fn ec(id: &str, curve: &'static str, size: usize, algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Self {
            id: id.into(),
            pair: Pair::Ec(curve, size, pair),
        }
    }

    /// A new Ed25519 key.
    pub fn ed25519(id: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Pair::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap());
        Self { id: id.into(), pair }
    }

    /// Its public half as a JWK.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                let key = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": b64(key.n), "e": b64(key.e)})
            }
            Pair::Ec(curve, size, pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(*size);
                json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
            }
            Pair::Ed25519(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key())}),
        };
        jwk["kid"] = self.id.as_str().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// A token of this header and these claims, as they stand.
    pub fn sign_raw(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(claims));
        let signature = self.signature(algorithm, signed.as_bytes());
        format!("{signed}.{}", b64(signature))
    }

    /// A token with this algorithm, named in its header together with this key, and these claims.
    pub fn sign(&self, algorithm: &str, claims: &Value) -> String {
        let header = json!({"alg": algorithm, "typ": "JWT", "kid": self.id});
        self.sign_raw(algorithm, &header.to_string(), &claims.to_string())
    }

    fn signature(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let encoding: &dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(_, _, pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

/// Seconds since 1970, so many from now.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds
}

/// An answer as bytes on the wire; none: silence.
pub type Reply = Option<Vec<u8>>;

/// An answer with this status and these further fields (each ended with CRLF).
pub fn reply(status: u16, fields: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status} X\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    Some([head.as_bytes(), body].concat())
}

#[derive(Default)]
struct Answers {
    discovery: Reply,
    jwks: Reply,
    seen: Vec<String>,
}

/// A running issuer. It ends when dropped.
pub struct Issuer {
    /// Its URL, which is its name in tokens.
    pub url: String,
    /// Whose certificates its routers take.
    pub authority: Authority,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    answers: Arc<Mutex<Answers>>,
    serving: Option<JoinHandle<()>>,
    folder: Folder,
}

impl Issuer {
    /// One that has these keys and is away.
    pub async fn away(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (authority, folder) = (Authority::new("issuer").unwrap(), Folder::new());
        folder.rename_over("ca.crt", authority.root_pem());
        let url = format!("https://localhost:{}", address.port());
        let issuer = Self {
            tls: tls(&certificate(&authority, "localhost")),
            answers: Arc::default(),
            serving: None,
            address,
            url,
            authority,
            folder,
        };
        issuer.serve_document(&json!({"issuer": issuer.url, "jwks_uri": format!("{}{JWKS}", issuer.url)}));
        issuer.serve_keys(keys);
        issuer
    }

    /// One that has these keys and answers.
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let mut issuer = Self::away(keys).await;
        issuer.come().await;
        issuer
    }

    /// Comes back, or for the first time.
    pub async fn come(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let (tls, answers) = (Arc::clone(&self.tls), Arc::clone(&self.answers));
        self.serving = Some(tokio::spawn(accept(listener, tls, answers)));
    }

    /// Goes away: nobody listens there any more, and what was open is closed.
    pub async fn leave(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
        assert!(TcpStream::connect(self.address).await.is_err());
    }

    /// Shows this certificate when it comes back.
    pub fn show_certificate(&mut self, issued: &Issued) {
        self.tls = tls(issued);
    }

    /// Has these keys from now on.
    pub fn serve_keys(&self, keys: &[&SigningKey]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        self.serve(JWKS, reply(200, "", json!({ "keys": keys }).to_string()));
    }

    fn serve_document(&self, document: &Value) {
        self.serve(
            DISCOVERY,
            reply(200, "Content-Type: application/json\r\n", document.to_string()),
        );
    }

    /// Answers so to questions for [`DISCOVERY`] or [`JWKS`] from now on.
    pub fn serve(&self, path: &str, reply: Reply) {
        let mut answers = self.answers.lock().unwrap();
        match path {
            DISCOVERY => answers.discovery = reply,
            _ => answers.jwks = reply,
        }
    }

    /// How often it was asked for this since it was last looked at.
    pub fn asked(&self, path: &str) -> usize {
        let mut answers = self.answers.lock().unwrap();
        let before = answers.seen.len();
        answers.seen.retain(|seen| seen != path);
        before - answers.seen.len()
    }

    /// Waits until it has been asked for this.
    pub async fn until_asked(&self, path: &str) {
        let asked = async {
            while self.asked(path) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(crate::PATIENCE, asked)
            .await
            .expect("it was not asked");
    }

    /// A router of `mesh` that takes its tokens, with `more` flags.
    pub fn run_router(&self, mesh: &Mesh, more: &[&str]) -> SocketAddr {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        mesh.run_router(&[&flags, more].concat())
    }

    /// The flags of a router that takes its tokens for the audience `sandboxes`.
    pub fn flags(&self) -> Vec<String> {
        vec![
            "--auth-token=".into(),
            "--authz-mode=oidc".into(),
            format!("--authz-oidc-issuer-url={}", self.url),
            "--authz-oidc-audiences=sandboxes".into(),
            "--authz-oidc-username-prefix=oidc:".into(),
            "--authz-oidc-groups-claim=groups".into(),
            "--authz-oidc-groups-prefix=oidc:".into(),
            "--authz-oidc-signing-algs=RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,EdDSA".into(),
            format!("--authz-oidc-ca-file={}", self.folder.path("ca.crt").display()),
        ]
    }

    /// The claims of a good token of `alice` in the group `developers`.
    pub fn claims(&self) -> Value {
        json!({
            "iss": self.url, "aud": "sandboxes", "sub": "alice", "groups": ["developers"],
            "iat": seconds_from_now(0), "exp": seconds_from_now(600),
        })
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// A web server's certificate for this host.
pub fn certificate(authority: &Authority, host: &str) -> Issued {
    let mut leaf = LeafSpec::new("web", "", Usage::Server);
    (leaf.uris, leaf.dns) = (vec![], vec![host.into()]);
    authority.issue(&leaf).unwrap()
}

fn tls(issued: &Issued) -> Arc<ServerConfig> {
    let credentials = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let nobody = FrontClients::new(None, MtlsMode::Off).unwrap();
    front_server_config(&credentials, &nobody).unwrap()
}

async fn accept(listener: TcpListener, tls: Arc<ServerConfig>, answers: Arc<Mutex<Answers>>) {
    // They end with this.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(answer(stream, Arc::clone(&tls), Arc::clone(&answers)));
    }
}

async fn answer(stream: TcpStream, tls: Arc<ServerConfig>, answers: Arc<Mutex<Answers>>) {
    let Ok((mut stream, _)) = accept_front(stream, tls).await else {
        return;
    };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(1..) = stream.read_buf(&mut head).await else {
            return;
        };
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.strip_prefix("GET ").unwrap().split(' ').next().unwrap().to_owned();
    let reply = {
        let mut answers = answers.lock().unwrap();
        answers.seen.push(path.clone());
        match path.as_str() {
            DISCOVERY => answers.discovery.clone(),
            JWKS => answers.jwks.clone(),
            _ => reply(404, "", ""),
        }
    };
    let Some(reply) = reply else {
        return std::future::pending().await;
    };
    let _ = stream.write_all(&reply).await;
    let _ = stream.shutdown().await;
}
