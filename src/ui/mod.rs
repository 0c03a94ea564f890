//! The user interface: messages, progress, `-v` and `-n` lines, the summary.

pub(crate) mod output;
mod paths;
mod progress;

mod summary;
mod units;

use std::cell::Cell;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use crate::context::Context;
use crate::fs::path::{Name, RelPath};
use crate::protocol::error::error_text;
use crate::protocol::metadata::{Lacking, MetadataError};
use crate::protocol::{EntryError, Line};

pub(crate) use paths::Side;
use progress::Progress;
pub(crate) use progress::{Activity, Status};
pub(crate) use summary::{Hosts, Summary};

/// Prints all output of a run, with lines above the bar.
pub(crate) struct Ui {
    context: &'static Context,
    progress: Progress,
    has_stdout_failed: Cell<bool>,
}

impl Ui {
    pub(crate) fn new(context: &'static Context) -> Self {
        Self {
            context,
            progress: Progress::new(context.config.progress),
            has_stdout_failed: Cell::new(false),
        }
    }

    /// Prints a line on stderr.
    pub(crate) fn error(&self, line: &str) {
        self.progress.suspend(|| output::print_message(line));
    }

    /// Prints an error under the path on the side where it happened.
    pub(crate) fn print_entry_error(&self, target: u32, dir: &RelPath, error: &EntryError) {
        let side = if error.error.step.is_at_destination() {
            Side::Destination
        } else {
            Side::Source
        };
        let path = self.show(side, target, dir, error.name.as_ref());
        self.error(&format!("{path}: {}", error.message()));
    }

    /// Prints the missing metadata of a copied entry, as one line.
    pub(crate) fn print_incomplete(
        &self,
        target: u32,
        dir: &RelPath,
        name: Option<&Name>,
        errors: &[MetadataError],
    ) {
        let is_at_destination = errors.iter().any(|error| error.step.is_at_destination());
        let side = if is_at_destination {
            Side::Destination
        } else {
            Side::Source
        };
        let mut line = self.show(side, target, dir, name);
        for (number, error) in errors.iter().enumerate() {
            let separator = if number == 0 { ": " } else { "; " };
            let _ = write!(line, "{separator}{error}");
        }
        self.error(&line);
    }

    /// Warns of metadata that the destination cannot hold, with `-q` too: nothing else says so.
    pub(crate) fn warn_lacking(&self, kind: Lacking, entries: u64, first: &str) {
        let what = match kind {
            Lacking::Ownership => "file ownership; continuing without it",
            Lacking::Modes => "file modes; continuing without them",
            Lacking::Attributes => "some extended attributes; continuing without them",
            Lacking::Timestamps => "these timestamps; continuing without them",
        };
        let entries = match entries {
            1 => "1 entry".to_owned(),
            entries => format!("{entries} entries"),
        };
        self.error(&format!(
            "warning: destination does not support {what} ({entries}, first: {first})"
        ));
    }

    /// Warns that entries were copied because they could not become hard links.
    pub(crate) fn warn_unlinked(&self, count: u64, first: &str) {
        let entries = if count == 1 {
            "1 entry was copied instead".to_owned()
        } else {
            format!("{count} entries were copied instead")
        };
        self.error(&format!(
            "warning: destination does not support these hard links; {entries} (first: {first})"
        ));
    }

    /// Prints the lines of `-v` or `-n` for entries of a directory.
    ///
    /// # Errors
    /// Fails once, for example because the reader of a pipe has exited. Later calls print nothing
    /// and succeed. Pass the error to [`Ui::warn_stdout_failed`].
    pub(crate) fn print_entries(
        &self,
        worker_label: &str,
        target: u32,
        dir: &RelPath,
        lines: &[Line],
    ) -> io::Result<()> {
        if lines.is_empty() || self.has_stdout_failed.get() {
            return Ok(());
        }
        let mut text = String::new();
        for line in lines {
            let path = self.show(Side::Source, target, dir, line.name.as_ref());
            let is_dir = line.name.is_none();
            let slash = if is_dir && !path.ends_with('/') {
                "/"
            } else {
                ""
            };
            let _ = if self.context.config.dry_run {
                let (verb, reason) = line.decision.plan();
                writeln!(text, "{verb} {path}{slash} ({reason})")
            } else {
                writeln!(text, "{worker_label} {path}{slash}")
            };
        }
        let printed = self.progress.suspend(|| output::print_lines(&text));
        self.has_stdout_failed.set(printed.is_err());
        printed
    }

