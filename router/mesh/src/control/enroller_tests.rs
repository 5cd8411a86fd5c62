use super::*;
use crate::authority::{Authority, LeafSpec, Usage};
use crate::identity::PeerId;
use crate::policy::model::{DefaultPolicy, VERSION};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const OWN: &str = "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/u1";
const HOUR: Duration = Duration::from_secs(3600);

fn own() -> Enrollee {
    match OWN.parse().unwrap() {
        PeerId::Sandbox(own) => Enrollee::Gate(own),
        other => panic!("{other}"),
    }
}

fn granted(folder: &Path) -> Identity {
    Identity::Granted {
        token_file: folder.join("token"),
    }
}

/// A gate that is to be enrolled, and the authority of its control plane.
struct Scene {
    folder: PathBuf,
    authority: Authority,
    enroller: Enroller,
}

impl Scene {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("sandgate-enrolment-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("token"), "first\n").unwrap();
        let enroller = Self::start(&folder);
        let authority = Authority::new("mesh").unwrap();
        Self {
            folder,
            authority,
            enroller,
        }
    }

    fn start(folder: &Path) -> Enroller {
        let state = State::open(folder.into()).unwrap();
        Enroller::new(own(), granted(folder), state)
    }

    /// What becomes of it after a crash.
    fn restart(&mut self) {
        self.enroller = Self::start(&self.folder);
    }

    /// What the control plane makes of this request: a leaf as `change` leaves it.
    fn grant(&self, counter: u64, csr: &str, change: impl FnOnce(&mut LeafSpec)) -> IdentityGrant {
        let mut spec = LeafSpec::new("gate", OWN, Usage::Server);
        change(&mut spec);
        IdentityGrant {
            pod_uid: "u1".parse().unwrap(),
            generation: Generation { epoch: 1, counter },
            chain: self.authority.sign(&spec, csr).unwrap(),
            bundle: self.authority.root_pem().into(),
        }
    }

    fn csr(&self) -> String {
        self.enroller.enrolment().unwrap().csr
    }

    fn enrol(&self, counter: u64) -> IdentityGrant {
        let grant = self.grant(counter, &self.csr(), |_| {});
        assert_eq!(self.enroller.take_identity(grant.clone()).unwrap(), Taken::Changed);
        grant
    }

    fn floor(&self) -> u64 {
        self.enroller.enrolment().unwrap().floor.counter
    }

    /// The leaf in force, DER, by its end.
    fn in_force(&self) -> Option<Arc<MeshCredentials>> {
        self.enroller.credentials().borrow().clone()
    }

