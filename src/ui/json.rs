//! The objects of `--json`: one on each line of stdout. The manual has the fields.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::message::{About, MessageKind};
use super::paths::Side;
use super::progress::{Figures, Precision};
use super::summary::Summary;
use crate::config::Config;
use crate::fs::errno::errno_name;
use crate::protocol::Line;

/// Grows when a field is removed or gets another meaning. New fields may come at any time.
const SCHEMA_VERSION: u32 = 1;

/// One line.
#[derive(Debug, Serialize)]
#[serde(tag = "message_type", rename_all = "snake_case")]
pub(super) enum Object<'a> {
    Entry {
        action: &'a str,
        reason: &'a str,
        #[serde(flatten)]
        path: Path<'a>,
        size: Option<u64>,
        worker: &'a str,
    },
    Error {
        #[serde(flatten)]
        path: Path<'a>,
        step: Option<String>,
        errno: Option<i32>,
        errno_name: Option<&'a str>,
        text: &'a str,
        worker: Option<&'a str>,
    },
    Warning {
        #[serde(flatten)]
        path: Path<'a>,
        text: &'a str,
        worker: Option<&'a str>,
    },
    Note {
        #[serde(flatten)]
        path: Path<'a>,
        text: &'a str,
        worker: Option<&'a str>,
    },
    Progress {
        seconds: f64,
        percent: Option<u8>,
        files_done: u64,
        files_total: u64,
        bytes_done: u64,
        bytes_total: u64,
        /// Of the totals.
        precision: &'a str,
        bytes_per_second: Option<u64>,
        seconds_left: Option<u64>,
        failed: u64,
        workers: usize,
    },
    Summary {
        schema_version: u32,
        #[serde(flatten)]
        path: Path<'a>,
        dry_run: bool,
        exit_status: i32,
        stopped_by: Option<&'a str>,
        signal: Option<i32>,
        files_found: u64,
        files_copied: u64,
        files_unchanged: u64,
        files_skipped: u64,
        files_deleted: u64,
        files_not_tried: u64,
        failed: u64,
        failed_moved: u64,
        bytes_copied: u64,
        seconds: f64,
        bytes_per_second: u64,
        workers: usize,
        workers_replaced: u64,
        workers_left_behind: u64,
    },
}

/// A path: lossy if it is no UTF-8, with its bytes beside it.
#[derive(Debug, Serialize)]
pub(super) struct Path<'a> {
    path: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
}

impl<'a> Path<'a> {
    fn new(path: Option<&'a [u8]>) -> Self {
        let lossy = path.map(String::from_utf8_lossy);
        let is_lossy = matches!(lossy, Some(Cow::Owned(_)));
        Self {
            path_bytes: path.filter(|_| is_lossy).map(|it| STANDARD.encode(it)),
            path: lossy,
        }
    }
}

impl<'a> Object<'a> {
    pub(super) fn entry(path: &'a [u8], line: &Line, worker: &'a str) -> Self {
        let (action, reason) = line.decision.plan();
        Self::Entry {
            action,
            reason,
            path: Path::new(Some(path)),
            size: line.size,
            worker: bare(worker),
        }
    }

    /// An entry that a filter leaves out, and the rule that decided.
    pub(super) fn excluded(path: &'a [u8], by: &'a str) -> Self {
        Self::Entry {
            action: "exclude",
            reason: by,
            path: Path::new(Some(path)),
            size: None,
            worker: "",
        }
    }

    pub(super) fn message(kind: MessageKind, text: &'a str, about: &About<'a>) -> Self {
        let path = Path::new(about.path);
        let worker = about.worker.map(bare);
        match kind {
            MessageKind::Error => Self::Error {
                path,
                step: about.step.map(|step| step.to_string()),
                errno: about.errno,
                errno_name: about.errno.and_then(errno_name),
                text,
                worker,
            },
            MessageKind::Warning => Self::Warning { path, text, worker },
            MessageKind::Note => Self::Note { path, text, worker },
        }
    }

