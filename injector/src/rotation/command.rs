//! `sandbox-injector root`: what whoever operates Sandgate says to the authority, through the API server. The leader does the
//! rest.

use super::{Cause, status, steps};
use crate::authority_secret::{AuthoritySecret, SecretError};
use crate::kubernetes;
use crate::names::{DEFAULT_AUTHORITY_SECRET, DEFAULT_OWN_NAMESPACE};
use clap::{Args, Subcommand};
use std::time::SystemTime;

/// Looks at the root of gates and of the webhook, and replaces it.
#[derive(Debug, Args)]
pub(crate) struct RootCommand {
    #[command(subcommand)]
    action: Action,
    /// Namespace of Sandgate's own programs.
    #[arg(long, env = "POD_NAMESPACE", default_value = DEFAULT_OWN_NAMESPACE, global = true)]
    own_namespace: String,
    /// Secret in it with the root.
    #[arg(long, env = "AUTHORITY_SECRET", default_value = DEFAULT_AUTHORITY_SECRET, global = true)]
    authority_secret: String,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say which roots there are, in which step a replacement is, and what it waits for.
    Status,
    /// Begin to replace the root: the new one is distributed, then it signs, then the old one is retired.
    Rotate {
        /// Somebody else has a key: a new root signs at once and nobody is to believe any other. Gates that run must be made
        /// anew.
        #[arg(long)]
        leaked: bool,
    },
    /// Say that routers, and whoever else is given roots by hand, have followed the step that is under way.
    Confirm,
}

impl RootCommand {
    /// Does it, and returns what to print.
    ///
    /// # Errors
    /// The API server can't be asked, or the Secret doesn't allow that now.
    pub(crate) async fn run(&self) -> anyhow::Result<String> {
        let client = kubernetes::client().await?;
        let secret = AuthoritySecret::new(client, &self.own_namespace, &self.authority_secret);
        Ok(self.action.on(&secret).await?)
    }
}

impl Action {
    async fn on(&self, secret: &AuthoritySecret) -> Result<String, SecretError> {
        let now = SystemTime::now();
        let done = match self {
            Self::Status => {
                let (stored, told) = secret.read().await?;
                return Ok(status::shown(&stored, told.as_deref(), now));
            }
            Self::Rotate { leaked: false } => {
                let begin = |content: &_| steps::begun(content, Cause::Command, now);
                secret.change(begin).await?;
                "A new root is being distributed."
            }
            Self::Rotate { leaked: true } => {
                secret.change(|content| steps::replaced_at_once(content, now)).await?;
                "A new root signs, and no other counts. Delete every pod with a gate that was created before now, of which `root status` names ten, and the \
                 routers' pods."
            }
            Self::Confirm => {
                secret.change(steps::confirmed).await?;
                "Confirmed for this step."
            }
        };
        Ok(format!(
            "{done} `sandbox-injector root status` says what it waits for.\n"
        ))
    }
}
