use super::*;
use crate::authority::{Authority, Issued, LeafSpec, Usage};
use std::time::Duration;

const SANDBOX: &str = "spiffe://cluster.local/ns/a/sandbox/b/pod/u1";
const ROUTER: &str = "spiffe://cluster.local/ns/s/sa/router";

fn load(role: Role, issued: &Issued, bundle: &str) -> Result<MeshCredentials, CredentialsError> {
    let domain = "cluster.local".parse().unwrap();
    MeshCredentials::from_pem(
        role,
        issued.chain_pem.as_bytes(),
        issued.key_pem.as_bytes(),
        bundle.as_bytes(),
        &domain,
    )
}

fn refusal(role: Role, issued: &Issued, bundle: &str) -> CredentialsError {
    load(role, issued, bundle).unwrap_err()
}

#[test]
fn each_role_accepts_its_own_leaf_only() {
    let authority = Authority::new("mesh").unwrap();
    let issue = |uri: &str, usage| authority.issue(&LeafSpec::new("leaf", uri, usage)).unwrap();
    let root = authority.root_pem();
    let sidecar = load(Role::Sidecar, &issue(SANDBOX, Usage::Server), root).unwrap();
    assert_eq!(sidecar.identity().to_string(), SANDBOX);
    for client in [Role::Router, Role::ControlPlane] {
        assert!(load(client, &issue(ROUTER, Usage::Client), root).is_ok());
        let wrong_kind = refusal(client, &issue(SANDBOX, Usage::Client), root);
        assert!(matches!(wrong_kind, CredentialsError::WrongKind { .. }), "{wrong_kind}");
    }

    let wrong_usage = refusal(Role::Sidecar, &issue(SANDBOX, Usage::Client), root);
    assert!(
        matches!(wrong_usage, CredentialsError::Identity { .. }),
        "{wrong_usage}"
    );
    let elsewhere = refusal(
        Role::Router,
        &issue("spiffe://other/ns/s/sa/router", Usage::Client),
        root,
    );
    assert!(
        matches!(elsewhere, CredentialsError::WrongTrustDomain { .. }),
        "{elsewhere}"
    );
}

#[test]
fn files_that_do_not_belong_together_are_told_apart() {
    let (authority, stranger) = (Authority::new("mesh").unwrap(), Authority::new("stranger").unwrap());
    let root = authority.root_pem();
    let leaf = LeafSpec::new("leaf", SANDBOX, Usage::Server);
    let good = || authority.issue(&leaf).unwrap();
    let with = |change: fn(&mut Issued, &Issued)| {
        let mut changed = good();
        change(&mut changed, &good());
        refusal(Role::Sidecar, &changed, root)
    };
    assert_eq!(
        with(|a, b| a.key_pem.clone_from(&b.key_pem)),
        CredentialsError::KeyMismatch
    );
    assert_eq!(with(|a, b| a.key_pem += &b.key_pem), CredentialsError::SeveralKeys(2));
    assert_eq!(with(|a, _| a.key_pem.clone_from(&a.chain_pem)), CredentialsError::NoKey);
    assert_eq!(
        with(|a, _| a.chain_pem.clear()),
        CredentialsError::NoCertificate(Part::Chain)
    );
    assert_eq!(
        with(|a, _| a.chain_pem.truncate(200)),
        CredentialsError::Pem(Part::Chain)
    );
    assert_eq!(
        refusal(Role::Sidecar, &good(), ""),
        CredentialsError::NoCertificate(Part::Bundle)
    );
    assert_eq!(
        refusal(Role::Sidecar, &good(), &good().chain_pem),
        CredentialsError::NotAnAuthority
    );
    let untrusted = refusal(Role::Sidecar, &good(), stranger.root_pem());
    assert!(matches!(untrusted, CredentialsError::Untrusted(_)), "{untrusted}");
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = refusal(Role::Sidecar, &authority.issue_for(&leaf, &p384).unwrap(), root);
    assert_eq!(p384, CredentialsError::NotP256);
}

