//! The two ways to the router's mesh identity, as flags: files, or a control plane that dials the router. Hides which flags
//! belong together.

use super::Mesh;
use clap::Args;
use sandgate_mesh::contract::POD_UID_VARIABLE;
use sandgate_mesh::credentials::MeshFiles;
use sandgate_mesh::identity::{TrustDomain, WorkloadIdentity};
use sandgate_mesh::listener::parse_address;
use sandgate_mesh::sandbox::PodUid;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

const FILES: &str = "--mesh-cert-file, --mesh-key-file and --mesh-trust-bundle-file";
const CONTROL: &str = "--mesh-identity, --control-identity, --mesh-trust-anchors-file, --mesh-token-file, --mesh-state-folder and --pod-uid";

/// The flags of both ways.
#[derive(Debug, Args)]
pub(super) struct MeshIdentityFlags {
    /// PEM file with the router's own mesh certificate chain; polled.
    #[arg(long, help_heading = "Mesh identity from files")]
    mesh_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, help_heading = "Mesh identity from files")]
    mesh_key_file: Option<PathBuf>,
    /// PEM file with the roots that gates are verified under.
    #[arg(long, help_heading = "Mesh identity from files")]
    mesh_trust_bundle_file: Option<PathBuf>,
    /// SPIFFE ID that this router is to be given. It takes no other.
    #[arg(long, help_heading = "Mesh identity from a control plane")]
    mesh_identity: Option<WorkloadIdentity>,
    /// SPIFFE ID of a control plane that may bring it; repeatable. It dials the mesh port.
    #[arg(long, help_heading = "Mesh identity from a control plane")]
    control_identity: Vec<WorkloadIdentity>,
    /// PEM file with the roots that a control plane is verified under until this router has an identity, and beside its
    /// bundle when that has ended; polled, so it may appear later and change.
    #[arg(long, help_heading = "Mesh identity from a control plane")]
    mesh_trust_anchors_file: Option<PathBuf>,
    /// The pod's token for the control plane, for the audience `sandgate`; read anew each time.
    #[arg(long, help_heading = "Mesh identity from a control plane")]
    mesh_token_file: Option<PathBuf>,
    /// Folder, for nobody but this router, where its key and identity outlast a crash.
    #[arg(long, help_heading = "Mesh identity from a control plane")]
    mesh_state_folder: Option<PathBuf>,
    /// UID of the router's pod.
    #[arg(long, env = POD_UID_VARIABLE, help_heading = "Mesh identity from a control plane")]
    pod_uid: Option<PodUid>,
    /// Address of the mesh port, on which control planes dial and nobody else is heard [default: :14443].
    #[arg(long, value_parser = parse_address, help_heading = "Mesh identity from a control plane")]
    mesh_bind_address: Option<SocketAddr>,
}

/// Where the router's mesh identity comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshIdentity {
    /// Files that are polled.
    Files(MeshFiles),
    /// A control plane.
    Enrolment(Enrolment),
}

/// How a control plane comes to bring the router its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each field is the flag of the same name, documented there
pub struct Enrolment {
    pub mesh_bind_address: SocketAddr,
    pub mesh_identity: WorkloadIdentity,
    pub control_identities: Vec<WorkloadIdentity>,
    pub mesh_trust_anchors_file: PathBuf,
    pub mesh_token_file: PathBuf,
    pub mesh_state_folder: PathBuf,
    pub pod_uid: PodUid,
}

pub(crate) const NO_IDENTITY: &str = "--mesh=required and --mesh=auto need an identity of the router's own: set \
     --mesh-cert-file, --mesh-key-file and --mesh-trust-bundle-file, or have a control plane bring it (--mesh-identity and \
     what belongs to it), or --mesh=off to forward without gates";

