//! Which requests are traced, as OpenTelemetry's samplers decide it
//! (<https://opentelemetry.io/docs/specs/otel/trace/sdk/#sampling>).

use sandgate_mesh::trace_context::{TraceId, TraceParent};

/// Of which traces spans are recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whether a client that has decided decides for the router.
    parent_based: bool,
    otherwise: Choice,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Choice {
    All,
    None,
    /// Those whose ID is below, among all of 63 bits: the same ones at every service with the same ratio.
    Below(u64),
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            parent_based: true,
            otherwise: Choice::All,
        }
    }
}

impl Sampler {
    /// The sampler of that name, with its argument. Each may be empty.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(name: &str, argument: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Ok(Self::default());
        }
        let (parent_based, choice) = match name.strip_prefix("parentbased_") {
            Some(choice) => (true, choice),
            None => (false, name),
        };
        let otherwise = match choice {
            "always_on" => Choice::All,
            "always_off" => Choice::None,
            "traceidratio" => Choice::Below(ratio(argument)?),
            _ => {
                return Err(format!(
                    "--otel-traces-sampler (OTEL_TRACES_SAMPLER): {name:?} is not supported; write always_on, always_off or traceidratio, or one of them \
                     behind parentbased_"
                ));
            }
        };
        Ok(Self {
            parent_based,
            otherwise,
        })
    }

    /// Whether the span of a request is recorded that was sent in `parent`, or else begins `trace`.
    pub(crate) fn samples(self, parent: Option<&TraceParent>, trace: TraceId) -> bool {
        match (parent, self.otherwise) {
            (Some(parent), _) if self.parent_based => parent.sampled,
            (_, Choice::All) => true,
            (_, Choice::None) => false,
            (_, Choice::Below(bound)) => {
                let [_, _, _, _, _, _, _, _, low @ ..] = trace.to_bytes();
                u64::from_be_bytes(low) >> 1 < bound
            }
        }
    }
}

/// A ratio of the whole, as a number below it.
fn ratio(text: &str) -> Result<u64, String> {
    const WHOLE: f64 = 9_223_372_036_854_775_808.0;
    let ratio: f64 = if text.is_empty() {
        1.0
    } else {
        text.parse().unwrap_or(f64::NAN)
    };
    if !(0.0..=1.0).contains(&ratio) {
        return Err(format!(
            "--otel-traces-sampler-arg (OTEL_TRACES_SAMPLER_ARG): {text:?} is no number from 0 to 1"
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is from 0 to 2^63"
    )]
    let bound = (ratio * WHOLE) as u64;
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(name: &str, argument: &str, parent: Option<bool>) -> usize {
        let sampler = Sampler::parse(name, argument).unwrap();
        let is_kept = |_: &usize| {
            let parent = parent.map(TraceParent::root);
            let trace = parent.unwrap_or_else(|| TraceParent::root(false)).trace;
            sampler.samples(parent.as_ref(), trace)
        };
        (0..10_000).filter(is_kept).count()
    }

    #[test]
    fn samplers_decide_as_they_are_named() {
        for (name, argument, alone, below_sampled, below_other) in [
            ("", "", 10_000, 10_000, 0),
            ("always_on", "", 10_000, 10_000, 10_000),
            ("always_off", "", 0, 0, 0),
            ("traceidratio", "", 10_000, 10_000, 10_000),
            ("traceidratio", "0", 0, 0, 0),
            ("parentbased_always_on", "", 10_000, 10_000, 0),
            ("parentbased_always_off", "", 0, 10_000, 0),
            ("parentbased_traceidratio", "0.0", 0, 10_000, 0),
        ] {
            let found = [None, Some(true), Some(false)].map(|parent| sampled(name, argument, parent));
            assert_eq!(found, [alone, below_sampled, below_other], "{name} {argument}");
        }
    }

    #[test]
    fn a_ratio_is_kept_roughly() {
        let kept = sampled("traceidratio", "0.25", None);
        assert!((2_000..3_000).contains(&kept), "{kept}");
    }

    #[test]
    fn a_sampler_that_is_none_is_refused() {
        for (name, argument) in [
            ("jaeger_remote", ""),
            ("parentbased_", ""),
            ("ALWAYS_ON", ""),
            ("traceidratio", "2"),
            ("traceidratio", "-0.1"),
            ("traceidratio", "NaN"),
            ("traceidratio", "half"),
        ] {
            assert!(Sampler::parse(name, argument).is_err(), "{name} {argument}");
        }
    }
}
