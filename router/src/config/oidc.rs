//! Callers by the tokens of an OIDC issuer, as flags. They are called as kube-apiserver calls its own.

use super::https_url::HttpsUrl;
use clap::Args;
use sandgate_mesh::caller::{CallerName, UserName};
use sandgate_mesh::duration;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const MODE: &str = "--authz-mode=oidc";
const HEADING: &str = "Callers that an OIDC issuer knows";
/// The one claim that every token has, and that its issuer never gives to somebody else.
const USERNAME_CLAIM: &str = "sub";
const LEEWAY: Duration = Duration::from_secs(30);
/// More would let expired tokens in.
const LONGEST_LEEWAY: Duration = Duration::from_secs(300);
const REFRESH: Duration = Duration::from_secs(600);
const MIN_REFRESH: Duration = Duration::from_secs(10);
const KEYS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// The flags of `--authz-mode=oidc`.
#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "clap prints these comments as they stand")]
#[expect(clippy::struct_field_names, reason = "each is the flag of that name")]
pub(super) struct OidcFlags {
    /// With --authz-mode=oidc: the issuer's URL, exactly as its tokens have it in `iss`. https only.
    #[arg(long, value_name = "URL", help_heading = HEADING)]
    authz_oidc_issuer_url: Option<String>,
    /// Comma-separated audiences, of which a token's `aud` must have one. Needed: without it, tokens that the issuer made for
    /// other services would do.
    #[arg(long, value_name = "AUDIENCES", visible_alias = "authz-oidc-client-id", help_heading = HEADING)]
    authz_oidc_audiences: Option<String>,
    /// Claim with the caller's name [default: sub].
    #[arg(long, value_name = "CLAIM", help_heading = HEADING)]
    authz_oidc_username_claim: Option<String>,
    /// What each name begins with in logs and policies, for example `oidc:`. Needed: no issuer's user can then be taken for
    /// another kind of caller.
    #[arg(long, value_name = "PREFIX", help_heading = HEADING)]
    authz_oidc_username_prefix: Option<String>,
    /// Claim with the caller's groups, a text or a list of them; without it callers have no groups.
    #[arg(long, value_name = "CLAIM", help_heading = HEADING)]
    authz_oidc_groups_claim: Option<String>,
    /// What each group begins with in policies, for example `oidc:`. Needed with --authz-oidc-groups-claim.
    #[arg(long, value_name = "PREFIX", help_heading = HEADING)]
    authz_oidc_groups_prefix: Option<String>,
    /// CLAIM=VALUE that every token must have, as a text; repeatable.
    #[arg(long, value_name = "CLAIM=VALUE", help_heading = HEADING)]
    authz_oidc_required_claim: Vec<String>,
    /// Comma-separated signature algorithms that are taken: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA
    /// [default: RS256].
    #[arg(long, value_name = "ALGORITHMS", help_heading = HEADING)]
    authz_oidc_signing_algs: Option<String>,
    /// PEM file with the roots that the issuer's certificate is verified under; polled. Needed unless there is
    /// --authz-oidc-jwks-file: the image holds no roots of its own.
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    authz_oidc_ca_file: Option<PathBuf>,
    /// File with the issuer's JWK set, for clusters from which the issuer can't be reached: it is then never asked. Polled.
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    authz_oidc_jwks_file: Option<PathBuf>,
    /// How far the issuer's clock may differ; at most 5m [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = duration::parse, help_heading = HEADING)]
    authz_oidc_clock_leeway: Option<Duration>,
    /// How often the issuer is asked for its keys at least; sooner if the answer's Cache-Control says so, but not within a
    /// minute [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = duration::parse_above_zero, help_heading = HEADING)]
    authz_oidc_refresh_interval: Option<Duration>,
    /// How often the issuer is asked at most, however many tokens name a key that isn't known [default: 10s].
    #[arg(long, value_name = "TIME", value_parser = duration::parse_above_zero, help_heading = HEADING)]
    authz_oidc_min_refresh_interval: Option<Duration>,
    /// How long keys are used that the issuer could not be asked about since; after that nobody is let in [default: 24h].
    #[arg(long, value_name = "TIME", value_parser = duration::parse_above_zero, help_heading = HEADING)]
    authz_oidc_keys_max_age: Option<Duration>,
}