    /// Reports the error of [`Ui::print_entries`].
    pub(crate) fn warn_stdout_failed(&self, error: &io::Error) {
        let reason = error
            .raw_os_error()
            .map_or_else(|| error.to_string(), error_text);
        self.error(&format!(
            "standard output: write: {reason}; continuing without it"
        ));
    }

    /// Formats the path of an entry in a target's directory, or of the directory itself.
    pub(crate) fn show(
        &self,
        side: Side,
        target: u32,
        dir: &RelPath,
        name: Option<&Name>,
    ) -> String {
        let target = &self.context.targets.list[target as usize];
        paths::display_path(side, target, dir, name)
    }

    /// Returns the interval at which to call [`Ui::update`], if progress is shown.
    pub(crate) fn period(&self) -> Option<Duration> {
        self.progress.period()
    }

    /// Draws the progress, unless it was drawn less than a period ago.
    pub(crate) fn update(
        &self,
        status: impl FnOnce() -> Status,
        activity: impl FnOnce() -> Activity,
    ) {
        self.progress.update(self.context, status, activity);
    }

    /// Removes the bar.
    pub(crate) fn end(&self) {
        self.progress.end();
    }

    /// Prints the last lines, unless the run is quiet.
    pub(crate) fn print_summary(&self, summary: &Summary) {
        let config = &self.context.config;
        if config.summary {
            let destination = paths::display_destination(&self.context.targets.list);
            let elapsed = self.progress.elapsed();
            for line in summary.lines(&destination, elapsed, config.dry_run) {
                self.error(&line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rustix::io::Errno;

    use super::output::captured::{self, Stream};
    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;
    use crate::context::Identity;
    use crate::protocol::entry::Decision;
    use crate::protocol::error::{CopyError, Reason, Step};
    use crate::protocol::metadata::Attribute;
    use crate::scoreboard::Scoreboard;
    use crate::targets::Targets;

    /// A run that copies a directory `src` and a file `file` to `dst`.
    struct Stage {
        dir: tempfile::TempDir,
        ui: Ui,
    }

    impl Stage {
        fn new(option: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = |name| dir.path().join(name);
            std::fs::create_dir(path("src")).unwrap();
            std::fs::create_dir(path("dst")).unwrap();
            std::fs::write(path("file"), "").unwrap();
            let paths = ["src", "file", "dst"].map(|name| path(name).into_os_string());
            let args = ["pcopy".into(), option.into()].into_iter().chain(paths);
            let config = Config::new(Cli::try_parse_from(args).unwrap()).unwrap();
            let identity = Identity::read();
            let context = Context {
                targets: Targets::open(&config, identity.umask).unwrap(),
                scoreboard: Scoreboard::new(1, 1, 1).unwrap(),
                identity,
                config,
            };
            let ui = Ui::new(Box::leak(Box::new(context)));
            Self { dir, ui }
        }

        /// Returns what is printed, without the path of the temporary directory.
        fn capture(&mut self, print: impl FnOnce(&mut Ui)) -> Vec<(Stream, String)> {
            captured::begin();
            print(&mut self.ui);
            let root = format!("{}/", self.dir.path().display());
            let lines = captured::end().into_iter();
            lines
                .map(|(stream, line)| (stream, line.replace(&root, "")))
                .collect()
        }
    }

    fn out(line: &str) -> (Stream, String) {
        (Stream::Out, line.to_owned())
    }

    fn err(line: &str) -> (Stream, String) {
        (Stream::Err, line.to_owned())
    }

    fn lines() -> [Line; 3] {
        let line = |name: Option<&[u8]>, decision| Line {
            name: name.map(Name::new),
            decision,
        };
        [
            line(None, Decision::MakeDirectory),
            line(Some(b"a b"), Decision::Create),
            line(Some(b"x\ny"), Decision::LeaveUnchanged),
        ]
    }

    #[test]
    fn verbose_lines_name_the_worker_and_the_entry() {
        let mut stage = Stage::new("-v");
        let dir = RelPath::default().join(b"d");
        let printed =
            stage.capture(|ui| ui.print_entries("[thread 1]", 0, &dir, &lines()).unwrap());
        assert_eq!(
            printed,
            [
                out("[thread 1] src/d/"),
                out("[thread 1] src/d/a b"),
                out("[thread 1] $'src/d/x\\ny'"),
            ]
        );
    }

    #[test]
    fn a_dry_run_prints_what_it_would_do_and_why() {
        let mut stage = Stage::new("-n");
        let printed = stage.capture(|ui| {
            ui.print_entries("[thread 1]", 0, &RelPath::default(), &lines())
                .unwrap();
        });
        assert_eq!(
            printed,
            [
                out("make src/ (new)"),
                out("copy src/a b (new)"),
                out("leave $'src/x\\ny' (unchanged)"),
            ]
        );
    }

    #[test]
    fn an_error_shows_the_path_on_the_side_where_it_happened() {
        let mut stage = Stage::new("-q");
        let top = RelPath::default();
        let error = |name: Option<&[u8]>, error| EntryError {
            name: name.map(Name::new),
            error,
            twin: None,
        };
        let open = CopyError::new(Step::Open, Errno::ACCESS);
        let create = CopyError::new(Step::Create, Errno::ROFS);
        let file = Some(&b"file"[..]);
        let twin = EntryError {
            twin: Some(Name::new(b"FI\nLE")),
            ..error(file, CopyError::new(Step::Create, Reason::SameName))
        };
        let printed = stage.capture(|ui| {
            ui.print_entry_error(0, &top, &error(file, open));
            ui.print_entry_error(0, &top, &error(file, create));
            ui.print_entry_error(1, &top, &error(file, create));
            ui.print_entry_error(0, &top, &error(None, create));
            ui.print_entry_error(0, &top, &twin);
        });
        assert_eq!(
            printed,
            [
                err("src/file: open: Permission denied"),
                err("dst/src/file: create: Read-only file system"),
                err("dst/file: create: Read-only file system"),
                err("dst/src: create: Read-only file system"),
                err("dst/src/file: create: same name as $'FI\\nLE' at the destination"),
            ]
        );
    }

    #[test]
    fn unsupported_metadata_is_warned_of_with_a_number() {
        let mut stage = Stage::new("-q");
        let printed = stage.capture(|ui| {
            ui.warn_lacking(Lacking::Ownership, 12, "dst/a");
            ui.warn_lacking(Lacking::Timestamps, 1, "dst/b");
        });
        assert_eq!(
            printed,
            [
                err(
                    "warning: destination does not support file ownership; continuing without it \
                     (12 entries, first: dst/a)"
                ),
                err(
                    "warning: destination does not support these timestamps; continuing without \
                     them (1 entry, first: dst/b)"
                ),
            ]
        );
    }

    #[test]
    fn all_that_an_entry_lacks_is_one_line() {
        let error = |step, attribute: Option<(&[u8], u32)>, errno: Errno| MetadataError {
            step,
            attribute: attribute.map(|(name, size)| Attribute {
                name: name.to_vec(),
                size: Some(size),
            }),
            reason: errno.into(),
        };
        let printed = Stage::new("-q").capture(|ui| {
            let errors = [
                error(
                    Step::SetAttributes,
                    Some((b"user.exif", 10_000)),
                    Errno::NOSPC,
                ),
                error(Step::SetMode, None, Errno::IO),
            ];
            let name = Name::new(b"pic");
            ui.print_incomplete(0, &RelPath::default(), Some(&name), &errors);
        });
        assert_eq!(
            printed,
            [err(
                "dst/src/pic: set attributes: user.exif (10000 bytes): No space left on device; \
                 set mode: Input/output error"
            )]
        );
    }

    #[test]
    fn a_failed_stdout_is_reported_with_its_reason() {
        let error = io::Error::from_raw_os_error(Errno::PIPE.raw_os_error());
        assert_eq!(
            Stage::new("-v").capture(|ui| ui.warn_stdout_failed(&error)),
            [err(
                "standard output: write: Broken pipe; continuing without it"
            ),]
        );
    }
}
