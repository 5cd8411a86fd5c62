//! Flags -> [`Settings`]. Whatever is wrong is reported together.

pub mod serve;

use crate::names::{DEFAULT_INJECTOR_ACCOUNT, DEFAULT_OWN_NAMESPACE, DEFAULT_ROUTER_ACCOUNT};
use crate::settings::{Lockdown, Resources, Settings};
use clap::{Args, ValueEnum};
use sandgate_mesh::contract::DEFAULT_TRUST_DOMAIN;
use sandgate_mesh::identity::WorkloadIdentity;
use std::fmt::Display;
use std::str::FromStr;

/// The gate's image unless configured: the one that was released with this program.
const DEFAULT_IMAGE: &str = concat!("sandgate/sidecar:", env!("CARGO_PKG_VERSION"));

/// Whether the pod's network is closed from within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LockdownMode {
    Enabled,
    Disabled,
}

/// What the operator chooses for injected pods. `explain` and `inject` give the cluster's answers when they get the
/// flags that the webhook runs with.
#[derive(Debug, Args)]
#[command(next_help_heading = "Injected pods")]
pub struct InjectionFlags {
    /// Namespace of Sandgate's own programs, in which nothing is injected.
    #[arg(long, env = "POD_NAMESPACE", default_value = DEFAULT_OWN_NAMESPACE)]
    own_namespace: String,
    /// Image of the gate.
    #[arg(long, default_value = DEFAULT_IMAGE)]
    sidecar_image: String,
    /// Another image of gates that were put in already; repeatable. For the time in which replicas inject different images.
    #[arg(long, value_name = "IMAGE")]
    accepted_sidecar_image: Vec<String>,
    /// When the kubelet pulls it: `IfNotPresent`, `Always` or `Never`.
    #[arg(long, default_value = "IfNotPresent")]
    sidecar_image_pull_policy: String,
    /// CPU that is kept free for a gate.
    #[arg(long, default_value_t = Resources::default().cpu_request.to_string())]
    sidecar_cpu_request: String,
    /// CPU that a gate may use at most; none if not given.
    #[arg(long)]
    sidecar_cpu_limit: Option<String>,
    /// Memory that is kept free for a gate.
    #[arg(long, default_value_t = Resources::default().memory_request.to_string())]
    sidecar_memory_request: String,
    /// Memory that a gate may use at most.
    #[arg(long, default_value_t = Resources::default().memory_limit.to_string())]
    sidecar_memory_limit: String,
    /// How much a gate logs: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    sidecar_log_level: String,
    /// SPIFFE ID of a router that gates believe; repeatable. By default that of the `ServiceAccount` sandbox-router in
    /// the own namespace.
    #[arg(long)]
    router_identity: Vec<String>,
    /// SPIFFE ID of a router that gates were given before; repeatable. Gates that run already keep their identity with it; no
    /// new one is given it.
    #[arg(long, value_name = "ROUTER_IDENTITY")]
    accepted_router_identity: Vec<String>,
    /// SPIFFE ID of the control plane, which may give gates their identity and policy. By default that of the
    /// `ServiceAccount` sandbox-injector in the own namespace.
    #[arg(long)]
    control_identity: Option<String>,
    /// SPIFFE trust domain of gates, routers and the control plane.
    #[arg(long, default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// Who brings new gates their identity: `enrolment`, by this program, which dials them; `pod-certificates`, by the kubelet,
    /// in a Pod Certificate that this program signs. The cluster must have certificates.k8s.io/v1 of Kubernetes 1.37.
    #[arg(long, default_value = "enrolment")]
    identity_source: String,
    /// Let pods opt out with the label `sandgate.dev/inject=disabled`.
    #[arg(long)]
    allow_opt_out: bool,
    /// Close each pod's network from within, for clusters that enforce no network policies.
    #[arg(long, value_enum, default_value_t = LockdownMode::Disabled)]
    lockdown: LockdownMode,
    /// Runtime class whose network stack obeys the kernel's rules; repeatable. With lockdown others are refused.
    #[arg(long)]
    lockdown_runtime_class: Vec<String>,
}

impl InjectionFlags {
    /// The settings.
    ///
    /// # Errors
    /// Everything that is wrong with the flags' values, one sentence each.
    pub fn settings(&self) -> Result<Settings, Vec<String>> {
        let problems = &mut Vec::new();
        let own_namespace = parse("--own-namespace", &self.own_namespace, problems);
        let trust_domain = parse("--trust-domain", &self.trust_domain, problems);
        let image = parse("--sidecar-image", &self.sidecar_image, problems);
        let accepted = self.accepted_sidecar_image.iter();
        let accepted_images = accepted
            .filter_map(|image| parse("--accepted-sidecar-image", image, problems))
            .collect();
        let pull_policy = parse("--sidecar-image-pull-policy", &self.sidecar_image_pull_policy, problems);
        let log_level = parse("--sidecar-log-level", &self.sidecar_log_level, problems);
        let cpu_limit = self
            .sidecar_cpu_limit
            .as_deref()
            .map(|text| parse("--sidecar-cpu-limit", text, problems));
        let cpu_request = parse("--sidecar-cpu-request", &self.sidecar_cpu_request, problems);
        let memory_request = parse("--sidecar-memory-request", &self.sidecar_memory_request, problems);
        let memory_limit = parse("--sidecar-memory-limit", &self.sidecar_memory_limit, problems);
        let router_identities = self.routers(problems);
        let accepted = self.accepted_router_identity.iter();
        let accepted_router_identities = accepted
            .filter_map(|text| workload("--accepted-router-identity", text, &self.trust_domain, problems))
            .collect();
        let identity_source = parse("--identity-source", &self.identity_source, problems);
        let control_identity = self.control_plane(&router_identities, problems);
        let lockdown = (self.lockdown == LockdownMode::Enabled).then_some(Lockdown {
            runtime_classes: self.lockdown_runtime_class.clone(),
        });
        let settings = || {
            Some(Settings {
                own_namespace: own_namespace?,
                image: image?,
                accepted_images,
                image_pull_policy: pull_policy?,
                resources: Resources {
                    cpu_request: cpu_request?,
                    cpu_limit: match cpu_limit {
                        Some(limit) => Some(limit?),
                        None => None,
                    },
                    memory_request: memory_request?,
                    memory_limit: memory_limit?,
                },
                log_level: log_level?,
                router_identities,
                accepted_router_identities,
                control_identity: control_identity?,
                trust_domain: trust_domain?,
                identity_source: identity_source?,
                allow_opt_out: self.allow_opt_out,
                lockdown,
            })
        };
        let settings = settings();
        let unfit = settings.iter().flat_map(|settings| settings.resources.problems());
        problems.extend(unfit.map(|problem| format!("--sidecar-…-request and -limit: {problem}")));
        settings
            .filter(|_| problems.is_empty())
            .ok_or_else(|| std::mem::take(problems))
    }

