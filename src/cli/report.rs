//! Options for what a run reports, and where: to programs, to a log, to the next run.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// Options about reports.
#[derive(Debug, Default, Args)]
pub struct Report {
    /// Print one JSON object a line on stdout instead of text
    ///
    /// An entry for each line of -v or -n, each error and warning, progress once a second with
    /// --progress=always, and the summary last. The manual has the fields. Stderr stays as it is,
    /// without a bar.
    #[arg(long)]
    pub json: bool,

    /// Append each message to FILE, with time and worker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log_file: Option<PathBuf>,

    /// List in FILE what failed, for --files-from FILE -0
    ///
    /// The paths are relative to SRC and end in NUL. With several SRC each path begins with the name
    /// of its SRC. FILE is replaced when the run ends, and is empty if nothing failed.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub failed_to: Option<PathBuf>,
}