/// A signature algorithm (RFC 7518 section 3, RFC 8037) with keys of which one half is public.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each is the name in the registry
pub enum SigningAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl FromStr for SigningAlgorithm {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            // RFC 9864 gives it the curve's name.
            "EdDSA" | "Ed25519" => Self::EdDsa,
            "HS256" | "HS384" | "HS512" => {
                return Err(format!("{text:?} is never taken: whoever can verify could sign"));
            }
            "none" => return Err("\"none\" is never taken: it is no signature".into()),
            _ => {
                return Err(format!(
                    "{text:?} is not known; there are RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA"
                ));
            }
        })
    }
}

/// What an issuer's names begin with. No name with it in front begins with `system:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePrefix(String);

impl NamePrefix {
    /// `name` with the prefix.
    pub(crate) fn with(&self, name: &str) -> String {
        [&self.0, name].concat()
    }
}

impl FromStr for NamePrefix {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        const RESERVED: &str = "system:";
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.starts_with(RESERVED) || RESERVED.starts_with(text) {
            return Err("would let the issuer give out names that begin with `system:`, which are Kubernetes' own");
        }
        if text.parse::<CallerName>().is_err() || text.len() > 64 {
            return Err("must not hold control characters or be longer than 64 bytes");
        }
        if format!("{text}x").parse::<UserName>().is_err() {
            return Err("is how another kind of caller's name begins");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OidcKeys {
    /// From the issuer itself.
    Issuer {
        /// Its discovery document.
        discovery: HttpsUrl,
        /// The roots of its certificate.
        ca_file: PathBuf,
        /// How often it is asked.
        refresh: OidcRefresh,
    },
    /// From a file with a JWK set.
    File(PathBuf),
}

/// When an issuer is asked for its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OidcRefresh {
    /// At least so often.
    pub longest: Duration,
    /// At most so often.
    pub shortest: Duration,
    /// How old the last answer may be.
    pub max_age: Duration,
}

/// Whose tokens are taken, and what they say of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcSettings {
    /// What `iss` must be.
    pub issuer: String,
    /// Where the issuer's keys come from.
    pub keys: OidcKeys,
    /// What `aud` must have one of.
    pub audiences: Vec<String>,
    /// The claim with the name, and what is put in front of it.
    pub username: (String, NamePrefix),
    /// The claim with the groups, and what is put in front of each.
    pub groups: Option<(String, NamePrefix)>,
    /// What else a token must say.
    pub required: Vec<(String, String)>,
    /// The algorithms of which a token's must be one.
    pub algorithms: Vec<SigningAlgorithm>,
    /// How far the issuer's clock may differ.
    pub leeway: Duration,
}

/// A text that is there. Charts and Go write none as an empty one.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

fn list(text: Option<&String>) -> Vec<&str> {
    let entries = text.map(String::as_str).unwrap_or_default().split(',').map(str::trim);
    entries.filter(|entry| !entry.is_empty()).collect()
}

/// `value`, or what is wrong with the flag's.
fn parsed<T, E: Display>(flag: &str, value: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    value.map_err(|error| problems.push(format!("{flag}: {error}"))).ok()
}

/// The prefix that a flag names, which `needs` asks for.
fn prefix(flag: &str, text: Option<&String>, needs: &str, problems: &mut Vec<String>) -> Option<NamePrefix> {
    let Some(text) = given(text) else {
        problems.push(format!("{needs} needs {flag}, for example `oidc:`"));
        return None;
    };
    parsed(flag, text.parse(), problems)
}

