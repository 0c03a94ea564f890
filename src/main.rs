//! pcopy: parse, run, exit.

use pcopy::cli::Cli;
use pcopy::config::Config;
use pcopy::manual;

fn main() {
    let status = run().unwrap_or_else(|error| pcopy::report_fatal(&error));
    // Not by returning: a thread that is stuck in a system call must not delay the exit.
    std::process::exit(status)
}

fn run() -> anyhow::Result<i32> {
    let cli = Cli::read()?;
    match cli.generate {
        Some(what) => manual::print(what),
        None => pcopy::run(Config::new(cli)?),
    }
}
