//! pcopy: parse, run, exit.

use clap::Parser;
use pcopy::cli::Cli;
use pcopy::config::Config;

fn main() {
    let status = run().unwrap_or_else(|error| pcopy::report_fatal(&error));
    // Not by returning: a thread that is stuck in a system call must not delay the exit.
    std::process::exit(status)
}

fn run() -> anyhow::Result<i32> {
    pcopy::run(Config::new(Cli::try_parse()?)?)
}
