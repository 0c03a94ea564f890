//! The user interface: messages, progress, `-v` and `-n` lines, the summary.

mod failed;
mod json;
mod log;
mod manifest;
mod message;
pub(crate) mod output;
mod outputs;
mod paths;
mod progress;

mod summary;
mod units;

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use crate::context::Context;
use crate::fs::path::{Name, RelPath};
use crate::protocol::entry::Decision;
use crate::protocol::error::{CopyError, error_text};
use crate::protocol::metadata::{Lacking, MetadataError};
use crate::protocol::{EntryError, Excluded, Line};
use crate::quote::quote;

use json::Object;
pub(crate) use manifest::Manifest;
pub(crate) use message::{About, MessageKind};
pub(crate) use outputs::Outputs;
pub(crate) use paths::Side;
use progress::Progress;
pub(crate) use progress::{Activity, Status};
pub(crate) use summary::{Hosts, Summary};

/// Prints all output of a run, with lines above the bar.
pub(crate) struct Ui {
    context: &'static Context,
    progress: Progress,
    outputs: RefCell<Outputs>,
    has_stdout_failed: Cell<bool>,
    /// Some output could not be written.
    has_lost_output: Cell<bool>,
}

impl Ui {
    pub(crate) fn new(context: &'static Context, outputs: Outputs) -> Self {
        let config = &context.config;
        Self {
            context,
            progress: Progress::new(config.progress, config.report.json),
            outputs: RefCell::new(outputs),
            has_stdout_failed: Cell::new(false),
            has_lost_output: Cell::new(false),
        }
    }

    /// Prints a message on stderr, and wherever else messages go.
    pub(crate) fn say(&self, kind: MessageKind, line: &str, about: &About<'_>) {
        self.progress.suspend(|| output::print_message(line));
        self.log(about.worker, line);
        self.print_object(|| Object::message(kind, line, about));
    }

    /// Appends a line to the log, if there is one.
    fn log(&self, worker: Option<&str>, line: &str) {
        let lost = self.outputs.borrow_mut().log(worker, line);
        self.report_lost(lost);
    }

    /// Appends a line to the log that no user needs while the run lasts.
    pub(crate) fn log_only(&self, worker: Option<&str>, line: impl FnOnce() -> String) {
        if self.outputs.borrow().has_log() {
            self.log(worker, &line());
        }
    }

    /// Reports that a file takes no more output.
    fn report_lost(&self, lost: Option<String>) {
        if let Some(line) = lost {
            self.has_lost_output.set(true);
            self.say(MessageKind::Error, &line, &About::default());
        }
    }