    fn routers(&self, problems: &mut Vec<String>) -> Vec<WorkloadIdentity> {
        let (domain, namespace) = (&self.trust_domain, &self.own_namespace);
        if self.router_identity.is_empty() {
            return own(domain, namespace, DEFAULT_ROUTER_ACCOUNT).into_iter().collect();
        }
        let given = self.router_identity.iter();
        given
            .filter_map(|text| workload("--router-identity", text, domain, problems))
            .collect()
    }

    fn control_plane(&self, routers: &[WorkloadIdentity], problems: &mut Vec<String>) -> Option<WorkloadIdentity> {
        let (domain, namespace) = (&self.trust_domain, &self.own_namespace);
        let control = match &self.control_identity {
            None => own(domain, namespace, DEFAULT_INJECTOR_ACCOUNT),
            Some(text) => workload("--control-identity", text, domain, problems),
        }?;
        if routers.contains(&control) {
            problems.push(format!(
                "--control-identity \"{control}\": it is a router's, too; give each a ServiceAccount of its own"
            ));
        }
        Some(control)
    }
}

/// The identity of a `ServiceAccount` in the own namespace. Its parts have flags of their own, which report what is wrong
/// with them.
fn own(domain: &str, namespace: &str, account: &str) -> Option<WorkloadIdentity> {
    format!("spiffe://{domain}/ns/{namespace}/sa/{account}").parse().ok()
}

/// An identity in the trust domain; one of another is a problem, and returned all the same.
fn workload(flag: &str, text: &str, domain: &str, problems: &mut Vec<String>) -> Option<WorkloadIdentity> {
    let identity: WorkloadIdentity = parse(flag, text, problems)?;
    if identity.trust_domain.as_str() != domain {
        problems.push(format!("{flag} {text:?}: not of the trust domain {domain:?}"));
    }
    Some(identity)
}

fn parse<T: FromStr<Err: Display>>(flag: &str, text: &str, problems: &mut Vec<String>) -> Option<T> {
    text.parse()
        .map_err(|error| problems.push(format!("{flag} {text:?}: {error}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Flags {
        #[command(flatten)]
        injection: InjectionFlags,
    }

    fn settings(flags: &[&str]) -> Result<Settings, Vec<String>> {
        Flags::try_parse_from(flags).unwrap().injection.settings()
    }

    #[test]
    fn without_flags_gates_believe_the_router_and_the_control_plane_that_the_chart_installs() {
        let settings = settings(&[]).unwrap();
        let routers: Vec<_> = settings.router_identities.iter().map(ToString::to_string).collect();
        assert_eq!(
            routers,
            ["spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router"]
        );
        assert_eq!(
            settings.control_identity.to_string(),
            "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-injector"
        );
        assert_eq!(settings.lockdown, None);
        assert!(!settings.allow_opt_out);
    }

    #[test]
    fn the_control_plane_is_nobody_else() {
        let of = |flags: &[&str]| settings(flags).unwrap().control_identity.to_string();
        assert_eq!(
            of(&["--trust-domain=td", "--own-namespace=here"]),
            "spiffe://td/ns/here/sa/sandbox-injector"
        );
        let other = "spiffe://cluster.local/ns/a/sa/b";
        assert_eq!(of(&[&format!("--control-identity={other}")]), other);
        for (identity, told) in [
            ("spiffe://elsewhere/ns/a/sa/b", "not of the trust domain"),
            (
                "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router",
                "a router's, too",
            ),
            ("spiffe://cluster.local/ns/a/sandbox/b/pod/c", "--control-identity"),
        ] {
            let problems = settings(&[&format!("--control-identity={identity}")]).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(told), "{problems:?}");
        }
    }

    #[test]
    fn pods_may_opt_out_where_the_operator_says_so() {
        assert!(settings(&["--allow-opt-out"]).unwrap().allow_opt_out);
    }

    #[test]
    fn all_that_is_wrong_is_reported_together() {
        let problems = settings(&[
            "--own-namespace=A",
            "--sidecar-image=a b",
            "--accepted-sidecar-image=$(X)",
            "--sidecar-image-pull-policy=always",
            "--sidecar-cpu-limit=x",
            "--sidecar-log-level=info,hyper=trace",
            "--router-identity=spiffe://other/ns/a/sa/b",
            "--router-identity=nobody",
            "--accepted-router-identity=spiffe://other/ns/a/sa/b",
        ])
        .unwrap_err();
        assert_eq!(problems.len(), 9, "{problems:#?}");
        let problems = settings(&["--sidecar-memory-request=1Gi"]).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
    }
}