impl MeshIdentityFlags {
    /// The one way that the flags describe, or `None`; and what is wrong with them. A program without an embedder needs one.
    pub(super) fn identity(
        &self,
        mesh: Mesh,
        trust_domain: &TrustDomain,
        needed: bool,
        problems: &mut Vec<String>,
    ) -> Option<MeshIdentity> {
        let files = [
            ("--mesh-cert-file", self.mesh_cert_file.is_some()),
            ("--mesh-key-file", self.mesh_key_file.is_some()),
            ("--mesh-trust-bundle-file", self.mesh_trust_bundle_file.is_some()),
        ];
        let control = [
            ("--mesh-identity", self.mesh_identity.is_some()),
            ("--control-identity", !self.control_identity.is_empty()),
            ("--mesh-trust-anchors-file", self.mesh_trust_anchors_file.is_some()),
            ("--mesh-token-file", self.mesh_token_file.is_some()),
            ("--mesh-state-folder", self.mesh_state_folder.is_some()),
            ("--pod-uid", self.pod_uid.is_some()),
        ];
        // What was given, though badly, isn't missing.
        let told = problems.concat();
        let given = |(flag, given): &(&str, bool)| *given || told.contains(&format!("'{flag} "));
        let any_of_files = files.iter().any(given);
        let any_of_control = control.iter().any(given) || self.mesh_bind_address.is_some();
        self.check_identities(trust_domain, problems);
        match (any_of_files, any_of_control) {
            (true, true) => problems.push(format!(
                "the router's mesh identity comes either from files ({FILES}) or from a control plane ({CONTROL}), and flags or \
                 variables of both are given"
            )),
            (false, false) if needed && mesh != Mesh::Off => problems.push(NO_IDENTITY.into()),
            (false, true) if mesh == Mesh::Off => {
                problems.push(format!("--mesh=off has no use for an identity: remove {CONTROL}"));
            }
            (true, false) if !files.iter().all(given) => problems.push(format!("{FILES} belong together")),
            (false, true) if !control.iter().all(given) => {
                let missing = control.iter().filter(|flag| !given(flag));
                problems.extend(missing.map(|(flag, _)| format!("{flag} is not given, and {CONTROL} belong together")));
            }
            _ => {}
        }
        match (any_of_files, any_of_control) {
            (true, false) => self.files(),
            (false, true) => self.enrolment(),
            _ => None,
        }
    }

    fn files(&self) -> Option<MeshIdentity> {
        Some(MeshIdentity::Files(MeshFiles {
            chain: self.mesh_cert_file.clone()?,
            key: self.mesh_key_file.clone()?,
            bundle: self.mesh_trust_bundle_file.clone()?,
        }))
    }