#[test]
fn expired_and_future_credentials_parse_but_say_so() {
    let authority = Authority::new("mesh").unwrap();
    let now = SystemTime::now();
    for (from, to) in [
        (now - Duration::from_secs(90), now - Duration::from_secs(30)),
        (now + Duration::from_secs(30), now + Duration::from_secs(90)),
    ] {
        let spec = LeafSpec {
            not_before: from,
            not_after: to,
            ..LeafSpec::new("leaf", ROUTER, Usage::Client)
        };
        let credentials = load(Role::Router, &authority.issue(&spec).unwrap(), authority.root_pem()).unwrap();
        assert!(!credentials.valid_at(now));
        assert!(credentials.valid_at(from + Duration::from_secs(30)));
    }
}

#[test]
fn debug_output_shows_no_key() {
    let authority = Authority::new("mesh").unwrap();
    let issued = authority.issue(&LeafSpec::new("leaf", ROUTER, Usage::Client)).unwrap();
    let shown = format!("{:?}", load(Role::Router, &issued, authority.root_pem()).unwrap());
    assert!(
        shown.starts_with("MeshCredentials { role: Router, identity: spiffe://"),
        "{shown}"
    );
    assert!(!shown.contains("key"), "{shown}");
}

#[test]
fn a_torn_pair_keeps_the_old_credentials_until_it_is_whole() {
    let authority = Authority::new("mesh").unwrap();
    let dir = std::env::temp_dir().join(format!("sandgate-credentials-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let files = MeshFiles {
        chain: dir.join("tls.crt"),
        key: dir.join("tls.key"),
        bundle: dir.join("ca.crt"),
    };
    let issue = || authority.issue(&LeafSpec::new("leaf", ROUTER, Usage::Client)).unwrap();
    let (old, new) = (issue(), issue());
    std::fs::write(&files.chain, &old.chain_pem).unwrap();
    std::fs::write(&files.key, &old.key_pem).unwrap();
    std::fs::write(&files.bundle, authority.root_pem()).unwrap();
    let (mut poller, value) = poll_router(files.clone(), "cluster.local".parse().unwrap());
    let leaf = || value.borrow().as_ref().unwrap().certified_key().cert[0].to_vec();
    poller.load().unwrap();
    std::fs::write(&files.chain, &new.chain_pem).unwrap();
    assert!(poller.load().unwrap_err().to_string().contains("does not belong"));
    assert_eq!(leaf(), old.chain_der[0]);
    std::fs::write(&files.key, &new.key_pem).unwrap();
    poller.load().unwrap();
    assert_eq!(leaf(), new.chain_der[0]);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn another_sandboxs_certificate_is_refused_whatever_of_it_differs() {
    let authority = Authority::new("mesh").unwrap();
    let dir = std::env::temp_dir().join(format!("sandgate-own-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let [chain, key, bundle] = ["tls.crt", "tls.key", "ca.crt"].map(|name| dir.join(name));
    std::fs::write(&bundle, authority.root_pem()).unwrap();
    let PeerId::Sandbox(own) = SANDBOX.parse().unwrap() else {
        panic!()
    };
    let files = MeshFiles {
        chain: chain.clone(),
        key: key.clone(),
        bundle,
    };
    let (mut poller, value) = poll_sidecar(files, own);
    let mut load = |identity: &str| {
        let issued = authority
            .issue(&LeafSpec::new("leaf", identity, Usage::Server))
            .unwrap();
        std::fs::write(&chain, &issued.chain_pem).unwrap();
        std::fs::write(&key, &issued.key_pem).unwrap();
        poller.load()
    };
    load(SANDBOX).unwrap();
    for other in [
        "spiffe://cluster.local/ns/x/sandbox/b/pod/u1",
        "spiffe://cluster.local/ns/a/sandbox/x/pod/u1",
        "spiffe://cluster.local/ns/a/sandbox/b/pod/x",
    ] {
        let error = load(other).unwrap_err().to_string();
        let told = format!("{other} is not this gate's identity, which is {SANDBOX}");
        assert!(error.contains(&told), "{error}");
        assert_eq!(value.borrow().as_ref().unwrap().identity().to_string(), SANDBOX);
    }
    std::fs::remove_dir_all(dir).unwrap();
}