    /// Prints an object, with `--json`.
    fn print_object<'a>(&self, object: impl FnOnce() -> Object<'a>) {
        if self.context.config.report.json && !self.has_stdout_failed.get() {
            self.check_stdout(output::print_lines(&object().line()));
        }
    }

    /// Reports once that stdout takes no output, for example because the reader of a pipe has
    /// exited. Nothing more is printed there.
    fn check_stdout(&self, printed: io::Result<()>) {
        let Err(error) = printed else {
            return;
        };
        self.has_stdout_failed.set(true);
        let reason = error
            .raw_os_error()
            .map_or_else(|| error.to_string(), error_text);
        self.report_lost(Some(format!(
            "standard output: write: {reason}; continuing without it"
        )));
    }

    /// Prints an error with the path on the side that failed.
    pub(crate) fn print_entry_error(
        &self,
        worker: Option<&str>,
        target: u32,
        dir: &RelPath,
        error: &EntryError,
    ) {
        let side = side_of(error.error.step.is_at_destination());
        let path = self.path(side, target, dir, error.name.as_ref());
        let line = format!("{}: {}", quote(&path), error.message());
        let about = About {
            path: Some(&path),
            worker,
            ..About::default()
        };
        let CopyError { step, reason } = error.error;
        self.say(MessageKind::Error, &line, &about.failed(step, reason));
        self.list_failed(target, dir, error.name.as_ref());
    }

    /// Prints the missing metadata of a copied entry, as one line.
    pub(crate) fn print_missing_metadata(
        &self,
        worker: Option<&str>,
        target: u32,
        dir: &RelPath,
        name: Option<&Name>,
        errors: &[MetadataError],
    ) {
        let is_at_destination = errors.iter().any(|error| error.step.is_at_destination());
        let path = self.path(side_of(is_at_destination), target, dir, name);
        let mut line = quote(&path);
        for (number, error) in errors.iter().enumerate() {
            let separator = if number == 0 { ": " } else { "; " };
            let _ = write!(line, "{separator}{error}");
        }
        let mut about = About {
            path: Some(&path),
            worker,
            ..About::default()
        };
        if let Some(first) = errors.first() {
            about = about.failed(first.step, first.reason);
        }
        self.say(MessageKind::Error, &line, &about);
        self.list_failed(target, dir, name);
    }

    /// Adds an entry to the list of `--failed-to`.
    fn list_failed(&self, target: u32, dir: &RelPath, name: Option<&Name>) {
        let targets = &self.context.targets.list;
        let path = || paths::relative_path(targets, target, dir, name);
        let lost = self.outputs.borrow_mut().add_failed(path);
        self.report_lost(lost);
    }

    /// Returns true if what failed is listed in a file.
    pub(crate) fn has_failed_list(&self) -> bool {
        self.context.config.report.failed_to.is_some()
    }

    /// Warns of metadata that the destination cannot hold, with `-q` too: nothing else says so.
    pub(crate) fn warn_lacking(&self, kind: Lacking, entries: u64, first: &[u8]) {
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
        let line = format!(
            "warning: destination does not support {what} ({entries}, first: {})",
            quote(first)
        );
        self.warn(&line, first);
    }

    /// Warns that a directory of `--link-dest` does not exist.
    pub(crate) fn warn_no_snapshot(&self, path: &Path) {
        let path = path.as_os_str().as_bytes();
        let line = format!(
            "warning: --link-dest: {} does not exist; continuing without it",
            quote(path)
        );
        self.warn(&line, path);
    }

    /// Warns that entries were copied because they could not become hard links.
    pub(crate) fn warn_unlinked(&self, count: u64, first: &[u8]) {
        let entries = if count == 1 {
            "1 entry was copied instead".to_owned()
        } else {
            format!("{count} entries were copied instead")
        };
        let line = format!(
            "warning: destination does not support these hard links; {entries} (first: {})",
            quote(first)
        );
        self.warn(&line, first);
    }

    fn warn(&self, line: &str, path: &[u8]) {
        let about = About {
            path: Some(path),
            ..About::default()
        };
        self.say(MessageKind::Warning, line, &about);
    }

    /// Warns of a file whose first copy was wrong. The disk or the memory may be bad.
    pub(crate) fn warn_repeated(&self, path: &[u8]) {
        let line = format!(
            "warning: {}: read back: contents differed from those of the source; copied again",
            quote(path)
        );
        self.warn(&line, path);
    }

    /// Prints the lines of `-v` or `-n` for entries of a directory.
    pub(crate) fn print_entries(
        &self,
        worker_label: &str,
        target: u32,
        dir: &RelPath,
        lines: &[Line],
    ) {
        let config = &self.context.config;
        if !self.takes_lines() {
            return;
        }
        let mut text = String::new();
        for line in lines {
            let side = match line.decision {
                Decision::Delete => Side::Destination,
                _ => Side::Source,
            };
            let mut path = self.path(side, target, dir, line.name.as_ref());
            if line.name.is_none() && !path.ends_with(b"/") {
                path.push(b'/');
            }
            let shown = quote(&path);
            let shown = if config.itemize {
                match self.itemized(target, dir, line) {
                    Some(line) => line,
                    None => continue,
                }
            } else if config.dry_run {
                match line.decision.plan() {
                    (verb, "") => format!("{verb} {shown}"),
                    (verb, reason) => format!("{verb} {shown} ({reason})"),
                }
            } else if line.decision == Decision::Delete {
                format!("delete {shown}")
            } else {
                shown
            };
            self.log_only(Some(worker_label), || shown.clone());
            self.print_object(|| Object::entry(&path, line, worker_label));
            let _ = if config.dry_run || config.itemize {
                writeln!(text, "{shown}")
            } else {
                writeln!(text, "{worker_label} {shown}")
            };
        }
        self.print_text(&text);
    }

    /// Returns true if stdout or a log takes lines about entries.
    fn takes_lines(&self) -> bool {
        !self.has_stdout_failed.get() || self.outputs.borrow().has_log()
    }

    /// Prints lines on stdout, unless that has failed or `--json` has printed objects instead.
    fn print_text(&self, text: &str) {
        if !(text.is_empty() || self.context.config.report.json || self.has_stdout_failed.get()) {
            self.check_stdout(self.progress.suspend(|| output::print_lines(text)));
        }
    }

    /// Prints the entries of a directory that filters leave out, each with the rule that decided.
    pub(crate) fn print_excluded(&self, target: u32, dir: &RelPath, excluded: &[Excluded]) {
        if !self.takes_lines() {
            return;
        }
        let mut text = String::new();
        for Excluded { name, is_dir, by } in excluded {
            let mut path = self.path(Side::Source, target, dir, Some(name));
            if *is_dir {
                path.push(b'/');
            }
            let line = format!("excluded {} ({by})", quote(&path));
            self.log_only(None, || line.clone());
            self.print_object(|| Object::excluded(&path, by));
            let _ = writeln!(text, "{line}");
        }
        self.print_text(&text);
    }

    /// Formats a line of `--itemize-changes`, as rsync does. `None` if the entry has none.
    fn itemized(&self, target: u32, dir: &RelPath, line: &Line) -> Option<String> {
        let target = &self.context.targets.list[target as usize];
        let mut path = target.below_named.append(dir).as_bytes().to_vec();
        match &line.name {
            Some(name) => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.as_bytes());
            }
            None if path.is_empty() => path.extend_from_slice(b"./"),
            None => path.push(b'/'),
        }
        let path = quote(&path);
        match line.items {
            Some(items) => Some(format!("{} {path}", items.as_str())),
            None if line.decision == Decision::Delete => Some(format!("*deleting   {path}")),
            None => None,
        }
    }

    /// Returns the path of an entry in a target's directory, or of the directory itself, as the
    /// user knows it.
    pub(crate) fn path(
        &self,
        side: Side,
        target: u32,
        dir: &RelPath,
        name: Option<&Name>,
    ) -> Vec<u8> {
        let target = &self.context.targets.list[target as usize];
        paths::path_of(side, target, dir, name)
    }

    /// Formats the path of an entry in a target's directory, or of the directory itself.
    pub(crate) fn show(
        &self,
        side: Side,
        target: u32,
        dir: &RelPath,
        name: Option<&Name>,
    ) -> String {
        quote(&self.path(side, target, dir, name))
    }

    /// Formats an entry and what is wrong with it.
    pub(crate) fn show_failed(
        &self,
        target: u32,
        dir: &RelPath,
        (name, what): &(Option<Name>, String),
    ) -> String {
        let path = self.show(Side::Source, target, dir, name.as_ref());
        format!("{path}: {what}")
    }

    /// Says that what failed is tried again, unless the run is quiet.
    pub(crate) fn note_retry(&self, failed: usize, wait: Duration, number: u32, of: u32) {
        let them = if failed == 1 { "it" } else { "them" };
        let wait = if wait.is_zero() {
            String::new()
        } else {
            format!(" in {} s", wait.as_secs_f64())
        };
        let line = format!(
            "{failed} failed for a reason that can pass; trying {them} again{wait} ({number} of {of})"
        );
        if self.context.config.summary {
            self.say(MessageKind::Note, &line, &About::default());
        } else {
            self.log(None, &line);
            self.print_object(|| Object::message(MessageKind::Note, &line, &About::default()));
        }
    }

    /// Returns the interval at which to call [`Ui::update`], if progress is shown.
    pub(crate) fn period(&self) -> Option<Duration> {
        self.progress.period()
    }

    /// Shows the progress, unless that was done less than a period ago.
    pub(crate) fn update(
        &self,
        status: impl FnOnce() -> Status,
        activity: impl FnOnce() -> Activity,
    ) {
        let figures = self.progress.update(self.context, status, activity);
        if let Some(figures) = figures {
            self.print_object(|| Object::progress(&figures, self.progress.elapsed()));
        }
    }

    /// Removes the bar.
    pub(crate) fn end(&self) {
        self.progress.end();
    }

    /// Prints the last lines, unless the run is quiet, and returns the exit status.
    pub(crate) fn conclude(&self, summary: &mut Summary) -> i32 {
        let config = &self.context.config;
        let elapsed = self.progress.elapsed();
        let lost = self.outputs.borrow_mut().finish_failed();
        self.report_lost(lost);
        let destination = paths::destination(&self.context.targets.list);
        for line in summary.lines(&quote(&destination), elapsed, config.dry_run) {
            if config.summary {
                output::print_message(&line);
            }
            self.log(None, &line);
        }
        summary.has_lost_output = self.has_lost_output.get();
        self.print_object(|| Object::summary(summary, &destination, elapsed, config));
        summary.has_lost_output = self.has_lost_output.get();
        summary.exit_status(config.contents.exit_code)
    }
}

