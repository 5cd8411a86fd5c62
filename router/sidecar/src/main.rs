//! `sandbox-sidecar`: see the library.

use cap::Cap;
use std::alloc::System;
use std::process::ExitCode;

/// Counts, and limits nothing: what is over the budget is for the gate to refuse, request by request.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

fn main() -> ExitCode {
    sandbox_sidecar::cli::main(|| ALLOCATOR.allocated())
}
