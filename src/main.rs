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
            // Where stderr is closed or full there is nobody to tell; the exit status tells.
            let _ = writeln!(std::io::stderr(), "pcopy: {error:#}");
            NOT_STARTED
        });
    // Not by returning: a thread that is stuck in a call must not hold the exit up.
    std::process::exit(status)
}
