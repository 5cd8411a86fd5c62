//! What one caller and one sandbox may have, and when a host is taken for gone, as flags.

use crate::breaker::BreakerSettings;
use crate::limits::{Rate, RequestLimits, Share};
use clap::Args;
use sandgate_mesh::duration;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

/// The limits of callers and sandboxes.
#[derive(Debug, Args)]
pub(super) struct RequestLimitFlags {
    /// Requests per second of one caller, or, of callers without a name, of one address; 0 for no limit.
    #[arg(
        long,
        value_name = "REQUESTS",
        default_value_t = 0,
        help_heading = "Limits of callers and sandboxes"
    )]
    max_requests_per_second_per_caller: u32,
    /// Requests that a caller may send at once after a pause [default: those of one second].
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits of callers and sandboxes")]
    request_burst_per_caller: Option<NonZeroU32>,
    /// Requests of one caller that may be under way at once, upgraded connections included; 0 for no limit.
    #[arg(
        long,
        value_name = "REQUESTS",
        default_value_t = 0,
        help_heading = "Limits of callers and sandboxes"
    )]
    max_concurrent_requests_per_caller: usize,
    /// Requests per second to one sandbox, whoever calls; 0 for no limit.
    #[arg(
        long,
        value_name = "REQUESTS",
        default_value_t = 0,
        help_heading = "Limits of callers and sandboxes"
    )]
    max_requests_per_second_per_sandbox: u32,
    /// Requests that a sandbox may be sent at once after a pause [default: those of one second].
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits of callers and sandboxes")]
    request_burst_per_sandbox: Option<NonZeroU32>,
    /// Requests to one sandbox that may be under way at once, upgraded connections included; 0 for no limit.
    #[arg(
        long,
        value_name = "REQUESTS",
        default_value_t = 0,
        help_heading = "Limits of callers and sandboxes"
    )]
    max_concurrent_requests_per_sandbox: usize,
}

impl RequestLimitFlags {
    /// What they say.
    pub(super) fn limits(&self, problems: &mut Vec<String>) -> RequestLimits {
        RequestLimits {
            caller: share(
                "caller",
                self.max_requests_per_second_per_caller,
                self.request_burst_per_caller,
                self.max_concurrent_requests_per_caller,
                problems,
            ),
            sandbox: share(
                "sandbox",
                self.max_requests_per_second_per_sandbox,
                self.request_burst_per_sandbox,
                self.max_concurrent_requests_per_sandbox,
                problems,
            ),
        }
    }
}

fn share(
    whose: &str,
    per_second: u32,
    burst: Option<NonZeroU32>,
    concurrent: usize,
    problems: &mut Vec<String>,
) -> Option<Share> {
    let rate = NonZeroU32::new(per_second).map(|per_second| Rate {
        per_second,
        burst: burst.unwrap_or(per_second),
    });
    if rate.is_none() && burst.is_some() {
        problems.push(format!(
            "--request-burst-per-{whose} needs --max-requests-per-second-per-{whose}"
        ));
    }
    let concurrent = NonZeroUsize::new(concurrent);
    (rate.is_some() || concurrent.is_some()).then_some(Share { rate, concurrent })
}

/// When a host is taken for gone.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "each is the flag of that name")]
pub(super) struct BreakerFlags {
    /// Dials in a row that time out or find no host, after which requests to that host are refused at once for a moment; 0
    /// for never.
    #[arg(
        long,
        value_name = "DIALS",
        default_value_t = 5,
        help_heading = "Hosts that are gone"
    )]
    upstream_breaker_failures: u32,
    /// Within which time these dials must have failed.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse_above_zero, help_heading = "Hosts that are gone")]
    upstream_breaker_window: Duration,
    /// How long nobody dials that host then; afterwards one request does, and others are refused until it has found somebody.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse_above_zero, help_heading = "Hosts that are gone")]
    upstream_breaker_open_time: Duration,
}

