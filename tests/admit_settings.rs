//! What the operator chose, in the admission tests and in the unit tests of the injector.

use sandbox_injector::anchors::Anchors;
use sandbox_injector::settings::{IdentitySource, Lockdown, LogLevel, PullPolicy, Resources, Settings};

/// The root of a cluster whose gates are in the golden files.
pub(crate) fn anchors() -> Anchors {
    Anchors::from_pem(include_bytes!("golden/root.crt")).unwrap()
}

/// The settings of a chart that nobody changed.
pub(crate) fn settings() -> Settings {
    Settings {
        own_namespace: "agent-sandbox-system".parse().unwrap(),
        image: "sandgate/sidecar:1".parse().unwrap(),
        accepted_images: Vec::new(),
        image_pull_policy: PullPolicy::IfNotPresent,
        resources: Resources::default(),
        log_level: LogLevel::Info,
        router_identities: vec![
            "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router"
                .parse()
                .unwrap(),
        ],
        accepted_router_identities: Vec::new(),
        control_identity: "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-injector"
            .parse()
            .unwrap(),
        trust_domain: "cluster.local".parse().unwrap(),
        allow_opt_out: false,
        identity_source: IdentitySource::Enrolment,
        lockdown: None,
    }
}

/// The same with lockdown, for these runtime classes.
pub(crate) fn lockdown(runtime_classes: &[&str]) -> Settings {
    Settings {
        lockdown: Some(Lockdown {
            runtime_classes: runtime_classes.iter().map(ToString::to_string).collect(),
        }),
        ..settings()
    }
}
