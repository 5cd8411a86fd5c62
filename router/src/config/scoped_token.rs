//! The keys of scoped tokens, as flags. Hides when they are of use.

use clap::Args;
use std::path::PathBuf;

const SECRET: &str = "--authz-scoped-token-secret-file";
const PUBLIC_KEYS: &str = "--authz-scoped-token-public-keys-file";

/// The flags of `--authz-mode=scoped-token`.
#[derive(Debug, Args)]
pub(super) struct ScopedTokenFlags {
    /// File with the secret of scoped tokens v1, at least 32 bytes, or with several, one a line: all verify. Polled. Whoever
    /// has it can make tokens for every sandbox.
    #[arg(long, help_heading = "Scoped tokens")]
    authz_scoped_token_secret_file: Option<PathBuf>,
    /// File with the Ed25519 public keys of scoped tokens v2: PEM, a JWK set, or the Go router's set of keys. Polled.
    #[arg(
        long,
        visible_alias = "authz-scoped-token-verification-keys-file",
        help_heading = "Scoped tokens"
    )]
    authz_scoped_token_public_keys_file: Option<PathBuf>,
}

/// Where the keys of scoped tokens are: of one version or of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopedTokenFiles {
    /// The secrets of v1.
    pub secrets: Option<PathBuf>,
    /// The public keys of v2.
    pub public_keys: Option<PathBuf>,
}

impl ScopedTokenFlags {
    /// The files for `--authz-mode=scoped-token`, and what is wrong with them.
    pub(super) fn files(&self, problems: &mut Vec<String>) -> Option<ScopedTokenFiles> {
        let files = ScopedTokenFiles {
            secrets: self.authz_scoped_token_secret_file.clone(),
            public_keys: self.authz_scoped_token_public_keys_file.clone(),
        };
        let ScopedTokenFiles { secrets, public_keys } = &files;
        if secrets.is_none() && public_keys.is_none() {
            problems.push(format!(
                "--authz-mode=scoped-token needs {SECRET} (tokens v1), {PUBLIC_KEYS} (tokens v2), or both"
            ));
            return None;
        }
        if secrets.is_some() && secrets == public_keys {
            problems.push(format!(
                "{SECRET} and {PUBLIC_KEYS} are the same file: who may know public keys may not know a secret"
            ));
            return None;
        }
        Some(files)
    }

    /// What is wrong with them where tokens are of no use.
    pub(super) fn useless(&self) -> impl Iterator<Item = String> {
        let given = [
            (SECRET, self.authz_scoped_token_secret_file.is_some()),
            (PUBLIC_KEYS, self.authz_scoped_token_public_keys_file.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| format!("{flag} is for scoped tokens: set --authz-mode=scoped-token"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authentication, Config, ConfigError};

    const MODE: &str = "--authz-mode=scoped-token";
    const SECRET: &str = "--authz-scoped-token-secret-file=s";
    const KEYS: &str = "--authz-scoped-token-public-keys-file=k";

    fn read(flags: &[&str]) -> Result<Config, ConfigError> {
        Config::from_args(flags.iter().map(Into::into).collect())
    }

    #[test]
    fn tokens_of_one_version_or_of_both_are_taken() {
        for (flags, secrets, public_keys) in [
            (&[MODE, SECRET][..], Some("s"), None),
            (&[MODE, KEYS], None, Some("k")),
            (&[MODE, SECRET, KEYS], Some("s"), Some("k")),
            // As the Go router spells it.
            (
                &["-authz-mode", "scoped-token", "-authz-scoped-token-secret-file", "s"],
                Some("s"),
                None,
            ),
            (
                &[MODE, "--authz-scoped-token-verification-keys-file=k"],
                None,
                Some("k"),
            ),
        ] {
            let Authentication::ScopedToken(found) = read(flags).unwrap().authentication else {
                panic!("{flags:?}")
            };
            assert_eq!(found.secrets, secrets.map(Into::into), "{flags:?}");
            assert_eq!(found.public_keys, public_keys.map(Into::into), "{flags:?}");
        }
    }

    #[test]
    fn what_is_missing_useless_or_contradictory_is_refused_in_a_sentence() {
        for (flags, expected) in [
            (
                &[MODE][..],
                "--authz-mode=scoped-token needs --authz-scoped-token-secret-file",
            ),
            (
                &["--authz-mode=allow-all", SECRET],
                "--authz-scoped-token-secret-file is for scoped tokens: set --authz-mode=scoped-token",
            ),
            (
                &["--auth-token=t", KEYS],
                "--authz-scoped-token-public-keys-file is for scoped tokens: set --authz-mode=scoped-token",
            ),
            (
                &[MODE, SECRET, "--auth-token=t"],
                "a token is set, but --authz-mode=scoped-token would ignore it: choose one",
            ),
            (
                &[MODE, SECRET, "--authz-scoped-token-public-keys-file=s"],
                "--authz-scoped-token-secret-file and --authz-scoped-token-public-keys-file are the same file",
            ),
        ] {
            let error = read(flags).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(
                error.to_string().contains(&format!("  - {expected}")),
                "{flags:?}: {error}"
            );
        }
    }
}
