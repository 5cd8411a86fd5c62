//! What a developer reads, and whether it is good enough.

use super::rounds::Round;
use std::fmt;
use std::time::Duration;

/// The injector's p99 may be so much above the empty webhook's, in milliseconds: of the rounds the median.
const ADDED_MS: f64 = 10.0;
/// Where the empty webhook's own p99 is above that, other programs decide about both, and the difference says little.
const CALM_MS: f64 = 15.0;
/// Candidates, as in each round.
const NAMES: [&str; 3] = ["empty", "same patch", "injector"];

/// All rounds of each candidate.
pub(crate) struct Report {
    pub(crate) rate: u32,
    pub(crate) seconds: u32,
    pub(crate) rounds: Vec<[Round; 3]>,
    /// What the three spent on CPUs in all rounds.
    pub(crate) cpu: [Duration; 3],
    /// Of the injector: resident when warm, resident at the end, the most ever.
    pub(crate) memory: [u64; 3],
}

impl Report {
    /// Whether no creation failed. How long they took is for a reader to judge: other programs have a part in it.
    pub(crate) fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    fn calm(&self) -> bool {
        let empty = self.rounds.iter().map(|[empty, ..]| milliseconds(empty.quantile(0.99)));
        median(empty.collect()) <= CALM_MS
    }

    fn failures(&self) -> impl Iterator<Item = &str> {
        let rounds = self.rounds.iter().flatten();
        rounds.flat_map(|round| round.failures.iter().map(String::as_str))
    }

    /// CPU time of each of the three for one review, in microseconds: of all figures the one that a busy machine changes least.
    fn review_cpu(&self) -> [f64; 3] {
        let reviews = |which: usize| self.rounds.iter().map(|round| round[which].calls.count).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
        let of = |which: usize| self.cpu[which].as_secs_f64() * 1e6 / reviews(which) as f64;
        [0, 1, 2].map(of)
    }

    /// The median over the rounds of what a candidate adds to the empty webhook, in milliseconds.
    fn added(&self, which: usize, share: f64) -> f64 {
        let added = self.rounds.iter().map(|round| {
            let [empty, other] = [0, which].map(|which| milliseconds(round[which].quantile(share)));
            other - empty
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
        for (number, rounds) in self.rounds.iter().enumerate() {
            for (name, round) in NAMES.iter().zip(rounds) {
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
        let made: usize = self.rounds.iter().flatten().map(|round| round.took.len()).sum();
        let failed = self.failures().count();
        let [empty, patching, injector] = self.review_cpu();
        writeln!(
            f,
            "\nadded to the empty webhook, median of {} rounds:\n\
             \x20   by the injector: p50 {:+.2} ms, p99 {:+.2} ms (target: {ADDED_MS} ms, {})\n\
             \x20   by its patch alone, which is the API server's work: p50 {:+.2} ms, p99 {:+.2} ms\n\
             CPU time of one review: empty {empty:.0} us, same patch {patching:.0} us, injector {injector:.0} us\n\
             the injector's memory: {warm} KiB warm, {end} KiB at the end, {most} KiB at most\n\
             {failed} of {made} creations failed",
            self.rounds.len(),
            self.added(2, 0.5),
            self.added(2, 0.99),
            if self.added(2, 0.99) <= ADDED_MS {
                "met"
            } else {
                "MISSED"
            },
            self.added(1, 0.5),
            self.added(1, 0.99),
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