fn side_of(is_at_destination: bool) -> Side {
    if is_at_destination {
        Side::Destination
    } else {
        Side::Source
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
    use crate::protocol::error::{Reason, Step};
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
            let ui = Ui::new(Box::leak(Box::new(context)), Outputs::default());
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
            items: None,
            size: None,
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
        let printed = stage.capture(|ui| ui.print_entries("[thread 1]", 0, &dir, &lines()));
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
            ui.print_entries("[thread 1]", 0, &RelPath::default(), &lines());
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
            kind: None,
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
            ui.print_entry_error(None, 0, &top, &error(file, open));
            ui.print_entry_error(None, 0, &top, &error(file, create));
            ui.print_entry_error(None, 1, &top, &error(file, create));
            ui.print_entry_error(None, 0, &top, &error(None, create));
            ui.print_entry_error(None, 0, &top, &twin);
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
            ui.warn_lacking(Lacking::Ownership, 12, b"dst/a");
            ui.warn_lacking(Lacking::Timestamps, 1, b"dst/b");
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
            ui.print_missing_metadata(None, 0, &RelPath::default(), Some(&name), &errors);
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
        let error = || io::Error::from_raw_os_error(Errno::PIPE.raw_os_error());
        assert_eq!(
            Stage::new("-v").capture(|ui| ui.check_stdout(Err(error()))),
            [err(
                "standard output: write: Broken pipe; continuing without it"
            ),]
        );
    }
}
