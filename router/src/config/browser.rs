//! Credentials of browsers, as flags. Hides which of them make sense together.

use super::Authentication;
use super::spelling::unless_empty;
use crate::browser::{BrowserCredentials, Origin, SameSite, is_cookie_value};
use crate::routing::UrlRouting;
use clap::Args;

const NAME: &str = "--authz-cookie-name";
const PARAMETER: &str = "--authz-cookie-query-param";
const SAME_SITE: &str = "--authz-cookie-samesite";
const INSECURE: &str = "--authz-cookie-insecure";
const ORIGINS: &str = "--authz-cookie-allowed-origins";

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "each is the flag of that name")]
pub(super) struct BrowserFlags {
    /// Cookie that holds a browser's token where a URL leads to an app; empty for none. Tokens in Authorization count first,
    /// and those in --authz-cookie-query-param.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        help_heading = "Credentials of browsers"
    )]
    authz_cookie_name: String,
    /// Query parameter with a token, which the answer turns into the cookie; empty for none. The app doesn't get it, but the
    /// scripts of its page can read it: it is best a token for that sandbox alone.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        help_heading = "Credentials of browsers"
    )]
    authz_cookie_query_param: String,
    /// Whether a browser sends the cookie when a page of another site leads there (lax), when one asks in whatever way (none),
    /// or never for another site's page (strict) [default: lax].
    #[arg(long, value_enum, ignore_case = true, help_heading = "Credentials of browsers")]
    authz_cookie_samesite: Option<SameSite>,
    /// Have browsers send the cookie over plain HTTP, too, where whoever is in between can read it.
    #[arg(long, help_heading = "Credentials of browsers")]
    authz_cookie_insecure: bool,
    /// Comma-separated origins whose pages may change something with the cookie and open WebSockets, beside those of the host
    /// that is asked.
    #[arg(
        long,
        value_name = "ORIGINS",
        default_value = "",
        help_heading = "Credentials of browsers"
    )]
    authz_cookie_allowed_origins: String,
}

impl BrowserFlags {
    /// What the flags say, if there is a cookie.
    pub(super) fn credentials(
        &self,
        urls: Option<&UrlRouting>,
        authentication: Option<&Authentication>,
        problems: &mut Vec<String>,
    ) -> Option<BrowserCredentials> {
        if self.authz_cookie_name.is_empty() {
            let useless = self.given_beside_the_name().into_iter().filter(|(_, given)| *given);
            problems.extend(useless.map(|(flag, _)| format!("{flag} needs {NAME}")));
            return None;
        }
        let cookie = unless_empty(NAME, &self.authz_cookie_name, problems);
        let parameter = unless_empty(PARAMETER, &self.authz_cookie_query_param, problems);
        let credentials = BrowserCredentials {
            allowed_origins: self.origins(problems),
            cookie: cookie?,
            parameter,
            same_site: self.authz_cookie_samesite.unwrap_or_default(),
            secure: !self.authz_cookie_insecure,
        };
        problems.extend(contradictions(&credentials, urls));
        problems.extend(authentication.and_then(useless_with));
        Some(credentials)
    }

    fn given_beside_the_name(&self) -> [(&'static str, bool); 4] {
        [
            (PARAMETER, !self.authz_cookie_query_param.is_empty()),
            (SAME_SITE, self.authz_cookie_samesite.is_some()),
            (INSECURE, self.authz_cookie_insecure),
            (ORIGINS, !self.authz_cookie_allowed_origins.is_empty()),
        ]
    }

    fn origins(&self, problems: &mut Vec<String>) -> Vec<Origin> {
        let texts = self.authz_cookie_allowed_origins.split(',').map(str::trim);
        texts.filter_map(|text| unless_empty(ORIGINS, text, problems)).collect()
    }
}

/// What no browser would do, or would do for more than was meant.
fn contradictions(credentials: &BrowserCredentials, urls: Option<&UrlRouting>) -> Vec<String> {
    let BrowserCredentials {
        cookie,
        same_site,
        secure,
        ..
    } = credentials;
    let mut problems = Vec::new();
    let mut unless = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    unless(
        urls.is_some(),
        format!("{NAME} counts only where a URL leads to an app: set --host-routing-domain or --path-routing-prefix"),
    );
    unless(
        *secure || !cookie.is_bound_to_tls(),
        format!(
            "{NAME}: browsers take a cookie named {cookie} over TLS only: leave out {INSECURE}, or the name's prefix"
        ),
    );
    unless(
        urls.is_none_or(|urls| urls.path.is_none()) || !cookie.is_bound_to_host(),
        format!(
            "{NAME}: browsers take a cookie named {cookie} only for a whole host, and --path-routing-prefix has many apps on one: \
             leave out the name's prefix, or route by host alone"
        ),
    );
    unless(
        *secure || *same_site != SameSite::None,
        format!("{SAME_SITE}=none: browsers take such a cookie over TLS only: leave out {INSECURE}"),
    );
    problems
}

/// What is wrong with a cookie beside how callers are authenticated.
fn useless_with(authentication: &Authentication) -> Option<String> {
    match authentication {
        Authentication::AllowAll => Some(format!(
            "{NAME} is for tokens, and --authz-mode=allow-all asks for none"
        )),
        Authentication::StaticToken(token) if !is_cookie_value(token.as_bytes()) => Some(format!(
            "{NAME}: no cookie can hold the token that is set: it may have visible ASCII characters, but no quotes, commas, \
             semicolons and backslashes"
        )),
        _ => None,
    }
}

/// What operators should know of credentials that open more than they seem to.
pub(super) fn warnings(
    credentials: &BrowserCredentials,
    urls: &UrlRouting,
    authentication: &Authentication,
) -> Vec<String> {
    let by_host_alone = urls.path.is_none();
    let bound = !credentials.secure || credentials.cookie.is_bound_to_host();
    let scoped = matches!(authentication, Authentication::ScopedToken(_));
    let warnings = [
        (
            credentials.parameter.is_some() && !scoped,
            format!(
                "{PARAMETER}: the scripts of an app read the token that its address holds, and it opens more than that app"
            ),
        ),
        (
            by_host_alone && !bound,
            format!(
                "{NAME}: scripts of one sandbox can set that cookie for others; a name that starts with __Host- prevents it"
            ),
        ),
        (
            !credentials.secure,
            format!("{INSECURE}: whoever is between a browser and the router can read its token"),
        ),
    ];
    warnings
        .into_iter()
        .filter_map(|(holds, text)| holds.then_some(text))
        .collect()
}

#[cfg(test)]
#[path = "browser_tests.rs"]
mod tests;
