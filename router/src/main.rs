//! `sandbox-router`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox_router::cli::main()
}
