//! Lockdown in real network namespaces, and other drills that take privileges. `tests/netns/run` starts this where it may make them. These are no cargo tests:
//! `cargo test --workspace` needs no privileges, and a test that passes because it did nothing is worse than none.

// Tests fail by panicking, and what this prints is read at a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attacks;
mod network;
mod promises;
mod theft;

use network::Network;
use std::panic::catch_unwind;
use std::process::ExitCode;

/// A test gets a network of its own and fails by panicking.
type Test = (&'static str, fn(&Network));

/// Names tests by their functions.
macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn(&$crate::network::Network))),*] };
}
use tests;

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let all = [promises::TESTS, attacks::TESTS, theft::TESTS].concat();
    if let Some(part) = parts
        .iter()
        .find(|part| !all.iter().any(|(name, _)| name.contains(part.as_str())))
    {
        eprintln!("no test's name holds {part:?}; there are:");
        for (name, _) in all {
            eprintln!("  {name}");
        }
        return ExitCode::from(2);
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in all {
        if !parts.is_empty() && !parts.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let good = catch_unwind(|| test(&Network::new())).is_ok();
        println!("{} {name}", if good { "ok    " } else { "FAILED" });
        if good { passed += 1 } else { failed += 1 }
    }
    println!("\n{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}
