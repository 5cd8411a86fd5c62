//! Flags of the webhook -> [`Config`].

use super::{InjectionFlags, parse};
use crate::authority::ServingName;
use crate::names::{DEFAULT_AUTHORITY_SECRET, DEFAULT_ROOTS_CONFIG_MAP, DEFAULT_WEBHOOK};
use crate::rotation::Schedule;
use crate::settings::{IdentitySource, Settings};
use clap::{ArgAction, Args, ValueEnum};
use sandgate_mesh::duration;
use sandgate_mesh::listener::parse_address;
use sandgate_mesh::policy::model;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The longest name of an object.
const MAX_NAME: usize = 253;

/// The shortest and the longest life of a gate's certificate. Shorter, and clocks that differ would end it; longer, and a
/// pod that isn't wanted any more keeps its name for too long.
const GATE_LIFETIMES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(720 * 3600);

/// The age at which a root is replaced where nobody says otherwise: five years.
const DEFAULT_ROOT_MAX_AGE: &str = "43800h";
/// The shortest life of a Pod Certificate that the API server takes.
const SHORTEST_POD_CERTIFICATE: Duration = Duration::from_secs(3600);

/// Who may call a sandbox that no policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DefaultPolicy {
    Deny,
    Authenticated,
    Anonymous,
}

/// How the webhook is served, and what is looked after beside it.
#[derive(Debug, Args)]
pub struct ServeFlags {
    #[command(flatten)]
    injection: InjectionFlags,
    /// Address of the webhook's HTTPS listener.
    #[arg(long, default_value = ":8443", help_heading = "Webhook")]
    webhook_bind_address: String,
    /// Address of the health and metrics listener.
    #[arg(long, default_value = ":8081", help_heading = "Webhook")]
    admin_bind_address: String,
    /// DNS name or address by which API servers reach the webhook; repeatable. By default that of the Service
    /// sandgate-injector in the own namespace. For certificates that the injector issues.
    #[arg(long, help_heading = "Webhook")]
    webhook_name: Vec<String>,
    /// PEM file with the webhook's certificate chain; polled. Without it the injector issues certificates itself.
    #[arg(long, help_heading = "Webhook")]
    webhook_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, help_heading = "Webhook")]
    webhook_key_file: Option<PathBuf>,
    /// Secret in the own namespace with the root certificate of gates, and of the webhook's certificate unless that is in
    /// files. It must be there, and is filled where it is empty.
    #[arg(long, env = "AUTHORITY_SECRET", default_value = DEFAULT_AUTHORITY_SECRET, help_heading = "Webhook")]
    authority_secret: String,
    /// PEM file with the certificate of an authority that somebody else makes, in place of a root of the injector's own;
    /// polled. Its common name must be sandgate-authority. It is trusted itself: what signed it isn't.
    #[arg(long, value_name = "FILE", help_heading = "Root")]
    authority_certificate_file: Option<PathBuf>,
    /// PEM file with its private key, ECDSA P-256 in PKCS#8.
    #[arg(long, value_name = "FILE", help_heading = "Root")]
    authority_key_file: Option<PathBuf>,
    /// Replace the root by itself when it is so old, and at half of its life at the latest; 0 for never. 43800h by default.
    #[arg(long, value_name = "DURATION", help_heading = "Root")]
    root_max_age: Option<String>,
    /// How soon routers have followed a step of the root's replacement, and whoever else is given roots by hand. Without it
    /// each step waits until somebody runs `sandbox-injector root confirm`.
    #[arg(long, value_name = "DURATION", help_heading = "Root")]
    routers_follow_within: Option<String>,
    /// `ConfigMap` in the own namespace in which routers find the roots by which they know this program. It is made where
    /// there is none.
    #[arg(long, default_value = DEFAULT_ROOTS_CONFIG_MAP, help_heading = "Routers")]
    roots_config_map: String,
    #[command(flatten)]
    gates: GateFlags,
    /// Name of the mutating and of the validating webhook configuration that lead here.
    #[arg(long, default_value = DEFAULT_WEBHOOK, help_heading = "Webhook")]
    webhook_configuration: String,
    /// Keep the root certificate in the caBundle of those configurations.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Webhook")]
    manage_ca_bundle: bool,
    /// Refuse exec, attach, port-forward and proxy in opted-in namespaces: they lead past the gates.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Webhook")]
    restrict_connect: bool,
    /// Own a NetworkPolicy in each opted-in namespace that admits the gates' ports only. If false, those are removed.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Webhook")]
    network_policy: bool,
    /// How long reviews are still taken after SIGTERM, not ready, until API servers have gone elsewhere.
    #[arg(long, default_value = "5s", help_heading = "Webhook")]
    drain_delay: String,
    /// How long reviews under way may take to finish after that.
    #[arg(long, default_value = "10s", help_heading = "Webhook")]
    shutdown_timeout: String,
    /// Log level or filter, for example `info` or `debug`.
    #[arg(long, default_value = "info", help_heading = "Webhook")]
    log_level: String,
}

