//! The `dosguard` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    dosguard::cli::main()
}