impl OidcFlags {
    /// What the flags say for `--authz-mode=oidc`, and what is wrong with them.
    pub(super) fn settings(&self, problems: &mut Vec<String>) -> Option<OidcSettings> {
        let issuer = self.issuer(problems);
        let audiences = list(self.authz_oidc_audiences.as_ref());
        if audiences.is_empty() {
            problems.push(format!("{MODE} needs --authz-oidc-audiences: whom tokens must be for"));
        }
        let username_prefix = prefix(
            "--authz-oidc-username-prefix",
            self.authz_oidc_username_prefix.as_ref(),
            MODE,
            problems,
        );
        let groups = self.groups(problems);
        let required = self.required(problems);
        let algorithms = self.algorithms(problems);
        let leeway = self.authz_oidc_clock_leeway.unwrap_or(LEEWAY);
        if leeway > LONGEST_LEEWAY {
            problems.push("--authz-oidc-clock-leeway: must not be longer than 5m, or expired tokens would work".into());
        }
        let keys = self.keys(issuer.as_ref().map(|(_, url)| url), problems);
        let username_claim = given(self.authz_oidc_username_claim.as_ref()).unwrap_or(USERNAME_CLAIM);
        Some(OidcSettings {
            issuer: issuer?.0,
            keys: keys?,
            audiences: audiences.into_iter().map(String::from).collect(),
            username: (username_claim.to_owned(), username_prefix?),
            groups,
            required,
            algorithms,
            leeway,
        })
    }

    /// The issuer as tokens name it, and its discovery document (OIDC Discovery 1.0 section 4).
    fn issuer(&self, problems: &mut Vec<String>) -> Option<(String, HttpsUrl)> {
        let flag = "--authz-oidc-issuer-url";
        let Some(text) = given(self.authz_oidc_issuer_url.as_ref()) else {
            problems.push(format!("{MODE} needs {flag}"));
            return None;
        };
        let url = parsed(flag, text.parse::<HttpsUrl>(), problems)?;
        if url.has_query() {
            problems.push(format!("{flag}: must not hold a query (?...)"));
            return None;
        }
        let discovery = format!("{}/.well-known/openid-configuration", text.trim_end_matches('/'));
        Some((text.to_owned(), parsed(flag, discovery.parse(), problems)?))
    }

    fn keys(&self, discovery: Option<&HttpsUrl>, problems: &mut Vec<String>) -> Option<OidcKeys> {
        if let Some(file) = &self.authz_oidc_jwks_file {
            let useless = [
                ("--authz-oidc-ca-file", self.authz_oidc_ca_file.is_some()),
                (
                    "--authz-oidc-refresh-interval",
                    self.authz_oidc_refresh_interval.is_some(),
                ),
                (
                    "--authz-oidc-min-refresh-interval",
                    self.authz_oidc_min_refresh_interval.is_some(),
                ),
                ("--authz-oidc-keys-max-age", self.authz_oidc_keys_max_age.is_some()),
            ];
            let useless = useless.into_iter().filter(|(_, given)| *given);
            let text = "is for an issuer that is asked, and with --authz-oidc-jwks-file it is not";
            problems.extend(useless.map(|(flag, _)| format!("{flag} {text}")));
            return Some(OidcKeys::File(file.clone()));
        }
        let refresh = OidcRefresh {
            longest: self.authz_oidc_refresh_interval.unwrap_or(REFRESH),
            shortest: self.authz_oidc_min_refresh_interval.unwrap_or(MIN_REFRESH),
            max_age: self.authz_oidc_keys_max_age.unwrap_or(KEYS_MAX_AGE),
        };
        if refresh.shortest > refresh.longest {
            problems.push("--authz-oidc-min-refresh-interval is longer than --authz-oidc-refresh-interval".into());
        }
        if refresh.longest >= refresh.max_age {
            problems.push("--authz-oidc-keys-max-age must be longer than --authz-oidc-refresh-interval".into());
        }
        let Some(ca_file) = self.authz_oidc_ca_file.clone() else {
            problems.push(format!(
                "{MODE} needs --authz-oidc-ca-file, the roots of the issuer's certificate, or the issuer's keys as \
                 --authz-oidc-jwks-file"
            ));
            return None;
        };
        let discovery = discovery?.clone();
        Some(OidcKeys::Issuer {
            discovery,
            ca_file,
            refresh,
        })
    }