/// What gates are given by the replica that looks after them.
#[derive(Debug, Args)]
struct GateFlags {
    /// Who may call a sandbox that no policy selects: nobody, everybody who is somebody, or everybody.
    #[arg(long, value_enum, default_value_t = DefaultPolicy::Deny, help_heading = "Gates")]
    default_policy: DefaultPolicy,
    /// How long the certificates of gates and of the control plane live; they are renewed when about half of that is over.
    /// From 1m to 720h.
    #[arg(long, default_value = "24h", help_heading = "Gates")]
    gate_certificate_lifetime: String,
    /// Sign Pod Certificates of gates, and publish the roots in a `ClusterTrustBundle`: for gates that were born with
    /// --identity-source=pod-certificates. With that it is done in any case.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Gates")]
    sign_pod_certificates: bool,
}

/// Everything the webhook was told, checked.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // each field is the flag of the same name, documented there
pub struct Config {
    pub settings: Settings,
    pub webhook: SocketAddr,
    pub admin: SocketAddr,
    pub certificate: CertificateSource,
    pub authority_secret: String,
    /// Where an authority is that somebody else makes.
    pub authority_files: Option<AuthorityFiles>,
    /// When the root in it is replaced.
    pub schedule: Schedule,
    pub roots_config_map: String,
    pub default_policy: model::DefaultPolicy,
    pub gate_certificate_lifetime: Duration,
    pub signs_pod_certificates: bool,
    pub webhook_configuration: String,
    pub restrict_connect: bool,
    pub network_policy: bool,
    pub drain_delay: Duration,
    pub shutdown_timeout: Duration,
    pub log_level: String,
}

