//! What a developer reads, and whether it is good enough.

use super::LOOK;
use super::requests::Requests;
use sandgate_cluster_tests::process::Process;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// All gates are to have an identity within this time.
const TARGET: Duration = Duration::from_secs(60);
/// Nobody waits longer for a phase.
const PATIENCE: Duration = Duration::from_secs(600);
/// Visits, by how they ended.
const VISITS: &str = "sandgate_injector_enrolments_total{";

/// A phase: what was done to each gate once.
pub(crate) struct Phase {
    /// When the first gate had it, and the last, since the injector was started.
    pub(crate) times: [Duration; 2],
    /// How many had it in the end: all, or time was up.
    pub(crate) gates: usize,
    /// What the injector spent on CPUs meanwhile.
    pub(crate) cpu: Duration,
}

impl Phase {
    /// Watches until that was done to so many gates.
    pub(crate) async fn measure(injector: &Process, reason: &str, gates: usize, started: Instant) -> Self {
        let (cpu, began) = (injector.cpu_time(), Instant::now());
        let mut phase = Self {
            times: [Duration::ZERO; 2],
            gates: 0,
            cpu: Duration::ZERO,
        };
        let series = format!("{VISITS}outcome=\"ok\",reason=\"{reason}\"}} ");
        while phase.gates < gates && began.elapsed() < PATIENCE {
            tokio::time::sleep(LOOK).await;
            let metrics = injector.metrics().await;
            let found = metrics
                .lines()
                .find_map(|line| line.strip_prefix(&series)?.parse().ok());
            let found: usize = found.unwrap_or_default();
            if phase.gates == 0 && found > 0 {
                phase.times[0] = started.elapsed();
            }
            phase.gates = found;
        }
        phase.times[1] = started.elapsed();
        phase.cpu = injector.cpu_time().saturating_sub(cpu);
        phase
    }
}

/// Visits that came to nothing, as the injector counts them.
pub(crate) fn troubles(metrics: &str) -> Vec<String> {
    let visits = metrics.lines().filter_map(|line| line.strip_prefix(VISITS));
    let troubles = visits.filter(|visit| !visit.starts_with("outcome=\"ok\"") && !visit.ends_with(" 0"));
    troubles.map(str::to_owned).collect()
}

/// What came of it.
pub(crate) struct Report {
    pub(crate) gates: usize,
    pub(crate) namespaces: usize,
    pub(crate) lifetime: Duration,
    /// Enrolment and renewal, with what the API server was asked meanwhile.
    pub(crate) phases: [(Phase, Requests); 2],
    /// Of the injector: resident, and the most ever, after each of the two.
    pub(crate) memory: [u64; 4],
    pub(crate) troubles: Vec<String>,
    /// Gates that are ready in the end.
    pub(crate) ready: usize,
}

impl Report {
    /// Whether every gate was enrolled, renewed and ready. How long that took is for a reader to judge: other programs have
    /// a part in it.
    pub(crate) fn passed(&self) -> bool {
        let done = self.phases.iter().all(|(phase, _)| phase.gates >= self.gates);
        done && self.ready == self.gates
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gates, namespaces, .. } = self;
        writeln!(
            f,
            "{gates} gates in {namespaces} namespaces, certificates of {} s; times since the injector was started\n",
            self.lifetime.as_secs()
        )?;
        for (what, (phase, asked)) in ["enrolled", "renewed"].iter().zip(&self.phases) {
            let [first, last] = phase.times.map(|time| time.as_secs_f64());
            #[expect(clippy::cast_precision_loss, reason = "a count of thousands")]
            let each = phase.cpu.as_secs_f64() * 1e3 / phase.gates.max(1) as f64;
            writeln!(
                f,
                "{what:<9} {:>6} gates   first after {first:>6.1} s, last after {last:>6.1} s   CPU {:>6.1} s, {each:.1} ms each\n\
                 {:10}API requests for each: {}",
                phase.gates,
                phase.cpu.as_secs_f64(),
                "",
                asked.for_each(self.gates),
            )?;
        }
        let [enrolled, most_enrolled, renewed, most] = self.memory.map(|bytes| bytes >> 10);
        let verdict = if self.phases[0].0.times[1] <= TARGET {
            "met"
        } else {
            "MISSED"
        };
        writeln!(
            f,
            "\nall enrolled within {} s: {verdict}\n\
             the injector's memory: {enrolled} KiB when all were enrolled ({most_enrolled} at most), {renewed} KiB when all \
             were renewed ({most} at most)\n\
             {} of {gates} gates are ready in the end",
            TARGET.as_secs(),
            self.ready,
        )?;
        let troubles = self.troubles.iter();
        troubles
            .into_iter()
            .try_for_each(|trouble| writeln!(f, "visits that came to nothing: {trouble}"))
    }
}