    fn enrolment(&self) -> Option<MeshIdentity> {
        let anywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, sandgate_mesh::contract::MESH_PORT));
        Some(MeshIdentity::Enrolment(Enrolment {
            mesh_bind_address: self.mesh_bind_address.unwrap_or(anywhere),
            mesh_identity: self.mesh_identity.clone()?,
            control_identities: self.control_identity.clone(),
            mesh_trust_anchors_file: self.mesh_trust_anchors_file.clone()?,
            mesh_token_file: self.mesh_token_file.clone()?,
            mesh_state_folder: self.mesh_state_folder.clone()?,
            pod_uid: self.pod_uid.clone()?,
        }))
    }

    fn check_identities(&self, trust_domain: &TrustDomain, problems: &mut Vec<String>) {
        let own = self.mesh_identity.iter().map(|identity| ("--mesh-identity", identity));
        let control = self
            .control_identity
            .iter()
            .map(|identity| ("--control-identity", identity));
        for (flag, identity) in own.chain(control) {
            if identity.trust_domain != *trust_domain {
                problems.push(format!("{flag}: {identity} is not in the trust domain {trust_domain}"));
            }
        }
        if let Some(own) = self
            .mesh_identity
            .as_ref()
            .filter(|own| self.control_identity.contains(own))
        {
            problems.push(format!(
                "--control-identity: {own} is --mesh-identity, too; who brings identities is no router"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};
    use super::*;

    const FILES: [&str; 3] = ["--mesh-cert-file=c", "--mesh-key-file=k", "--mesh-trust-bundle-file=b"];
    const CONTROL: [&str; 6] = [
        "--mesh-identity=spiffe://cluster.local/ns/a/sa/r",
        "--control-identity=spiffe://cluster.local/ns/a/sa/c",
        "--mesh-trust-anchors-file=a",
        "--mesh-token-file=t",
        "--mesh-state-folder=s",
        "--pod-uid=u1",
    ];

    fn read(flags: &[&[&str]]) -> Result<Config, ConfigError> {
        let args = [&["--authz-mode=allow-all"], &*flags.concat()].concat();
        Config::of_program(args.iter().map(Into::into).collect())
    }

    fn said(flags: &[&[&str]]) -> Vec<String> {
        match read(flags) {
            Err(ConfigError::Settings { problems, .. }) => problems,
            other => panic!("{flags:?}: {other:?}"),
        }
    }

    #[test]
    fn the_identity_comes_from_one_of_two_ways_and_all_of_it() {
        assert!(matches!(
            read(&[&FILES]).unwrap().mesh_identity,
            Some(MeshIdentity::Files(_))
        ));
        let Some(MeshIdentity::Enrolment(found)) = read(&[&CONTROL]).unwrap().mesh_identity else {
            panic!()
        };
        assert_eq!(found.mesh_bind_address.port(), 14443);
        assert_eq!((found.pod_uid.as_str(), found.control_identities.len()), ("u1", 1));
        for (ways, expected) in [
            (
                &[&[][..]][..],
                &["--mesh=required and --mesh=auto need an identity"][..],
            ),
            (&[&FILES[..1]], &["--mesh-cert-file, --mesh-key-file and"]),
            (
                &[&CONTROL[..1]],
                &[
                    "--control-identity is not given",
                    "--mesh-trust-anchors-file is not given",
                    "--mesh-token-file is not given",
                    "--mesh-state-folder is not given",
                    "--pod-uid is not given",
                ],
            ),
            (&[&CONTROL[1..]], &["--mesh-identity is not given"]),
            (&[&FILES, &CONTROL], &["the router's mesh identity comes either from"]),
            (
                &[&FILES, &["--mesh-bind-address=:1"]],
                &["the router's mesh identity comes either from"],
            ),
            (&[&CONTROL, &["--mesh=off"]], &["--mesh=off has no use for an identity"]),
            // What was given, though badly, isn't missing.
            (
                &[&CONTROL[1..], &["--mesh-identity=spiffe://cluster.local/x"]],
                &["invalid value 'spiffe://cluster.local/x' for '--mesh-identity "],
            ),
            (
                &[&CONTROL[..5], &["--pod-uid=a/b"]],
                &["invalid value 'a/b' for '--pod-uid "],
            ),
            (
                &[&CONTROL, &["--control-identity=spiffe://other/ns/a/sa/c"]],
                &["--control-identity: spiffe://other/ns/a/sa/c is not in the trust domain cluster.local"],
            ),
            (
                &[&CONTROL, &["--control-identity=spiffe://cluster.local/ns/a/sa/r"]],
                &["--control-identity: spiffe://cluster.local/ns/a/sa/r is --mesh-identity, too"],
            ),
        ] {
            let said = said(ways);
            assert_eq!(said.len(), expected.len(), "{said:?}");
            assert!(
                said.iter()
                    .zip(expected)
                    .all(|(said, expected)| said.starts_with(expected)),
                "{said:?}"
            );
        }
    }

    #[test]
    fn the_identity_is_of_the_trust_domain_that_is_configured() {
        let said = said(&[&CONTROL, &["--trust-domain=other"]]);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("--mesh-identity: "), "{said:?}");
    }
}
