//! What the API server is asked about callers, as flags. Hides which flag belongs to which choice.

use super::Mesh;
use super::flags::{AuthzMode, Flags};
use clap::{ArgAction, Args};
use sandgate_mesh::duration;
use std::num::NonZeroUsize;
use std::time::Duration;

/// As long as the existing router believes it.
const TTL: Duration = Duration::from_secs(30);
/// As many as the existing router remembers.
const CACHE_SIZE: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

const NOBODY_PROVES_HIMSELF: &str = "--authz-subject-access-review with --mesh=off needs --cache-enabled: without gates and without \
                                     the cache, whoever may connect to one sandbox is led to any other by X-Sandbox-Pod-IP";

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "clap prints these comments as they stand")]
#[expect(clippy::struct_field_names, reason = "each is the flag of that name")]
pub(super) struct CallerFlags {
    /// With --authz-mode=tokenreview: how long it is believed whose a token is, and so how long a token works that was revoked
    /// [default: 30s].
    #[arg(long, value_name = "TTL", value_parser = duration::parse_above_zero, help_heading = "Callers that the API server knows")]
    authz_tokenreview_ttl: Option<Duration>,
    /// Tokens that are remembered, and as many refused ones [default: 2048].
    #[arg(long, value_name = "TOKENS", help_heading = "Callers that the API server knows")]
    authz_tokenreview_cache_size: Option<NonZeroUsize>,
    /// Refuse requests without a token. Otherwise they are anonymous, or whose the client certificate is.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Callers that the API server knows")]
    authz_tokenreview_require_token: bool,
    /// Comma-separated audiences, of which a token must be for one; without any, tokens for the API server itself are taken.
    #[arg(long, value_name = "AUDIENCES", help_heading = "Callers that the API server knows")]
    authz_tokenreview_audiences: Option<String>,
    /// Also ask the API server whether the caller may `connect` to `sandboxes/proxy` of that name in agents.x-k8s.io, in
    /// whatever way the caller is known (SubjectAccessReview).
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set, help_heading = "Callers that the API server knows")]
    pub(super) authz_subject_access_review: bool,
}

/// How the API server is asked whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenReviewSettings {
    /// How long its answer is believed.
    pub ttl: Duration,
    /// Tokens that are remembered, and as many refused ones.
    pub cache_size: NonZeroUsize,
    /// Whether requests without a token are refused.
    pub require_token: bool,
    /// What a token must be for one of; if none, for the API server itself.
    pub audiences: Vec<String>,
}

impl TokenReviewSettings {
    /// What operators should know of a choice that lets more in than its name says.
    pub(super) fn warning(&self) -> Option<&'static str> {
        let text = "callers without a token are let in as nobody in particular: see --authz-tokenreview-require-token";
        (!self.require_token).then_some(text)
    }
}

impl CallerFlags {
    /// What they say where tokens are reviewed.
    pub(super) fn token_review(&self) -> TokenReviewSettings {
        TokenReviewSettings {
            ttl: self.authz_tokenreview_ttl.unwrap_or(TTL),
            cache_size: self.authz_tokenreview_cache_size.unwrap_or(CACHE_SIZE),
            require_token: self.authz_tokenreview_require_token,
            audiences: self.audiences(),
        }
    }

    fn audiences(&self) -> Vec<String> {
        let audiences = self.authz_tokenreview_audiences.as_deref().unwrap_or_default();
        let audiences = audiences.split(',').map(str::trim);
        audiences
            .filter(|audience| !audience.is_empty())
            .map(String::from)
            .collect()
    }

    /// Whether the API server is asked about callers.
    pub(super) fn need_api_server(&self, mode: Option<AuthzMode>) -> bool {
        mode == Some(AuthzMode::TokenReview) || self.authz_subject_access_review
    }

