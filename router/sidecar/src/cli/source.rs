//! The ways to an identity and a policy, as flags: files, control planes, or the kubelet's files for the one and control
//! planes for the other. Hides which flags belong together.

use clap::Args;
use sandgate_mesh::contract::TRUST_ANCHORS_VARIABLE;
use sandgate_mesh::control::server::ControlSettings;
use sandgate_mesh::credentials::{BundleFiles, MeshFiles, roots_from_pem};
use sandgate_mesh::identity::{TrustDomain, WorkloadIdentity};
use std::path::PathBuf;
use tokio::sync::watch;

/// Where the kubelet puts the token, unless told otherwise.
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const FILES: &str = "--tls-cert-file, --tls-key-file, --trust-bundle-file and --policy-file";
const CONTROL: &str = "--control-identity, --state-folder and --trust-anchors";
const KUBELET: &str = "--credential-bundle-file and --trust-bundle-file";

/// The flags of all ways.
#[derive(Debug, Args)]
pub(super) struct SourceFlags {
    /// PEM file with this gate's certificate chain; polled, so it may appear later and change.
    #[arg(long, help_heading = "Identity and policy from files")]
    tls_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, help_heading = "Identity and policy from files")]
    tls_key_file: Option<PathBuf>,
    /// PEM file with the roots that peers are verified under.
    #[arg(long, help_heading = "Identity and policy from files")]
    trust_bundle_file: Option<PathBuf>,
    /// Policy snapshot (JSON); polled. Without one every request is refused.
    #[arg(long, help_heading = "Identity and policy from files")]
    policy_file: Option<PathBuf>,
    /// SPIFFE ID of a control plane that may bring them; repeatable. It dials the mesh port.
    #[arg(long, help_heading = "Identity and policy from a control plane")]
    control_identity: Vec<WorkloadIdentity>,
    /// The roots, PEM, that a control plane is verified under until this gate has an identity, and beside its
    /// bundle once that has ended.
    #[arg(long, env = TRUST_ANCHORS_VARIABLE, hide_env_values = true, help_heading = "Identity and policy from a control plane")]
    trust_anchors: Option<String>,
    /// Folder, for nobody but this gate, where its key, identity and policy outlast a crash.
    #[arg(long, help_heading = "Identity and policy from a control plane")]
    state_folder: Option<PathBuf>,
    /// The pod's token for the control plane; read anew each time.
    /// /var/run/secrets/kubernetes.io/serviceaccount/token if not given.
    #[arg(long, help_heading = "Identity and policy from a control plane")]
    token_file: Option<PathBuf>,
    /// PEM file with this gate's private key and certificate chain, as a kubelet projects a pod certificate; polled. Goes with
    /// --trust-bundle-file and the flags of a control plane, which brings the policy then and no identity.
    #[arg(long, help_heading = "Identity from the kubelet")]
    credential_bundle_file: Option<PathBuf>,
}

/// A flag as errors name it, and whether it is given.
type Given = (&'static str, bool);

/// Where the gate's identity and policy come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Files that are polled: those of the identity, and the policy's.
    Files(MeshFiles, PathBuf),
    /// Control planes, and the file of the token that they ask for.
    Control(ControlSettings, PathBuf),
    /// The kubelet's files for the identity, and control planes for the policy.
    Kubelet(ControlSettings, BundleFiles),
}

impl Source {
    /// Where the gate keeps what it is given, if anything is.
    pub(super) fn state_folder(&self) -> Option<PathBuf> {
        match self {
            Self::Files(..) => None,
            Self::Control(settings, _) | Self::Kubelet(settings, _) => Some(settings.state_folder.clone()),
        }
    }
}