    pub(super) fn progress(figures: &Figures, elapsed: Duration) -> Self {
        Self::Progress {
            seconds: seconds(elapsed),
            percent: figures.percent,
            files_done: figures.files_done,
            files_total: figures.files,
            bytes_done: figures.bytes_done,
            bytes_total: figures.bytes,
            precision: match figures.precision {
                Precision::Exact => "exact",
                Precision::About => "about",
                Precision::AtLeast => "at_least",
            },
            bytes_per_second: figures.rate,
            seconds_left: figures.time_left.map(|left| left.as_secs()),
            failed: figures.failed,
            workers: figures.workers,
        }
    }

    pub(super) fn summary(
        summary: &Summary,
        destination: &'a [u8],
        elapsed: Duration,
        config: &Config,
    ) -> Self {
        let counts = &summary.counts;
        let rate = counts.bytes as f64 / elapsed.as_secs_f64().max(1e-3);
        Self::Summary {
            schema_version: SCHEMA_VERSION,
            path: Path::new(Some(destination)),
            dry_run: config.dry_run,
            exit_status: summary.exit_status(config.contents.exit_code),
            stopped_by: stopped_by(summary),
            signal: summary.signal,
            files_found: counts.found,
            files_copied: counts.copied,
            files_unchanged: counts.unchanged,
            files_skipped: counts.skipped,
            files_deleted: counts.deleted,
            files_not_tried: summary.not_tried(),
            failed: summary.failed,
            failed_moved: summary.moved,
            bytes_copied: counts.bytes,
            seconds: seconds(elapsed),
            bytes_per_second: rate as u64,
            workers: summary.workers,
            workers_replaced: summary.replaced,
            workers_left_behind: summary.left_behind,
        }
    }

    /// Returns the object as one line.
    pub(super) fn line(&self) -> String {
        // Strings, numbers and structures with fixed names cannot fail.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

fn stopped_by(summary: &Summary) -> Option<&'static str> {
    if summary.signal.is_some() {
        return Some("signal");
    }
    if summary.is_full {
        return Some("destination_full");
    }
    if let Some(side) = summary.gone {
        return Some(match side {
            Side::Source => "source_gone",
            Side::Destination => "destination_gone",
        });
    }
    if summary.has_no_workers {
        return Some("no_workers");
    }
    summary.is_out_of_time().then_some("time_limit")
}

/// Removes the brackets of a worker's label.
fn bare(label: &str) -> &str {
    label.trim_start_matches('[').trim_end_matches(']')
}

/// Returns seconds with three decimals.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::entry::Decision;
    use crate::protocol::error::{Reason, Step};

    #[test]
    fn a_name_that_is_no_utf8_has_its_bytes_beside_it() {
        let line = Line {
            name: None,
            decision: Decision::Create,
            size: Some(7),
            items: None,
        };
        let text = Object::entry(b"src/caf\xe9\n\"", &line, "[pid 12]").line();
        assert_eq!(
            text,
            "{\"message_type\":\"entry\",\"action\":\"copy\",\"reason\":\"new\",\"path\":\"src/caf\u{fffd}\\n\\\"\",\
             \"path_bytes\":\"c3JjL2NhZukKIg==\",\"size\":7,\"worker\":\"pid 12\"}\n"
        );
        let text = Object::entry("é".as_bytes(), &line, "[thread 1]").line();
        assert!(!text.contains("path_bytes"), "{text}");
    }

    #[test]
    fn an_error_has_step_and_errno() {
        let about = About {
            path: Some(b"a"),
            ..About::default()
        };
        let about = about.failed(Step::Open, Reason::System(116));
        let text = Object::message(MessageKind::Error, "a: open: Stale file handle", &about).line();
        assert_eq!(
            text,
            "{\"message_type\":\"error\",\"path\":\"a\",\"step\":\"open\",\"errno\":116,\
             \"errno_name\":\"ESTALE\",\"text\":\"a: open: Stale file handle\",\"worker\":null}\n"
        );
    }
}