    /// What is set and would be ignored, or would let in more than it says.
    pub(super) fn problems(&self, flags: &Flags) -> Vec<String> {
        let mut problems = Vec::new();
        if flags.authz_mode != Some(AuthzMode::TokenReview) {
            let useless = [
                ("--authz-tokenreview-ttl", self.authz_tokenreview_ttl.is_some()),
                (
                    "--authz-tokenreview-cache-size",
                    self.authz_tokenreview_cache_size.is_some(),
                ),
                (
                    "--authz-tokenreview-require-token",
                    self.authz_tokenreview_require_token,
                ),
                ("--authz-tokenreview-audiences", !self.audiences().is_empty()),
            ];
            let useless = useless.into_iter().filter(|(_, given)| *given);
            problems.extend(useless.map(|(flag, _)| format!("{flag} needs --authz-mode=tokenreview")));
        }
        // Commas and spaces alone would take every token for what was to be limited.
        let given = self.authz_tokenreview_audiences.as_deref();
        if given.is_some_and(|given| !given.is_empty()) && self.audiences().is_empty() {
            problems.push("--authz-tokenreview-audiences names none".into());
        }
        if self.authz_subject_access_review && flags.mesh == Mesh::Off && !flags.cache_enabled {
            problems.push(NOBODY_PROVES_HIMSELF.into());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authentication, Config, ConfigError};
    use super::*;

    fn read(flags: &[&str]) -> Result<Config, ConfigError> {
        Config::from_args(flags.iter().map(Into::into).collect())
    }

    fn said(flags: &[&str]) -> Vec<String> {
        match read(flags) {
            Err(ConfigError::Settings { problems, .. }) => problems,
            other => panic!("{flags:?}: {other:?}"),
        }
    }

    fn settings(flags: &[&str]) -> TokenReviewSettings {
        let flags = [&["-authz-mode=tokenreview"], flags].concat();
        match read(&flags).unwrap().authentication {
            Authentication::TokenReview(settings) => settings,
            other => panic!("{flags:?}: {other:?}"),
        }
    }

    #[test]
    fn defaults_and_spellings_are_those_of_the_existing_router() {
        let defaults = TokenReviewSettings {
            ttl: Duration::from_secs(30),
            cache_size: NonZeroUsize::new(2048).unwrap(),
            require_token: false,
            audiences: Vec::new(),
        };
        assert_eq!(settings(&[]), defaults);
        assert_eq!(settings(&["-authz-tokenreview-audiences="]), defaults);
        assert_eq!(settings(&["-authz-tokenreview-require-token=false"]), defaults);
        let set = settings(&[
            "-authz-tokenreview-ttl=1m30s",
            "-authz-tokenreview-cache-size",
            "7",
            "-authz-tokenreview-require-token",
            "-authz-tokenreview-audiences=a, b,",
        ]);
        let expected = TokenReviewSettings {
            ttl: Duration::from_secs(90),
            cache_size: NonZeroUsize::new(7).unwrap(),
            require_token: true,
            audiences: vec!["a".into(), "b".into()],
        };
        assert_eq!(set, expected);
    }

    #[test]
    fn callers_without_a_token_are_let_in_with_a_warning_only() {
        let warnings = |flags: &[&str]| read(&[&["--authz-mode=tokenreview"], flags].concat()).unwrap().warnings;
        let warned = warnings(&[]);
        assert!(
            warned
                .iter()
                .any(|text| text.contains("--authz-tokenreview-require-token")),
            "{warned:?}"
        );
        assert_eq!(warnings(&["--authz-tokenreview-require-token"]), Vec::<String>::new());
    }

    #[test]
    fn what_is_for_another_choice_is_refused() {
        for (flag, named) in [
            ("--authz-tokenreview-ttl=30s", "--authz-tokenreview-ttl"),
            ("--authz-tokenreview-cache-size=1", "--authz-tokenreview-cache-size"),
            ("--authz-tokenreview-require-token", "--authz-tokenreview-require-token"),
            ("--authz-tokenreview-audiences=a", "--authz-tokenreview-audiences"),
        ] {
            for choice in ["--authz-mode=allow-all", "--auth-token=t"] {
                let expected = format!("{named} needs --authz-mode=tokenreview");
                assert_eq!(said(&[choice, flag]), [expected], "{choice}");
            }
        }
        let two = said(&["--authz-mode=tokenreview", "--auth-token=t"]);
        assert_eq!(
            two,
            ["a token is set, but --authz-mode=tokenreview would ignore it: choose one"]
        );
    }

    #[test]
    fn what_would_take_every_token_or_none_is_refused() {
        let none = ["--authz-mode=tokenreview", "--authz-tokenreview-audiences=, ,"];
        assert_eq!(said(&none), ["--authz-tokenreview-audiences names none"]);
        for flag in ["--authz-tokenreview-ttl=0s", "--authz-tokenreview-cache-size=0"] {
            let said = said(&["--authz-mode=tokenreview", flag]);
            assert!(said[0].starts_with("invalid value '0"), "{said:?}");
        }
    }

    #[test]
    fn rights_to_a_sandbox_are_asked_about_only_where_a_hint_leads_to_no_other() {
        let asked = ["--authz-mode=allow-all", "--authz-subject-access-review"];
        assert!(read(&asked).unwrap().access_review);
        let said = said(&[&asked[..], &["--mesh=off"]].concat());
        assert!(
            said[0].starts_with("--authz-subject-access-review with --mesh=off needs --cache-enabled"),
            "{said:?}"
        );
        assert!(read(&[&asked[..], &["--mesh=off", "--cache-enabled"]].concat()).is_ok());
        assert!(!read(&["--authz-mode=allow-all"]).unwrap().access_review);
    }

    #[test]
    fn a_kubeconfig_that_nothing_is_asked_with_is_refused() {
        let unused = said(&["--authz-mode=allow-all", "--kubeconfig=k"]);
        assert!(
            unused[0].starts_with("--kubeconfig is for what the API server is asked"),
            "{unused:?}"
        );
        for used in [
            &["--authz-mode=allow-all", "--cache-enabled"][..],
            &["--authz-mode=tokenreview"],
            &["--auth-token=t", "--authz-subject-access-review"],
        ] {
            let config = read(&[used, &["--kubeconfig=k"]].concat()).unwrap();
            assert_eq!(config.kubeconfig, Some("k".into()), "{used:?}");
        }
    }
}
