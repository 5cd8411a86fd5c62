//! Every test against a real Kubernetes API server. `tests/cluster/run` starts one and runs this.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod admission_policy_connections;
mod admission_policy_denials;
mod admission_policy_identity;
mod admission_policy_lists;
mod admission_policy_networks;
mod admission_policy_shape;
mod admission_policy_tampering;
mod admission_policy_updates;
mod admission_policy_ways;
mod admission_webhook_denials;
mod api_server;
mod authority;
mod bursts;
mod callers;
mod chart_release;
mod chart_release_changes;
mod end_to_end;
mod enrolment;
mod enrolment_refusals;
mod external_root;
mod harness;
mod helm_test;
mod hostile_objects;
mod injector;
mod injector_guard;
mod injector_trust;
mod network_policy;
mod rollout;
mod root_rotation;
mod root_stage;
mod router_cache;
mod router_enrolment;
mod router_enrolment_refusals;
mod router_rotation;
mod trust_anchors;
mod upgrade;
mod upstream;
mod upstream_examples;

use std::process::ExitCode;

fn main() -> ExitCode {
    sandgate_cluster_tests::runner::main(&[
        admission_policy_connections::TESTS,
        admission_policy_denials::TESTS,
        admission_policy_identity::TESTS,
        admission_policy_lists::TESTS,
        admission_policy_networks::TESTS,
        admission_policy_shape::TESTS,
        admission_policy_tampering::TESTS,
        admission_policy_updates::TESTS,
        admission_policy_ways::TESTS,
        admission_webhook_denials::TESTS,
        api_server::TESTS,
        bursts::TESTS,
        callers::TESTS,
        chart_release::TESTS,
        chart_release_changes::TESTS,
        end_to_end::TESTS,
        enrolment::TESTS,
        enrolment_refusals::TESTS,
        external_root::TESTS,
        harness::TESTS,
        helm_test::TESTS,
        hostile_objects::TESTS,
        injector::TESTS,
        injector_guard::TESTS,
        injector_trust::TESTS,
        network_policy::TESTS,
        rollout::TESTS,
        root_rotation::TESTS,
        trust_anchors::TESTS,
        router_cache::TESTS,
        router_enrolment::TESTS,
        router_enrolment_refusals::TESTS,
        router_rotation::TESTS,
        upgrade::TESTS,
        upstream::TESTS,
        upstream_examples::TESTS,
    ])
}
