//! The two ways to an identity and a policy, as flags: files, or control planes. Hides which flags belong together.

use clap::Args;
use sandgate_mesh::contract::TRUST_ANCHORS_VARIABLE;
use sandgate_mesh::control::server::ControlSettings;
use sandgate_mesh::credentials::{MeshFiles, roots_from_pem};
use sandgate_mesh::identity::{TrustDomain, WorkloadIdentity};
use std::path::PathBuf;
use tokio::sync::watch;

/// Where the kubelet puts the token, unless told otherwise.
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const FILES: &str = "--tls-cert-file, --tls-key-file, --trust-bundle-file and --policy-file";
const CONTROL: &str = "--control-identity, --state-folder and --trust-anchors";

/// The flags of both ways.
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
    /// The roots, PEM, that a control plane is verified under until this gate has an identity, and beside its bundle
    /// afterwards.
    #[arg(long, env = TRUST_ANCHORS_VARIABLE, hide_env_values = true, help_heading = "Identity and policy from a control plane")]
    trust_anchors: Option<String>,
    /// Folder, for nobody but this gate, where its key, identity and policy outlast a crash.
    #[arg(long, help_heading = "Identity and policy from a control plane")]
    state_folder: Option<PathBuf>,
    /// The pod's token for the control plane; read anew each time.
    /// /var/run/secrets/kubernetes.io/serviceaccount/token if not given.
    #[arg(long, help_heading = "Identity and policy from a control plane")]
    token_file: Option<PathBuf>,
}

/// Where the gate's identity and policy come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Files that are polled: those of the identity, and the policy's.
    Files(MeshFiles, PathBuf),
    /// Control planes.
    Control(ControlSettings),
}

impl Source {
    /// Where the gate keeps what it is given, if anything is.
    pub(super) fn state_folder(&self) -> Option<PathBuf> {
        match self {
            Self::Files(..) => None,
            Self::Control(settings) => Some(settings.state_folder.clone()),
        }
    }
}

impl SourceFlags {
    /// The one way that the flags describe, or `None` and what is wrong with them.
    pub(super) fn source(&self, problems: &mut Vec<String>) -> Option<Source> {
        let files = [
            ("--tls-cert-file <TLS_CERT_FILE>", self.tls_cert_file.is_some()),
            ("--tls-key-file <TLS_KEY_FILE>", self.tls_key_file.is_some()),
            (
                "--trust-bundle-file <TRUST_BUNDLE_FILE>",
                self.trust_bundle_file.is_some(),
            ),
            ("--policy-file <POLICY_FILE>", self.policy_file.is_some()),
        ];
        let control = [
            (
                "--control-identity <CONTROL_IDENTITY>",
                !self.control_identity.is_empty(),
            ),
            ("--state-folder <STATE_FOLDER>", self.state_folder.is_some()),
            ("--trust-anchors <TRUST_ANCHORS>", self.trust_anchors.is_some()),
        ];
        // What was given, though badly, isn't missing.
        let told = problems.concat();
        let given = |(flag, given): &(&str, bool)| *given || told.contains(&format!("'{flag}'"));
        let missing = |(flag, _): &(&str, bool)| format!("{flag} is not given");
        let any_of_files = files.iter().any(given);
        let any_of_control = control.iter().any(given) || self.token_file.is_some();
        match (any_of_files, any_of_control) {
            (true, true) => problems.push(format!(
                "identity and policy come either from files ({FILES}) or from a control plane ({CONTROL}), and flags or \
                 variables of both are given"
            )),
            (false, false) => problems.push(format!("no way to an identity and a policy is given: {FILES}, or {CONTROL}")),
            (true, false) => problems.extend(files.iter().filter(|flag| !given(flag)).map(missing)),
            (false, true) => problems.extend(control.iter().filter(|flag| !given(flag)).map(missing)),
        }
        match (any_of_files, any_of_control) {
            (true, false) => self.files(),
            (false, true) => self.control(problems),
            _ => None,
        }
    }

    fn files(&self) -> Option<Source> {
        let files = MeshFiles {
            chain: self.tls_cert_file.clone()?,
            key: self.tls_key_file.clone()?,
            bundle: self.trust_bundle_file.clone()?,
        };
        Some(Source::Files(files, self.policy_file.clone()?))
    }

    fn control(&self, problems: &mut Vec<String>) -> Option<Source> {
        let anchors = roots_from_pem(self.trust_anchors.as_ref()?.as_bytes());
        let anchors = anchors.map_err(|error| problems.push(format!("--trust-anchors: {error}")));
        Some(Source::Control(ControlSettings {
            control_planes: self.control_identity.clone(),
            // They stay what they are for as long as the gate runs.
            anchors: watch::channel(Some(anchors.ok()?)).1,
            state_folder: self.state_folder.clone()?,
            token_file: self.token_file.clone().unwrap_or_else(|| TOKEN_FILE.into()),
        }))
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
        let Ok(Task::Serve(_, Source::Control(settings))) = read(&[&control]) else {
            panic!()
        };
        let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        assert_eq!(settings.token_file.to_str(), Some(token));
        let anchors = settings.anchors.borrow().as_ref().map(|roots| roots.len());
        assert_eq!((settings.control_planes.len(), anchors), (1, Some(1)));

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
