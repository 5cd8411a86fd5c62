//! `sandbox-sidecar`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox_sidecar::cli::main()
}