impl BreakerFlags {
    /// What they say; `None`: never.
    pub(super) fn settings(&self) -> Option<BreakerSettings> {
        NonZeroU32::new(self.upstream_breaker_failures).map(|failures| BreakerSettings {
            failures,
            window: self.upstream_breaker_window,
            open_time: self.upstream_breaker_open_time,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError};
    use super::*;

    fn read(flags: &[&str]) -> Result<Config, ConfigError> {
        let flags = [&["--authz-mode=allow-all"], flags].concat();
        Config::from_args(flags.iter().map(Into::into).collect())
    }

    fn limits(flags: &[&str]) -> RequestLimits {
        read(flags).unwrap().request_limits
    }

    fn rate(per_second: u32, burst: u32) -> Option<Rate> {
        let (per_second, burst) = (NonZeroU32::new(per_second)?, NonZeroU32::new(burst)?);
        Some(Rate { per_second, burst })
    }

    #[test]
    fn nothing_is_limited_unless_somebody_says_so() {
        assert_eq!(limits(&[]), RequestLimits::default());
        let zeros = [
            "--max-requests-per-second-per-caller=0",
            "--max-concurrent-requests-per-caller=0",
            "--max-requests-per-second-per-sandbox=0",
            "--max-concurrent-requests-per-sandbox=0",
        ];
        assert_eq!(limits(&zeros), RequestLimits::default());
    }

    #[test]
    fn each_flag_sets_its_own_limit() {
        for (flags, expected) in [
            (
                &["--max-requests-per-second-per-WHOSE=7"][..],
                Share {
                    rate: rate(7, 7),
                    concurrent: None,
                },
            ),
            (
                &[
                    "--max-requests-per-second-per-WHOSE=7",
                    "--request-burst-per-WHOSE=20",
                    "--max-concurrent-requests-per-WHOSE=3",
                ],
                Share {
                    rate: rate(7, 20),
                    concurrent: NonZeroUsize::new(3),
                },
            ),
            (
                &["--max-concurrent-requests-per-WHOSE=1"],
                Share {
                    rate: None,
                    concurrent: NonZeroUsize::new(1),
                },
            ),
        ] {
            let of = |whose: &str| {
                let flags: Vec<_> = flags.iter().map(|flag| flag.replace("WHOSE", whose)).collect();
                limits(&flags.iter().map(String::as_str).collect::<Vec<_>>())
            };
            let (caller, sandbox) = (Some(expected), Some(expected));
            assert_eq!(of("caller"), RequestLimits { caller, sandbox: None });
            assert_eq!(of("sandbox"), RequestLimits { caller: None, sandbox });
        }
    }

    #[test]
    fn a_burst_without_a_rate_is_refused_for_each() {
        let error = read(&["--request-burst-per-caller=1", "--request-burst-per-sandbox=1"]).unwrap_err();
        for whose in ["caller", "sandbox"] {
            let expected = format!("--request-burst-per-{whose} needs --max-requests-per-second-per-{whose}");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }

    #[test]
    fn hosts_that_are_gone_are_remembered_unless_somebody_says_otherwise() {
        let breaker = |flags: &[&str]| read(flags).unwrap().breaker;
        let settings = |failures, window, open_time| {
            Some(BreakerSettings {
                failures: NonZeroU32::new(failures).unwrap(),
                window: Duration::from_secs(window),
                open_time: Duration::from_secs(open_time),
            })
        };
        assert_eq!(breaker(&[]), settings(5, 30, 2));
        let set = [
            "--upstream-breaker-failures=1",
            "--upstream-breaker-window=1m",
            "--upstream-breaker-open-time=10s",
        ];
        assert_eq!(breaker(&set), settings(1, 60, 10));
        assert_eq!(breaker(&["--upstream-breaker-failures=0"]), None);
        for never in ["--upstream-breaker-window=0s", "--upstream-breaker-open-time=0s"] {
            assert!(read(&[never]).is_err(), "{never}");
        }
    }
}
