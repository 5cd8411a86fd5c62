//! Flags -> [`Limits`], the same at both programs.

use super::Limits;
use crate::duration;
use clap::Args;
use std::time::Duration;

/// The limits that an operator may set.
#[derive(Debug, Clone, Args)]
pub struct LimitFlags {
    /// Longest head of a request in bytes; a longer one is 431. An upstream's answer with a longer one is 502.
    #[arg(long, default_value_t = Limits::default().head_bytes)]
    max_request_head_bytes: usize,
    /// Most header lines of a request; more are 431. An upstream's answer with more is 502.
    #[arg(long, default_value_t = Limits::default().headers)]
    max_request_headers: usize,
    /// Longest target of a request in bytes; a longer one is 414.
    #[arg(long, default_value_t = Limits::default().target_bytes)]
    max_request_target_bytes: usize,
    /// Time for a request's head, from its first byte to its last; a slower one is 408.
    #[arg(long, default_value = "10s", value_parser = duration::parse)]
    request_head_timeout: Duration,
    /// A connection on which no request began for this long, or whose peer took nothing of an answer for this long, is
    /// closed; it may last up to twice as long.
    #[arg(long, default_value = "180s", value_parser = duration::parse)]
    idle_timeout: Duration,
}

impl LimitFlags {
    /// These limits. What is wrong with them, [`Limits::problems`] says.
    pub fn limits(&self) -> Limits {
        Limits {
            head_bytes: self.max_request_head_bytes,
            headers: self.max_request_headers,
            target_bytes: self.max_request_target_bytes,
            head_time: self.request_head_timeout,
            idle_time: self.idle_timeout,
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Flags {
        #[command(flatten)]
        framing: LimitFlags,
    }

    fn limits(flags: &[&str]) -> Limits {
        Flags::try_parse_from(flags).unwrap().framing.limits()
    }

    #[test]
    fn caps_are_what_the_flags_say_and_the_shared_defaults_otherwise() {
        assert_eq!(format!("{:?}", limits(&[])), format!("{:?}", Limits::default()));
        let found = limits(&[
            "--max-request-head-bytes=2048",
            "--max-request-headers=7",
            "--max-request-target-bytes=99",
            "--request-head-timeout=1s",
            "--idle-timeout=1m",
        ]);
        assert_eq!((found.head_bytes, found.headers, found.target_bytes), (2048, 7, 99));
        assert_eq!((found.head_time.as_secs(), found.idle_time.as_secs()), (1, 60));
    }

    #[test]
    fn caps_that_bound_nothing_or_everything_are_problems() {
        for flag in [
            "--max-request-head-bytes=1023",
            "--max-request-head-bytes=1048577",
            "--max-request-headers=0",
            "--max-request-headers=10001",
            "--max-request-target-bytes=0",
            "--max-request-target-bytes=65535",
            "--request-head-timeout=0",
            "--request-head-timeout=25h",
            "--idle-timeout=0",
            "--idle-timeout=25h",
        ] {
            let problems = limits(&[flag]).problems();
            let name = flag.split('=').next().unwrap();
            assert!(
                matches!(&*problems, [problem] if problem.starts_with(name)),
                "{problems:?}"
            );
        }
    }
}
