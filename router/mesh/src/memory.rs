//! A memory budget for the whole process: above it, new requests are shed before the kernel ends everybody's.
//!
//! What counts is what is allocated, not the resident size: allocators keep freed memory, and a process that looked at
//! its pages would shed for ever after one burst.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Share of a container's limit that may be used, in percent.
const SHARE_PERCENT: u64 = 80;
/// How often the process looks at its own size.
const PERIOD: Duration = Duration::from_millis(100);

/// Says how many bytes the process has allocated now. Only a program can: it owns the allocator.
pub type Allocated = fn() -> usize;

/// Whether the process is over its budget.
#[derive(Debug, Clone, Default)]
pub struct MemoryBudget(Arc<AtomicBool>);

impl MemoryBudget {
    /// Whether new requests should be answered with 503.
    pub fn is_exhausted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Watches what is `allocated` against `limit` bytes for as long as the process runs.
    pub async fn watch(self, limit: u64, allocated: impl Fn() -> usize) {
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tick.tick().await;
            let over = u64::try_from(allocated()).is_ok_and(|bytes| bytes > limit);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(start_paused = true)]
    async fn a_process_over_its_budget_sheds_until_what_it_holds_is_freed() {
        let (budget, held) = (MemoryBudget::default(), Arc::new(AtomicUsize::new(100)));
        let reader = Arc::clone(&held);
        let _watch = tokio::spawn(budget.clone().watch(100, move || reader.load(Ordering::Relaxed)));
        for (bytes, shedding) in [(100, false), (101, true), (100, false), (usize::MAX, true), (0, false)] {
            held.store(bytes, Ordering::Relaxed);
            tokio::time::sleep(PERIOD * 2).await;
            assert_eq!(budget.is_exhausted(), shedding, "{bytes}");
        }
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