/// Files of an authority that somebody else makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// Its certificate, perhaps with the chain above it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where the webhook's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// The injector's own authority.
    Issued {
        /// What it is issued for.
        names: Vec<ServingName>,
        /// Whether the root is kept in the webhook configurations.
        manage_ca_bundle: bool,
    },
    /// Files.
    Files {
        /// The chain.
        chain: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

impl ServeFlags {
    /// The configuration.
    ///
    /// # Errors
    /// Everything that is wrong with the flags, one sentence each.
    pub fn config(self) -> Result<Config, Vec<String>> {
        let mut problems = Vec::new();
        let address = |flag: &str, text: &str, problems: &mut Vec<String>| {
            parse_address(text)
                .map_err(|error| problems.push(format!("{flag}: {error}")))
                .ok()
        };
        let time = |flag: &str, text: &str, problems: &mut Vec<String>| {
            duration::parse(text)
                .map_err(|error| problems.push(format!("{flag}: {error}")))
                .ok()
        };
        let webhook = address("--webhook-bind-address", &self.webhook_bind_address, &mut problems);
        let admin = address("--admin-bind-address", &self.admin_bind_address, &mut problems);
        let drain_delay = time("--drain-delay", &self.drain_delay, &mut problems);
        let authority_files = self.authority_files(&mut problems);
        let max_age = self.root_max_age.as_deref().unwrap_or(DEFAULT_ROOT_MAX_AGE);
        let max_age = time("--root-max-age", max_age, &mut problems);
        let routers_follow_within = match &self.routers_follow_within {
            Some(text) => time("--routers-follow-within", text, &mut problems).map(Some),
            None => Some(None),
        };
        let shutdown_timeout = time("--shutdown-timeout", &self.shutdown_timeout, &mut problems);
        let lifetime = time(
            "--gate-certificate-lifetime",
            &self.gates.gate_certificate_lifetime,
            &mut problems,
        );
        if lifetime.is_some_and(|lifetime| !GATE_LIFETIMES.contains(&lifetime)) {
            problems.push("--gate-certificate-lifetime: must be from 1m to 720h".into());
        }
        object_name("--webhook-configuration", &self.webhook_configuration, &mut problems);
        object_name("--authority-secret", &self.authority_secret, &mut problems);
        object_name("--roots-config-map", &self.roots_config_map, &mut problems);
        let certificate = self.certificate(&mut problems);
        let settings = self.injection.settings().map_err(|more| problems.extend(more)).ok();
        let chosen = settings.as_ref().map(|settings| settings.identity_source);
        let signs_pod_certificates =
            self.gates.sign_pod_certificates || chosen == Some(IdentitySource::PodCertificates);
        if signs_pod_certificates && lifetime.is_some_and(|lifetime| lifetime < SHORTEST_POD_CERTIFICATE) {
            problems.push(
                "--gate-certificate-lifetime: at least 1h with Pod Certificates; the API server takes no shorter ones"
                    .into(),
            );
        }
        let config = || {
            Some(Config {
                settings: settings?,
                webhook: webhook?,
                admin: admin?,
                certificate: certificate?,
                authority_secret: self.authority_secret,
                authority_files,
                schedule: Schedule {
                    max_age: max_age.map(|most| (!most.is_zero()).then_some(most))?,
                    routers_follow_within: routers_follow_within?,
                },
                roots_config_map: self.roots_config_map,
                default_policy: match self.gates.default_policy {
                    DefaultPolicy::Deny => model::DefaultPolicy::Deny,
                    DefaultPolicy::Authenticated => model::DefaultPolicy::Authenticated,
                    DefaultPolicy::Anonymous => model::DefaultPolicy::Anonymous,
                },
                gate_certificate_lifetime: lifetime?,
                signs_pod_certificates,
                webhook_configuration: self.webhook_configuration,
                restrict_connect: self.restrict_connect,
                network_policy: self.network_policy,
                drain_delay: drain_delay?,
                shutdown_timeout: shutdown_timeout?,
                log_level: self.log_level,
            })
        };
        config().filter(|_| problems.is_empty()).ok_or(problems)
    }

    fn authority_files(&self, problems: &mut Vec<String>) -> Option<AuthorityFiles> {
        let files = (self.authority_certificate_file.clone(), self.authority_key_file.clone());
        if files != (None, None) && self.root_max_age.is_some() {
            problems.push(
                "--root-max-age is for roots that the injector makes: remove it; whoever makes those of \
                 --authority-certificate-file renews them"
                    .into(),
            );
        }
        match files {
            (Some(certificate), Some(key)) => Some(AuthorityFiles { certificate, key }),
            (None, None) => None,
            _ => {
                problems.push("--authority-certificate-file and --authority-key-file belong together".into());
                None
            }
        }
    }

    fn certificate(&self, problems: &mut Vec<String>) -> Option<CertificateSource> {
        match (&self.webhook_cert_file, &self.webhook_key_file) {
            (Some(chain), Some(key)) => {
                if self.manage_ca_bundle {
                    problems.push(
                        "--webhook-cert-file: set --manage-ca-bundle=false too; the injector doesn't know the root of these \
                         files, so whoever issues them keeps the caBundle of the webhook configurations"
                            .into(),
                    );
                }
                if !self.webhook_name.is_empty() {
                    problems.push("--webhook-name is for certificates that the injector issues: remove it".into());
                }
                let (chain, key) = (chain.clone(), key.clone());
                Some(CertificateSource::Files { chain, key })
            }
            (None, None) => {
                let default = format!("{DEFAULT_WEBHOOK}.{}.svc", self.injection.own_namespace);
                let given = self.webhook_name.iter();
                let names: Vec<_> = given
                    .filter_map(|name| parse("--webhook-name", name, problems))
                    .collect();
                let names = if self.webhook_name.is_empty() {
                    default.parse().into_iter().collect()
                } else {
                    names
                };
                Some(CertificateSource::Issued {
                    names,
                    manage_ca_bundle: self.manage_ca_bundle,
                })
            }
            _ => {
                problems.push("--webhook-cert-file and --webhook-key-file belong together".into());
                None
            }
        }
    }
}

/// What the API server takes as a name of these objects.
fn object_name(flag: &str, name: &str, problems: &mut Vec<String>) {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        let (first, last) = (label.bytes().next(), label.bytes().next_back());
        first.is_some_and(edge) && last.is_some_and(edge) && label.bytes().all(|b| edge(b) || b == b'-')
    };
    if name.len() > MAX_NAME || !name.split('.').all(label) {
        problems.push(format!("{flag} {name:?}: not a name of a Kubernetes object"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Flags {
        #[command(flatten)]
        serve: ServeFlags,
    }

    fn config(flags: &[&str]) -> Result<Config, Vec<String>> {
        Flags::try_parse_from(flags).unwrap().serve.config()
    }

    #[test]
    fn without_flags_the_webhook_is_what_the_chart_installs() {
        let config = config(&["--own-namespace=here"]).unwrap();
        let issued = CertificateSource::Issued {
            names: vec![ServingName::Dns("sandgate-injector.here.svc".into())],
            manage_ca_bundle: true,
        };
        assert_eq!(config.certificate, issued);
        assert_eq!(config.authority_secret, "sandgate-authority");
        assert_eq!(config.roots_config_map, "sandgate-roots");
        assert_eq!(config.default_policy, model::DefaultPolicy::Deny);
        assert_eq!((config.webhook.port(), config.admin.port()), (8443, 8081));
        assert!(config.network_policy && !config.restrict_connect);
    }

    #[test]
    fn who_may_call_without_a_policy_is_one_of_three_words() {
        for (word, policy) in [
            ("deny", model::DefaultPolicy::Deny),
            ("authenticated", model::DefaultPolicy::Authenticated),
            ("anonymous", model::DefaultPolicy::Anonymous),
        ] {
            assert_eq!(
                config(&[&format!("--default-policy={word}")]).unwrap().default_policy,
                policy
            );
        }
        assert!(Flags::try_parse_from(["--default-policy=allow"]).is_err());
    }

    #[test]
    fn the_life_of_a_gates_certificate_is_neither_too_short_nor_too_long() {
        let with = |time: &str| config(&[&format!("--gate-certificate-lifetime={time}")]);
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(config(&[]).unwrap().gate_certificate_lifetime, hours(24));
        assert_eq!(with("720h").unwrap().gate_certificate_lifetime, hours(720));
        assert_eq!(with("1m").unwrap().gate_certificate_lifetime, Duration::from_secs(60));
        for bad in ["59s", "721h", "0", "day"] {
            let problems = with(bad).unwrap_err();
            assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
            assert!(problems[0].starts_with("--gate-certificate-lifetime: "), "{problems:?}");
        }
    }

    #[test]
    fn certificate_files_stand_alone() {
        let files = ["--webhook-cert-file=c", "--webhook-key-file=k"];
        let with = |more: &[&str]| config(&[&files, more].concat());
        let found = with(&["--manage-ca-bundle=false"]).unwrap().certificate;
        assert!(matches!(found, CertificateSource::Files { .. }), "{found:?}");
        let problems = with(&["--webhook-name=a.svc"]).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:#?}");
        let problems = config(&["--webhook-cert-file=c", "--manage-ca-bundle=false"]).unwrap_err();
        assert_eq!(problems, ["--webhook-cert-file and --webhook-key-file belong together"]);
    }

    #[test]
    fn all_that_is_wrong_is_reported_together() {
        let problems = config(&[
            "--webhook-bind-address=x",
            "--admin-bind-address=8081",
            "--webhook-name=*.svc",
            "--authority-secret=A",
            "--roots-config-map=A",
            "--webhook-configuration=a/b",
            "--drain-delay=5",
            "--root-max-age=5y",
            "--routers-follow-within=soon",
            "--shutdown-timeout=-1s",
            "--sidecar-image=a b",
        ]);
        let problems = problems.unwrap_err();
        assert_eq!(problems.len(), 11, "{problems:#?}");
    }

    #[test]
    fn files_of_an_authority_belong_together_and_know_no_age() {
        let files = ["--authority-certificate-file=c", "--authority-key-file=k"];
        let found = config(&files).unwrap().authority_files.unwrap();
        assert_eq!((found.certificate, found.key), ("c".into(), "k".into()));
        for (flags, problem) in [
            (
                &files[..1],
                "--authority-certificate-file and --authority-key-file belong",
            ),
            (
                &files[1..],
                "--authority-certificate-file and --authority-key-file belong",
            ),
            (
                &[files[0], files[1], "--root-max-age=1h"],
                "--root-max-age is for roots",
            ),
        ] {
            let problems = config(flags).unwrap_err();
            assert!(
                matches!(problems.as_slice(), [one] if one.starts_with(problem)),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_root_is_replaced_after_five_years_or_never_and_waits_for_a_word_unless_a_time_is_given() {
        let schedule = |flags: &[&str]| config(flags).unwrap().schedule;
        let hour = Duration::from_secs(3600);
        let default = Schedule {
            max_age: Some(5 * 365 * 24 * hour),
            routers_follow_within: None,
        };
        assert_eq!(schedule(&[]), default);
        let chosen = Schedule {
            max_age: None,
            routers_follow_within: Some(hour),
        };
        assert_eq!(schedule(&["--root-max-age=0", "--routers-follow-within=1h"]), chosen);
    }
}
