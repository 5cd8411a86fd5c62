//! What each gate enforces: one file for all, or a policy made for its sandbox.

use crate::apps::Sandbox;
use crate::cli::Failure;
use anyhow::{Context, anyhow};
use sandgate_mesh::policy::{PolicySnapshot, model};
use sandgate_mesh::polled::Poller;
use sandgate_mesh::sandbox::AppPort;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

type Policy = watch::Receiver<Option<Arc<PolicySnapshot>>>;

/// Who presents the token, as policies name it.
const TOKEN_HOLDER: &str = "static:default";
/// How often the policy file is read.
const POLICY_PERIOD: Duration = Duration::from_secs(1);

/// Token holders, or everybody if no token is needed, may do this on `port`.
pub(crate) fn rule(open: bool, port: u16, methods: &[&str], path: Option<&str>) -> model::Rule {
    model::Rule {
        from: vec![model::Source {
            users: (!open).then(|| vec![TOKEN_HOLDER.into()]),
            anonymous: open,
            ..model::Source::default()
        }],
        to: vec![model::Target {
            ports: vec![port],
            methods: Some(methods.iter().copied().map(String::from).collect()),
            paths: path.map(|path| vec![path.into()]),
        }],
    }
}

/// Token holders, or everybody if no token is needed, may do anything on these ports and nothing elsewhere.
pub(crate) fn only_ports(open: bool, ports: &[AppPort]) -> model::Snapshot {
    let default = if open {
        model::DefaultPolicy::Anonymous
    } else {
        model::DefaultPolicy::Authenticated
    };
    snapshot(default, ports.iter().map(|port| port.get()).collect(), Vec::new())
}

pub(crate) fn snapshot(
    default_policy: model::DefaultPolicy,
    ports: Vec<u16>,
    policies: Vec<model::Policy>,
) -> model::Snapshot {
    model::Snapshot {
        version: model::VERSION,
        generation: model::Generation { epoch: 1, counter: 1 },
        default_policy,
        ports,
        policies,
    }
}

/// Which policy each gate enforces.
pub(crate) enum Policies {
    /// One file for all.
    File(Policy),
    /// Each sandbox has its own. The senders, kept because a channel ends with its sender.
    Fixed(Vec<watch::Sender<Option<Arc<PolicySnapshot>>>>),
}

impl Policies {
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, Failure> {
        let Some(file) = file else {
            return Ok(Self::Fixed(Vec::new()));
        };
        let parse = |files: Vec<Vec<u8>>| PolicySnapshot::parse(files.first().map_or(&[], Vec::as_slice));
        let (poller, policy) = Poller::new("policy file", vec![file.to_owned()], parse);
        let mut poller = poller.replace_if(PolicySnapshot::may_give_way_to);
        poller
            .load()
            .map_err(|error| Failure::Configuration(anyhow!("--policy: {error}")))?;
        tokio::spawn(poller.run(POLICY_PERIOD));
        Ok(Self::File(policy))
    }

    pub(crate) fn of(&mut self, sandbox: &Sandbox) -> Result<Policy, Failure> {
        match self {
            Self::File(policy) => Ok(policy.clone()),
            Self::Fixed(senders) => {
                let compile =
                    || PolicySnapshot::parse(&serde_json::to_vec(&sandbox.policy)?).map_err(anyhow::Error::from);
                let name = &sandbox.name;
                let policy = compile().with_context(|| format!("the policy made for sandbox {name} is not valid"))?;
                let (sender, receiver) = watch::channel(Some(Arc::new(policy)));
                senders.push(sender);
                Ok(receiver)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use sandgate_mesh::caller::Caller;
    use sandgate_mesh::policy::Verdict;

    fn allows(snapshot: &model::Snapshot, port: u16, method: &Method, path: &str) -> bool {
        let snapshot = PolicySnapshot::parse(&serde_json::to_vec(snapshot).unwrap()).unwrap();
        let port = AppPort::new(port).unwrap();
        matches!(
            snapshot.evaluate(&Caller::Anonymous, port, method, path),
            Verdict::Allowed(_)
        )
    }

    fn demo(rule: model::Rule) -> model::Snapshot {
        let policy = model::Policy {
            name: "demo".into(),
            rules: vec![rule],
        };
        snapshot(model::DefaultPolicy::Deny, vec![8889], vec![policy])
    }

    #[test]
    fn the_demo_policies_allow_what_their_commands_say() {
        let open = demo(rule(true, 8889, &["GET"], Some("/public/*")));
        assert!(allows(&open, 8889, &Method::GET, "/public/page"));
        assert!(!allows(&open, 8889, &Method::GET, "/private"));
        assert!(!allows(&open, 8889, &Method::DELETE, "/public/page"));
        let closed = demo(rule(false, 8889, &["GET"], None));
        assert!(!allows(&closed, 8889, &Method::GET, "/public/page"));
    }

    #[test]
    fn a_gated_app_is_open_on_exactly_its_ports() {
        let ports = [3000, 3001].map(|port| AppPort::new(port).unwrap());
        assert!(allows(&only_ports(true, &ports), 3001, &Method::DELETE, "/"));
        assert!(!allows(&only_ports(true, &ports), 3002, &Method::GET, "/"));
        assert!(!allows(&only_ports(false, &ports), 3000, &Method::GET, "/"));
    }
}
