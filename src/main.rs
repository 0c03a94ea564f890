//! pcopy: parse, run, exit.

use std::process::ExitCode;

use clap::Parser;
use pcopy::cli::Cli;
use pcopy::config::Config;
use pcopy::tally::NOT_STARTED;

fn main() -> ExitCode {
    let status = Config::new(Cli::parse())
        .and_then(pcopy::run)
        .unwrap_or_else(|error| {
            eprintln!("pcopy: {error:#}");
            NOT_STARTED
        });
    // Not by returning: a thread that is stuck in a call must not hold the exit up.
    std::process::exit(status)
}