    fn groups(&self, problems: &mut Vec<String>) -> Option<(String, NamePrefix)> {
        let flag = "--authz-oidc-groups-prefix";
        let Some(claim) = given(self.authz_oidc_groups_claim.as_ref()) else {
            if given(self.authz_oidc_groups_prefix.as_ref()).is_some() {
                problems.push(format!("{flag} needs --authz-oidc-groups-claim"));
            }
            return None;
        };
        let prefix = prefix(
            flag,
            self.authz_oidc_groups_prefix.as_ref(),
            "--authz-oidc-groups-claim",
            problems,
        )?;
        Some((claim.to_owned(), prefix))
    }

    fn required(&self, problems: &mut Vec<String>) -> Vec<(String, String)> {
        let mut required: Vec<(String, String)> = Vec::new();
        for text in &self.authz_oidc_required_claim {
            let pair = text.split_once('=').filter(|(claim, _)| !claim.is_empty());
            let Some((claim, value)) = pair else {
                problems.push(format!("--authz-oidc-required-claim: {text:?} must be CLAIM=VALUE"));
                continue;
            };
            if required.iter().any(|(known, _)| known == claim) {
                problems.push(format!("--authz-oidc-required-claim: {claim} is given twice"));
            }
            required.push((claim.to_owned(), value.to_owned()));
        }
        required
    }

    fn algorithms(&self, problems: &mut Vec<String>) -> Vec<SigningAlgorithm> {
        let flag = "--authz-oidc-signing-algs";
        let names = list(self.authz_oidc_signing_algs.as_ref());
        if names.is_empty() {
            if given(self.authz_oidc_signing_algs.as_ref()).is_some() {
                problems.push(format!("{flag} names none"));
            }
            return vec![SigningAlgorithm::Rs256];
        }
        let names = names.into_iter();
        names.filter_map(|name| parsed(flag, name.parse(), problems)).collect()
    }

    /// What is wrong with them where another choice is made.
    pub(super) fn useless(&self) -> impl Iterator<Item = String> + use<> {
        let text = |text: &Option<String>| given(text.as_ref()).is_some();
        let flags = [
            ("issuer-url", text(&self.authz_oidc_issuer_url)),
            ("audiences", text(&self.authz_oidc_audiences)),
            ("username-claim", text(&self.authz_oidc_username_claim)),
            ("username-prefix", text(&self.authz_oidc_username_prefix)),
            ("groups-claim", text(&self.authz_oidc_groups_claim)),
            ("groups-prefix", text(&self.authz_oidc_groups_prefix)),
            ("required-claim", !self.authz_oidc_required_claim.is_empty()),
            ("signing-algs", text(&self.authz_oidc_signing_algs)),
            ("ca-file", self.authz_oidc_ca_file.is_some()),
            ("jwks-file", self.authz_oidc_jwks_file.is_some()),
            ("clock-leeway", self.authz_oidc_clock_leeway.is_some()),
            ("refresh-interval", self.authz_oidc_refresh_interval.is_some()),
            ("min-refresh-interval", self.authz_oidc_min_refresh_interval.is_some()),
            ("keys-max-age", self.authz_oidc_keys_max_age.is_some()),
        ];
        let flags = flags.into_iter().filter(|(_, given)| *given);
        flags.map(|(flag, _)| format!("--authz-oidc-{flag} needs {MODE}"))
    }
}

#[cfg(test)]
#[path = "oidc_tests.rs"]
mod tests;
