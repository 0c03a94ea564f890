//! What a run reports, and where.

use std::path::PathBuf;

use crate::cli::report::Report as Options;

/// Reports besides the text on stdout and stderr.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Stdout carries JSON.
    pub json: bool,
    /// Each message is appended to this file.
    pub log_file: Option<PathBuf>,
    /// What failed is listed in this file.
    pub failed_to: Option<PathBuf>,
}

impl Report {
    pub(super) fn new(options: Options) -> Self {
        let Options {
            json,
            log_file,
            failed_to,
        } = options;
        Self {
            json,
            log_file,
            failed_to,
        }
    }
}
