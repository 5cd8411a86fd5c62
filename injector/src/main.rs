//! `sandbox-injector`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox_injector::cli::main()
}