    fn refused(&self, grant: IdentityGrant) -> EnrolmentError {
        let before = self.in_force();
        let kept = std::fs::read(self.folder.join("identity.json")).ok();
        let error = self.enroller.take_identity(grant).unwrap_err();
        let same = before.as_ref().map(Arc::as_ptr) == self.in_force().as_ref().map(Arc::as_ptr);
        assert!(same, "what is in force has changed");
        assert_eq!(kept, std::fs::read(self.folder.join("identity.json")).ok());
        error
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn push(counter: u64, default_policy: DefaultPolicy) -> PolicyPush {
    PolicyPush {
        pod_uid: "u1".parse().unwrap(),
        snapshot: Snapshot {
            version: VERSION,
            generation: Generation { epoch: 1, counter },
            default_policy,
            ports: vec![8888],
            policies: vec![],
        },
    }
}

#[test]
fn the_request_is_the_same_until_it_is_granted_and_then_another() {
    let scene = Scene::new();
    let first = scene.enroller.enrolment().unwrap();
    assert_eq!((first.token.as_str(), first.floor.counter), ("first", 0));
    assert_eq!(first.bundle_digest, None);
    std::fs::write(scene.folder.join("token"), "second").unwrap();
    let again = scene.enroller.enrolment().unwrap();
    assert_eq!((again.token.as_str(), &again.csr), ("second", &first.csr));
    scene.enrol(3);
    let next = scene.enroller.enrolment().unwrap();
    assert_ne!(next.csr, first.csr);
    assert_eq!(next.floor.counter, 3);
    // One that is refused waits on.
    assert_eq!(
        scene.refused(scene.grant(2, &next.csr, |_| {})).status(),
        StatusCode::CONFLICT
    );
    assert_eq!(scene.csr(), next.csr);
}

/// Of a router that shares its identity with others.
#[test]
fn a_router_takes_its_own_identity_and_no_gates_and_policies_are_not_for_it() {
    let scene = Scene::new();
    let own = Enrollee::Router {
        identity: "spiffe://cluster.local/ns/system/sa/router".parse().unwrap(),
        pod_uid: "u1".parse().unwrap(),
    };
    assert_eq!(
        (own.role(), own.trust_domain().as_str()),
        (Role::Router, "cluster.local")
    );
    let state = State::open(scene.folder.clone()).unwrap();
    let router = Enroller::new(own, granted(&scene.folder), state);
    assert!(!router.takes_policies() && scene.enroller.takes_policies());
    let csr = router.enrolment().unwrap().csr;
    let error = router.take_identity(scene.grant(1, &csr, |_| {})).unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{error}");
    let with = |uri: &str| {
        let uris = vec![uri.to_owned()];
        scene.grant(1, &csr, |spec| (spec.uris, spec.usages) = (uris, vec![Usage::Client]))
    };
    let error = router
        .take_identity(with("spiffe://cluster.local/ns/system/sa/other"))
        .unwrap_err();
    assert!(error.to_string().contains("is not this router's identity"), "{error}");
    assert!(router.credentials().borrow().is_none());
    let taken = router.take_identity(with("spiffe://cluster.local/ns/system/sa/router"));
    assert_eq!(taken.unwrap(), Taken::Changed);
    // What it has kept is no gate's.
    assert!(Scene::start(&scene.folder).credentials().borrow().is_none());
}

#[test]
fn a_key_is_written_nowhere_before_it_is_granted() {
    let scene = Scene::new();
    scene.csr();
    let names: Vec<_> = std::fs::read_dir(&scene.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["token"]);
    scene.enrol(1);
    assert!(scene.folder.join("identity.json").exists());
}

#[test]
fn a_token_that_is_not_there_is_said_and_no_key_is_made_for_it() {
    let scene = Scene::new();
    for bad in [Some(String::new()), Some(" \n".into()), Some("x".repeat(20_000)), None] {
        let path = scene.folder.join("token");
        match &bad {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        let error = scene.enroller.enrolment().unwrap_err();
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(error.to_string(), "the token can't be read");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(scene.folder.to_str().unwrap()), "{cause}");
    }
    assert!(scene.enroller.held().pending.is_none());
}

#[test]
fn an_identity_must_be_this_gates_for_its_key_and_serve_now() {
    let scene = Scene::new();
    let now = SystemTime::now();
    for enrolled in [false, true] {
        if enrolled {
            scene.enrol(1);
        }
        let csr = scene.csr();
        let grant = |change: fn(&mut LeafSpec)| scene.grant(1, &csr, change);
        let other_key = Scene::new().csr();
        let stranger = Authority::new("mesh").unwrap();
        let good = grant(|_| {});
        let with = |change: &dyn Fn(&mut IdentityGrant)| {
            let mut changed = good.clone();
            change(&mut changed);
            changed
        };
        for (name, bad, expected) in [
            (
                "another pod's message",
                with(&|grant| grant.pod_uid = "u2".parse().unwrap()),
                "is for u2",
            ),
            (
                "another pod's leaf",
                grant(|spec| spec.uris = vec![OWN.replace("u1", "u2")]),
                "is not this gate's identity",
            ),
            (
                "another sandbox's",
                grant(|spec| spec.uris = vec![OWN.replace("alpha", "beta")]),
                "is not this gate's identity",
            ),
            (
                "a router's",
                grant(|spec| spec.uris = vec!["spiffe://cluster.local/ns/a/sa/b".into()]),
                "is not a sidecar's identity",
            ),
            (
                "of another trust domain",
                grant(|spec| spec.uris = vec![OWN.replace("cluster", "other")]),
                "not in the configured trust domain",
            ),
            ("for clients", grant(|spec| spec.usages = vec![Usage::Client]), "usage"),
            ("for another key", scene.grant(1, &other_key, |_| {}), "not for the key"),
            (
                "of another authority",
                with(&|grant| grant.bundle = stranger.root_pem().into()),
                "does not verify",
            ),
            ("without a bundle", with(&|grant| grant.bundle.clear()), "trust bundle"),
            (
                "without a chain",
                with(&|grant| grant.chain.clear()),
                "certificate chain",
            ),
            ("cut", with(&|grant| grant.chain.truncate(300)), "PEM"),
        ] {
            let error = scene.refused(bad);
            assert!(error.to_string().contains(expected), "{name}: {error}");
            assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{name}");
        }
        let ended = scene.grant(1, &csr, |spec| {
            (spec.not_before, spec.not_after) = (now - 2 * HOUR, now - HOUR);
        });
        assert!(scene.refused(ended).to_string().contains("expired at"));
        let to_come = scene.grant(1, &csr, |spec| spec.not_before = now + HOUR);
        assert!(scene.refused(to_come).to_string().contains("not valid before"));
        // The request that all of that was for is still good.
        assert_eq!(scene.csr(), csr);
    }
    scene.enrol(1);
}

#[test]
fn what_is_sent_twice_is_taken_once() {
    let scene = Scene::new();
    let grant = scene.enrol(1);
    let in_force = scene.in_force().unwrap();
    assert_eq!(scene.enroller.take_identity(grant.clone()).unwrap(), Taken::Unchanged);
    // Also while the next key waits already, and by a control plane that came later.
    let csr = scene.csr();
    let later = IdentityGrant {
        generation: Generation { epoch: 1, counter: 5 },
        ..grant.clone()
    };
    assert_eq!(scene.enroller.take_identity(later).unwrap(), Taken::Unchanged);
    assert_eq!((scene.floor(), scene.csr()), (5, csr));
    assert!(Arc::ptr_eq(&in_force, &scene.in_force().unwrap()));
    assert_eq!(scene.refused(grant).status(), StatusCode::CONFLICT);

    let policy = push(5, DefaultPolicy::Deny);
    assert_eq!(scene.enroller.take_policy(&policy).unwrap(), Taken::Changed);
    assert_eq!(scene.enroller.take_policy(&policy).unwrap(), Taken::Unchanged);
}

#[test]
fn another_bundle_comes_for_the_leaf_in_force() {
    let mut scene = Scene::new();
    let grant = scene.enrol(1);
    let next = Authority::new("next").unwrap();
    let both = IdentityGrant {
        bundle: format!("{}{}", grant.bundle, next.root_pem()),
        ..grant.clone()
    };
    assert_eq!(
        scene.enroller.enrolment().unwrap().bundle_digest,
        bundle_digest(&grant.bundle)
    );
    let digest = bundle_digest(&both.bundle);
    assert_eq!(scene.enroller.take_identity(both).unwrap(), Taken::Changed);
    assert_eq!(scene.enroller.enrolment().unwrap().bundle_digest, digest);
    scene.restart();
    assert_eq!(scene.enroller.enrolment().unwrap().bundle_digest, digest);
    // One that the leaf doesn't verify under is refused.
    let foreign = IdentityGrant {
        bundle: next.root_pem().into(),
        ..grant
    };
    assert!(scene.refused(foreign).to_string().contains("does not verify"));
}

#[test]
fn all_that_was_taken_survives_a_crash_and_so_does_the_floor() {
    let mut scene = Scene::new();
    scene.enrol(2);
    let leaf = scene.in_force().unwrap().validity();
    scene
        .enroller
        .take_policy(&push(7, DefaultPolicy::Authenticated))
        .unwrap();
    let digest = scene.enroller.enrolment().unwrap().policy_digest;
    assert_eq!(
        digest,
        Some(policy_digest(&push(7, DefaultPolicy::Authenticated).snapshot))
    );
    let csr = scene.csr();
    scene.restart();
    assert_eq!(scene.in_force().unwrap().validity(), leaf);
    let policy = scene.enroller.policy().borrow().clone().unwrap();
    assert_eq!(policy.generation().counter, 7);
    let enrolment = scene.enroller.enrolment().unwrap();
    assert_eq!((enrolment.floor.counter, enrolment.policy_digest), (7, digest));
    assert_ne!(enrolment.csr, csr, "a key without a certificate is gone");
    assert_eq!(
        scene.refused(scene.grant(6, &enrolment.csr, |_| {})).status(),
        StatusCode::CONFLICT
    );
    let stale = scene
        .enroller
        .take_policy(&push(6, DefaultPolicy::Anonymous))
        .unwrap_err();
    assert_eq!(stale.status(), StatusCode::CONFLICT);
    scene.enrol(7);
}

#[test]
fn what_another_pod_kept_or_what_is_damaged_enrols_nobody() {
    let mut scene = Scene::new();
    scene.enrol(2);
    scene
        .enroller
        .take_policy(&push(2, DefaultPolicy::Authenticated))
        .unwrap();
    for (file, from, to) in [
        ("identity.json", "\"podUid\":\"u1\"", "\"podUid\":\"u2\""),
        ("identity.json", "BEGIN CERTIFICATE", "BEGIN CERTIFICATES"),
        ("identity.json", "PRIVATE KEY-----\\nM", "PRIVATE KEY-----\\nN"),
        ("policy.json", "\"podUid\":\"u1\"", "\"podUid\":\"u2\""),
        ("policy.json", "[8888]", "[0]"),
        ("policy.json", "\"version\":1", "\"version\":2"),
    ] {
        let path = scene.folder.join(file);
        let whole = std::fs::read_to_string(&path).unwrap();
        assert!(whole.contains(from), "{from}: {whole}");
        std::fs::write(&path, whole.replace(from, to)).unwrap();
        scene.restart();
        let (identity, policy) = (scene.in_force().is_some(), scene.enroller.policy().borrow().is_some());
        assert_eq!(
            (identity, policy),
            (file != "identity.json", file != "policy.json"),
            "{to}"
        );
        assert_eq!(scene.floor(), 2, "the other one's");
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn what_cannot_be_kept_is_not_taken() {
    let scene = Scene::new();
    for name in ["identity.json.new/full", "policy.json.new/full"] {
        std::fs::create_dir_all(scene.folder.join(name)).unwrap();
    }
    let csr = scene.csr();
    let error = scene.refused(scene.grant(1, &csr, |_| {}));
    assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let error = scene.enroller.take_policy(&push(1, DefaultPolicy::Deny)).unwrap_err();
    assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(scene.enroller.policy().borrow().is_none());
    assert_eq!((scene.floor(), scene.csr()), (0, csr));
}

type Change = fn(&mut PolicyPush);

#[test]
fn a_policy_must_be_this_pods_and_one_that_can_be_enforced() {
    let scene = Scene::new();
    scene.enroller.take_policy(&push(2, DefaultPolicy::Deny)).unwrap();
    let in_force = scene.enroller.policy().borrow().clone().unwrap();
    let bad: [(Change, StatusCode); 4] = [
        (|push| push.pod_uid = "u2".parse().unwrap(), StatusCode::BAD_REQUEST),
        (|push| push.snapshot.ports.push(0), StatusCode::BAD_REQUEST),
        (|push| push.snapshot.version = 2, StatusCode::BAD_REQUEST),
        (|push| push.snapshot.generation.counter = 1, StatusCode::CONFLICT),
    ];
    for (change, status) in bad {
        let mut pushed = push(2, DefaultPolicy::Anonymous);
        change(&mut pushed);
        let error = scene.enroller.take_policy(&pushed).unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        assert!(Arc::ptr_eq(
            &in_force,
            scene.enroller.policy().borrow().as_ref().unwrap()
        ));
    }
}

#[test]
fn an_epoch_that_would_lock_out_all_who_come_later_is_refused() {
    let scene = Scene::new();
    let now = seconds_since_1970(SystemTime::now());
    for enrolled in [false, true] {
        if enrolled {
            scene.enrol(1);
            scene.enroller.take_policy(&push(1, DefaultPolicy::Deny)).unwrap();
        }
        let floor = scene.enroller.enrolment().unwrap().floor;
        for epoch in [u64::MAX, u64::MAX / 2, now + 2 * MOST_AHEAD] {
            let generation = Generation { epoch, counter: 0 };
            let mut policy = push(1, DefaultPolicy::Anonymous);
            policy.snapshot.generation = generation;
            let mut grant = scene.grant(1, &scene.csr(), |_| {});
            grant.generation = generation;
            for error in [scene.refused(grant), scene.enroller.take_policy(&policy).unwrap_err()] {
                assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{error}");
                let text = format!("epoch {epoch} is too high: none is taken above ");
                assert!(error.to_string().starts_with(&text), "{error}");
            }
            assert_eq!(scene.enroller.enrolment().unwrap().floor, floor);
        }
    }
    // As control planes make them: of the time, also by a clock that is a little ahead, and however long the last one is ago.
    for epoch in [now, now + 3600, now + MOST_AHEAD / 2] {
        let mut policy = push(1, DefaultPolicy::Deny);
        policy.snapshot.generation.epoch = epoch;
        assert_eq!(scene.enroller.take_policy(&policy).unwrap(), Taken::Changed);
        assert_eq!(scene.enroller.enrolment().unwrap().floor.epoch, epoch);
    }
}

#[test]
fn a_gate_whose_identity_comes_from_files_takes_policies_only_and_says_which_roots_it_has() {
    let scene = Scene::new();
    // As if it had been enrolled before; that doesn't count here.
    let granted = scene.enrol(3);
    let (publish, credentials) = watch::channel(None);
    let start = || {
        let state = State::open(scene.folder.clone()).unwrap();
        Enroller::new(own(), Identity::Given(credentials.clone()), state)
    };
    let enroller = start();
    assert!(enroller.credentials().borrow().is_none());
    let told = enroller.enrolment().unwrap();
    assert_eq!(
        (told.csr.as_str(), told.token.as_str(), told.bundle_digest),
        ("", "", None)
    );

    let issued = scene
        .authority
        .issue(&LeafSpec::new("gate", OWN, Usage::Server))
        .unwrap();
    let Enrollee::Gate(id) = own() else { panic!() };
    let bundle = format!(
        "{}{}",
        scene.authority.root_pem(),
        Authority::new("next").unwrap().root_pem()
    );
    let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
    let found = MeshCredentials::of_gate(chain, key, bundle.as_bytes(), &id).unwrap();
    publish.send_replace(Some(Arc::new(found)));
    assert_eq!(enroller.enrolment().unwrap().bundle_digest, bundle_digest(&bundle));

    let error = enroller.take_identity(granted).unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_REQUEST, "{error}");
    let taken = enroller.take_policy(&push(7, DefaultPolicy::Deny)).unwrap();
    assert_eq!(
        (taken, enroller.enrolment().unwrap().floor.counter),
        (Taken::Changed, 7)
    );
    // After a crash it is the same.
    let told = start().enrolment().unwrap();
    assert_eq!((told.floor.counter, told.policy_digest.is_some()), (7, true));
}