impl SourceFlags {
    /// The one way that the flags describe, or `None` and what is wrong with them.
    pub(super) fn source(&self, problems: &mut Vec<String>) -> Option<Source> {
        if self.credential_bundle_file.is_some() {
            return self.kubelet(problems);
        }
        let (files, control) = (self.files_given(), self.control_given());
        // What was given, though badly, isn't missing.
        let told = problems.concat();
        let given = |flag: &Given| is_given(flag, &told);
        let any_of_files = files.iter().any(given);
        let any_of_control = control.iter().any(given) || self.token_file.is_some();
        match (any_of_files, any_of_control) {
            (true, true) => problems.push(format!(
                "identity and policy come either from files ({FILES}) or from a control plane ({CONTROL}), and flags or \
                 variables of both are given"
            )),
            (false, false) => problems.push(format!("no way to an identity and a policy is given: {FILES}, or {CONTROL}")),
            (true, false) => require(&files, problems),
            (false, true) => require(&control, problems),
        }
        match (any_of_files, any_of_control) {
            (true, false) => self.files(),
            (false, true) => {
                let token_file = self.token_file.clone().unwrap_or_else(|| TOKEN_FILE.into());
                Some(Source::Control(self.control(problems)?, token_file))
            }
            _ => None,
        }
    }

    fn files_given(&self) -> [Given; 4] {
        [
            ("--tls-cert-file <TLS_CERT_FILE>", self.tls_cert_file.is_some()),
            ("--tls-key-file <TLS_KEY_FILE>", self.tls_key_file.is_some()),
            (
                "--trust-bundle-file <TRUST_BUNDLE_FILE>",
                self.trust_bundle_file.is_some(),
            ),
            ("--policy-file <POLICY_FILE>", self.policy_file.is_some()),
        ]
    }

    fn control_given(&self) -> [Given; 3] {
        [
            (
                "--control-identity <CONTROL_IDENTITY>",
                !self.control_identity.is_empty(),
            ),
            ("--state-folder <STATE_FOLDER>", self.state_folder.is_some()),
            ("--trust-anchors <TRUST_ANCHORS>", self.trust_anchors.is_some()),
        ]
    }

    fn files(&self) -> Option<Source> {
        let files = MeshFiles {
            chain: self.tls_cert_file.clone()?,
            key: self.tls_key_file.clone()?,
            bundle: self.trust_bundle_file.clone()?,
        };
        Some(Source::Files(files, self.policy_file.clone()?))
    }

    fn control(&self, problems: &mut Vec<String>) -> Option<ControlSettings> {
        let anchors = roots_from_pem(self.trust_anchors.as_ref()?.as_bytes());
        let anchors = anchors.map_err(|error| problems.push(format!("--trust-anchors: {error}")));
        Some(ControlSettings {
            control_planes: self.control_identity.clone(),
            // They stay what they are for as long as the gate runs.
            anchors: watch::channel(Some(anchors.ok()?)).1,
            state_folder: self.state_folder.clone()?,
        })
    }

    fn kubelet(&self, problems: &mut Vec<String>) -> Option<Source> {
        let [certificate, key, bundle, policy] = self.files_given();
        let token = ("--token-file <TOKEN_FILE>", self.token_file.is_some());
        for (flag, _) in [certificate, key, policy, token].iter().filter(|(_, given)| *given) {
            problems.push(format!(
                "{flag} is given beside the kubelet's files ({KUBELET}), with which it has no use"
            ));
        }
        let [identity, folder, anchors] = self.control_given();
        require(&[bundle, identity, folder, anchors], problems);
        let control = self.control(problems)?;
        let files = BundleFiles {
            credentials: self.credential_bundle_file.clone()?,
            roots: self.trust_bundle_file.clone()?,
        };
        Some(Source::Kubelet(control, files))
    }

    /// What is wrong with the control planes' identities beside those of `routers`.
    pub(super) fn check_identities(
        &self,
        trust_domain: &TrustDomain,
        routers: &[WorkloadIdentity],
        problems: &mut Vec<String>,
    ) {
        for identity in &self.control_identity {
            if identity.trust_domain != *trust_domain {
                problems.push(format!(
                    "--control-identity: {identity} is not in the trust domain {trust_domain}"
                ));
            }
            if routers.contains(identity) {
                problems.push(format!(
                    "--control-identity: {identity} is a --router-identity, too; who brings policies must not call"
                ));
            }
        }
    }
}

/// Whether a flag is given, be it badly.
fn is_given((flag, given): &Given, told: &str) -> bool {
    *given || told.contains(&format!("'{flag}'"))
}

