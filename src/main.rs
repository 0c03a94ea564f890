//! pcopy: parse, run, exit.

use pcopy::cli::Cli;
use pcopy::config::Config;
use pcopy::manual;

fn main() {
    let status = run().unwrap_or_else(|error| pcopy::report_fatal(&error));
    // Exits at once: a thread that hangs in a system call cannot be joined.
    std::process::exit(status)
}

fn run() -> anyhow::Result<i32> {
    let cli = Cli::read()?;
    match cli.generate {
        Some(what) => manual::print(what),
        None => pcopy::run(Config::new(cli)?),
    }
}
