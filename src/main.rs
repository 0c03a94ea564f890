//! pcopy: parse, run, exit.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use pcopy::NOT_STARTED;
use pcopy::cli::Cli;
use pcopy::config::Config;

fn main() -> ExitCode {
    let status = Config::new(Cli::parse())
        .and_then(pcopy::run)
        .unwrap_or_else(|error| {
            // If stderr is closed or full, the exit status must be enough.
            let _ = writeln!(std::io::stderr(), "pcopy: {error:#}");
            NOT_STARTED
        });
    // Not by returning: a thread that is stuck in a system call must not delay the exit.
    std::process::exit(status)
}