fn require(flags: &[Given], problems: &mut Vec<String>) {
    let told = problems.concat();
    let missing = flags.iter().filter(|flag| !is_given(flag, &told));
    problems.extend(missing.map(|(flag, _)| format!("{flag} is not given")));
}

#[cfg(test)]
mod tests {
    use super::super::Task;
    use super::super::tests::{NEEDED, read};
    use super::*;

    /// A root in PEM, as the injector gives it.
    fn root() -> String {
        crate::authority::Authority::new("root").unwrap().root_pem().to_owned()
    }

    #[test]
    fn identity_and_policy_come_from_one_of_two_ways_and_all_of_it() {
        let who = &NEEDED[..4];
        let anchors = format!("--trust-anchors={}", root());
        let files = &NEEDED[4..];
        let control = [
            "--control-identity=spiffe://cluster.local/ns/a/sa/c",
            "--state-folder=s",
            &anchors,
        ];
        let read = |ways: &[&[&str]]| read(&[&[who], ways].concat().concat());
        assert!(matches!(read(&[files]), Ok(Task::Serve(_, Source::Files(..)))));
        let Ok(Task::Serve(_, Source::Control(settings, token_file))) = read(&[&control]) else {
            panic!()
        };
        let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        assert_eq!(token_file.to_str(), Some(token));
        let anchors = settings.anchors.borrow().as_ref().map(|roots| roots.len());
        assert_eq!((settings.control_planes.len(), anchors), (1, Some(1)));

        let kubelet = ["--credential-bundle-file=b", "--trust-bundle-file=t"];
        assert!(matches!(
            read(&[&control, &kubelet]),
            Ok(Task::Serve(_, Source::Kubelet(..)))
        ));

        let said = |ways: &[&[&str]]| {
            let error = read(ways).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{error}");
            let text = error.to_string();
            text.lines().skip(1).map(String::from).collect::<Vec<_>>()
        };
        for (ways, expected) in [
            (&[&[][..]][..], &["no way to an identity and a policy is given"][..]),
            (
                &[&files[..1]],
                &["--tls-key-file <", "--trust-bundle-file <", "--policy-file <"],
            ),
            (&[&control[..1]], &["--state-folder <", "--trust-anchors <"]),
            (&[&control[1..]], &["--control-identity <"]),
            (
                &[&["--token-file=t"]],
                &["--control-identity <", "--state-folder <", "--trust-anchors <"],
            ),
            (&[files, &control], &["identity and policy come either from files"]),
            (
                &[files, &["--token-file=t"]],
                &["identity and policy come either from files"],
            ),
            (
                &[&files[..1], &control[1..2]],
                &["identity and policy come either from files"],
            ),
            (
                &[&kubelet[..1]],
                &[
                    "--trust-bundle-file <",
                    "--control-identity <",
                    "--state-folder <",
                    "--trust-anchors <",
                ],
            ),
            (
                &[&control, &kubelet, &["--token-file=t", "--tls-key-file=k"]],
                &[
                    "--tls-key-file <TLS_KEY_FILE> is given beside",
                    "--token-file <TOKEN_FILE> is given beside",
                ],
            ),
            // What was given, though badly, isn't missing.
            (
                &[&control[1..], &["--control-identity=spiffe://cluster.local/x"]],
                &["invalid value 'spiffe://cluster.local/x' for '--control-identity "],
            ),
            (
                &[&control[..2], &["--trust-anchors=none"]],
                &["--trust-anchors: trust bundle holds no certificate"],
            ),
            (
                &[&control, &["--control-identity=spiffe://other/ns/a/sa/c"]],
                &["--control-identity: spiffe://other/ns/a/sa/c is not in the trust domain cluster.local"],
            ),
            (
                &[&control, &["--control-identity=spiffe://cluster.local/ns/a/sa/r"]],
                &["--control-identity: spiffe://cluster.local/ns/a/sa/r is a --router-identity, too"],
            ),
        ] {
            let said = said(ways);
            let matching = |(said, expected): (&String, &&str)| said.trim_start_matches("  - ").starts_with(*expected);
            assert_eq!(said.len(), expected.len(), "{said:?}");
            assert!(said.iter().zip(expected).all(matching), "{said:?}");
        }
    }
}
