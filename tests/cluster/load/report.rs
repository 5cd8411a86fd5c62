//! What a developer reads, and whether it is good enough.

use crate::rounds::Round;
use std::fmt;
use std::time::Duration;

/// The injector's p99 may be so much above the empty webhook's, in milliseconds: of the rounds the median.
const ADDED_MS: f64 = 10.0;
/// Where the empty webhook's own p99 is above that, other programs decide about both, and the difference says little.
const CALM_MS: f64 = 15.0;
/// Candidates, as in each pair.
const NAMES: [&str; 2] = ["empty", "injector"];

/// All rounds: of each pair the empty webhook's first.
pub(crate) struct Report {
    pub(crate) rate: u32,
    pub(crate) seconds: u32,
    pub(crate) pairs: Vec<[Round; 2]>,
    /// What the two spent on CPUs in all rounds.
    pub(crate) cpu: [Duration; 2],
    /// Of the injector: resident when warm, resident at the end, the most ever.
    pub(crate) memory: [u64; 3],
}

impl Report {
    /// Whether no creation failed. How long they took is for a reader to judge: other programs have a part in it.
    pub(crate) fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    fn calm(&self) -> bool {
        let empty = self.pairs.iter().map(|[empty, _]| milliseconds(empty.quantile(0.99)));
        median(empty.collect()) <= CALM_MS
    }

    fn failures(&self) -> impl Iterator<Item = &str> {
        let rounds = self.pairs.iter().flatten();
        rounds.flat_map(|round| round.failures.iter().map(String::as_str))
    }

    /// CPU time of each of the two for one review, in microseconds: of all figures the one that a busy machine changes least.
    fn review_cpu(&self) -> [f64; 2] {
        let reviews = |which: usize| self.pairs.iter().map(|pair| pair[which].calls.count).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
        let of = |which: usize| self.cpu[which].as_secs_f64() * 1e6 / reviews(which) as f64;
        [of(0), of(1)]
    }

    /// The median over the rounds of what the injector adds, in milliseconds.
    fn added(&self, share: f64) -> f64 {
        let added = self.pairs.iter().map(|[empty, injector]| {
            let [empty, injector] = [empty, injector].map(|round| milliseconds(round.quantile(share)));
            injector - empty
        });
        median(added.collect())
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        values[half]
    } else {
        f64::midpoint(values[half - 1], values[half])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, seconds, .. } = self;
        writeln!(
            f,
            "{rate} creations a second for {seconds} s a round; each is two webhook calls\n\n\
             round  webhook     creation, ms: p50     p99     max   call, ms: mean   5 ms at most"
        )?;
        for (number, pair) in self.pairs.iter().enumerate() {
            for (name, round) in NAMES.iter().zip(pair) {
                let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| milliseconds(round.quantile(share)));
                let calls = round.calls;
                #[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
                let (mean, fast) = (
                    calls.seconds * 1e3 / calls.count as f64,
                    calls.fast as f64 * 100.0 / calls.count as f64,
                );
                writeln!(
                    f,
                    "{:>5}  {name:<10} {p50:>17.2} {p99:>7.2} {max:>7.2} {mean:>16.2} {fast:>13.2} %",
                    number + 1
                )?;
            }
        }
        let [warm, end, most] = self.memory.map(|bytes| bytes >> 10);
        let made: usize = self.pairs.iter().flatten().map(|round| round.took.len()).sum();
        let failed = self.failures().count();
        let [empty, injector] = self.review_cpu();
        writeln!(
            f,
            "\nadded by the injector, median of {} rounds: p50 {:+.2} ms, p99 {:+.2} ms (target: {ADDED_MS} ms, {})\n\
             CPU time of one review: empty {empty:.0} us, injector {injector:.0} us\n\
             the injector's memory: {warm} KiB warm, {end} KiB at the end, {most} KiB at most\n\
             {failed} of {made} creations failed",
            self.pairs.len(),
            self.added(0.5),
            self.added(0.99),
            if self.added(0.99) <= ADDED_MS { "met" } else { "MISSED" },
        )?;
        if !self.calm() {
            writeln!(
                f,
                "this machine is busy with other things: the empty webhook's own p99 is above {CALM_MS} ms"
            )?;
        }
        self.failures()
            .take(3)
            .try_for_each(|reason| writeln!(f, "    {reason}"))
    }
}
