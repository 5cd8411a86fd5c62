//! Everybody who comes to a control API with a certificate that isn't its control plane's.

use crate::control::CONTROL;
use crate::{POD_UID, ROUTER, WORKLOAD, sandbox};
use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);

/// What they are, and what they show, in a mesh of `authority`.
pub fn strangers(authority: &Authority) -> Vec<(&'static str, Option<Issued>)> {
    let (now, foreign) = (SystemTime::now(), Authority::new("sandgate-tests").unwrap());
    let issue = |authority: &Authority, change: &dyn Fn(&mut LeafSpec)| {
        let mut spec = LeafSpec::new("control", CONTROL, Usage::Client);
        change(&mut spec);
        authority.issue(&spec).unwrap()
    };
    let ours = |change: &dyn Fn(&mut LeafSpec)| Some(issue(authority, change));
    vec![
        ("no certificate", None),
        ("another root's", Some(issue(&foreign, &|_| {}))),
        ("a router's", ours(&|spec| spec.uris = vec![ROUTER.into()])),
        ("a workload's", ours(&|spec| spec.uris = vec![WORKLOAD.into()])),
        ("a gate's", Some(authority.sidecar(&sandbox("alpha", POD_UID)).unwrap())),
        (
            "a gate's name for clients",
            ours(&|spec| spec.uris = vec![sandbox("alpha", POD_UID).to_string()]),
        ),
        (
            "another trust domain's",
            ours(&|spec| spec.uris = vec![CONTROL.replace("cluster", "evil")]),
        ),
        ("two names", ours(&|spec| spec.uris.push(ROUTER.into()))),
        ("for servers", ours(&|spec| spec.usages = vec![Usage::Server])),
        ("for both", ours(&|spec| spec.usages.push(Usage::Server))),
        ("an authority's", ours(&|spec| spec.is_ca = true)),
        (
            "ended",
            ours(&|spec| (spec.not_before, spec.not_after) = (now - 2 * HOUR, now - HOUR)),
        ),
        ("to come", ours(&|spec| spec.not_before = now + HOUR)),
    ]
}
