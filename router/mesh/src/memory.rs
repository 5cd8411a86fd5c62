//! A memory budget for the whole process: above it, new requests are shed before the kernel ends everybody's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Share of a container's limit that may be used, in percent.
const SHARE_PERCENT: u64 = 80;
/// How often the process looks at its own size.
const PERIOD: Duration = Duration::from_millis(100);
/// Page size of every platform this is built for with 4 KiB pages; others only shed earlier or later.
const PAGE: u64 = 4096;

/// Whether the process is over its budget.
#[derive(Debug, Clone, Default)]
pub struct MemoryBudget(Arc<AtomicBool>);

impl MemoryBudget {
    /// Whether new requests should be answered with 503.
    pub fn is_exhausted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Watches the process's resident size against `limit` bytes for as long as it runs.
    pub async fn watch(self, limit: u64) {
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tick.tick().await;
            let over = resident_bytes().is_some_and(|bytes| bytes > limit);
            if over != self.0.swap(over, Ordering::Relaxed) {
                tracing::warn!(limit_bytes = limit, shedding = over, "memory budget");
            }
        }
    }
}

/// 80 % of the memory limit that the container gave this process (cgroup v2 or v1), or `None` without a limit.
pub fn container_budget() -> Option<u64> {
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| read_limit(Path::new(path)))
    .map(|limit| limit / 100 * SHARE_PERCENT)
}

fn read_limit(path: &Path) -> Option<u64> {
    let limit: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    // cgroup v1 spells "none" as a number near 2^63.
    (limit < 1 << 62).then_some(limit)
}

/// This process's resident set size in bytes, from `/proc/self/statm`.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_over_its_budget_sheds_and_recovers() {
        let budget = MemoryBudget::default();
        assert!(!budget.is_exhausted());
        let watch = tokio::spawn(budget.clone().watch(1));
        while !budget.is_exhausted() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        watch.abort();
        let watch = tokio::spawn(budget.clone().watch(u64::MAX));
        while budget.is_exhausted() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        watch.abort();
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let folder = std::env::temp_dir().join(format!("sandgate-memory-{}", std::process::id()));
        for (text, limit) in [
            ("67108864\n", Some(67_108_864)),
            ("max\n", None),
            ("9223372036854771712\n", None),
        ] {
            std::fs::write(&folder, text).unwrap();
            assert_eq!(read_limit(&folder), limit, "{text}");
        }
        std::fs::remove_file(&folder).unwrap();
    }
}
