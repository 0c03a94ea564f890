//! The command line: its options and their help. [`crate::config`] decides what they mean.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  pcopy photos /mnt/backup/photos      make (or bring up to date) a copy of a directory
  pcopy a b notes.txt /mnt/backup      several sources, each under its own name
  pcopy -t /mnt/backup photos          the same for one source: /mnt/backup/photos
  pcopy --mode process -j 16 /srv /mnt/nas/srv
                                       survive crashed and stuck workers
  pcopy -n src dst                     show what would be done

If SRC is a directory, DST becomes a copy of it, never DST/SRC. Entries that are the same at DST
already (type, size, time) are left alone. Entries that differ are replaced atomically. Entries
that only DST has are not touched. Everything is kept: mode, owner, times, attributes, ACLs, hard
links, holes, special files.

Exit status:
  0    everything is at DST
  1    finished, but some entries failed (each is named on stderr); or DST was full, or SRC or DST
       went away
  2    wrong usage, or nothing could be started
  3    finished, but some sources vanished or changed meanwhile (each is named on stderr)
  130  stopped by SIGINT (Ctrl-C); 143: by SIGTERM; 129: by SIGHUP. Run again to resume.";

/// The options that have a link named as SRC copied as a link.
const NO_DEREFERENCE: [&str; 3] = ["no_dereference", "no_dereference_d", "archive"];

/// Copy directories in parallel: faithful, safe and fast by default.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true, after_long_help = EXAMPLES, max_term_width = 100)]
#[command(
    override_usage = "pcopy [OPTIONS] <SRC>... <DST>\n       pcopy [OPTIONS] -t <DIR> <SRC>..."
)]
pub struct Cli {
    /// What to copy, and where to: SRC... DST
    ///
    /// If SRC is one directory, DST becomes a copy of it. Several sources, or a file copied to a
    /// directory, land in DST under their own names. Symbolic links named here are followed.
    #[arg(required = true, value_name = "PATH", hide = true)]
    pub paths: Vec<PathBuf>,

    /// Copy each SRC into this directory, under its own name
    #[arg(short, long, value_name = "DIR")]
    pub target_directory: Option<PathBuf>,

    /// Run workers as threads or as processes
    ///
    /// Threads start faster. Processes are safer: a worker that crashes, is killed or runs out of
    /// memory is replaced. With --stall-timeout, so is one that hangs.
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "thread|process"
    )]
    pub mode: Mode,

    /// Use at most N workers, 1 to 1024 [default: as many as make it faster]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,

    /// Show a progress bar on stderr
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    pub progress: When,

    /// Print errors only
    #[arg(short, long, overrides_with = "verbose")]
    pub quiet: bool,

    /// Print each finished entry on stdout, and the worker that copied it
    #[arg(short, long, overrides_with = "quiet")]
    pub verbose: bool,

    /// Print what would be done, one line per entry, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Choose which existing entries to replace
    ///
    /// changed: those that differ in type, size or time. older: those that are older than the
    /// source. never: none. always: all.
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "changed|always|older|never"
    )]
    pub overwrite: Overwrite,

    /// Write into existing files instead of replacing them by a rename
    ///
    /// For destinations that cannot rename, such as phones and some FUSE file systems. A run that is
    /// interrupted can leave a file incomplete; the next run completes it. Other hard links to the
    /// file show the new contents. Not with --overwrite=older or never.
    #[arg(long)]
    pub inplace: bool,

    /// Fail if one of these cannot be kept
    ///
    /// By default everything is kept as far as the system allows. LIST is a comma-separated list
    /// of mode, ownership, timestamps, links, xattr, all.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        hide_possible_values = true
    )]
    pub preserve: Vec<Attribute>,

    /// Do not keep these (same words as for --preserve)
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        hide_possible_values = true
    )]
    pub no_preserve: Vec<Attribute>,

    /// Share extents with the source if the file system can
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, require_equals = true,
          default_missing_value = "always", hide_possible_values = true, value_name = "auto|always|never")]
    pub reflink: Reflink,

    /// Keep holes (auto), turn all zeros into holes (always), or fill holes (never)
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    pub sparse: Sparse,

    /// Follow symbolic links in SRC and copy what they point to
    #[arg(short = 'L', long, overrides_with_all = NO_DEREFERENCE)]
    pub dereference: bool,

    /// Copy a symbolic link named as SRC as a link
    #[arg(short = 'P', long, overrides_with_all = ["dereference", "no_dereference_d", "archive"])]
    pub no_dereference: bool,

    /// The same: hard links are kept in any case
    ///
    /// Hidden: for the habit of typing cp -d.
    #[arg(short = 'd', hide = true, overrides_with_all = ["dereference", "no_dereference", "archive"])]
    pub no_dereference_d: bool,

    /// The same: everything is kept in any case
    ///
    /// Hidden: for the habit of typing cp -a.
    #[arg(short = 'a', long, hide = true,
          overrides_with_all = ["dereference", "no_dereference", "no_dereference_d"])]
    pub archive: bool,

    /// Stay on the file system of each SRC
    #[arg(short = 'x', long)]
    pub one_file_system: bool,

    /// Sync files and directories to disk before exiting with status 0
    #[arg(long)]
    pub fsync: bool,

    /// Replace a worker that makes no progress for SECS seconds (needs --mode process)
    ///
    /// Its entry is tried once more and then reported as failed. Without this option pcopy warns
    /// after 30 seconds and keeps waiting.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub stall_timeout: Option<u64>,

    /// Warn about a worker that makes no progress for SECS seconds
    ///
    /// Hidden: only the tests shorten it.
    #[arg(
        long,
        hide = true,
        value_name = "SECS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub stall_warning: u64,

    /// Print each decision about the number of workers on stderr
    ///
    /// Hidden: for tests, the races and the curious.
    #[arg(long, hide = true)]
    pub debug: bool,
}

/// How workers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// As threads of one pool.
    #[default]
    Thread,
    /// As forked processes.
    Process,
}

/// When to show progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// If stderr is a terminal.
    #[default]
    Auto,
    /// Even if stderr is not a terminal.
    Always,
    /// Not at all.
    Never,
}

/// Which existing entries to replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Overwrite {
    /// Those that differ in type, size or modification time.
    #[default]
    Changed,
    /// All.
    Always,
    /// Those with an earlier modification time.
    Older,
    /// None.
    Never,
}

/// When to share extents with the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Reflink {
    /// If the file system can.
    #[default]
    Auto,
    /// Always: a file that cannot share extents fails.
    Always,
    /// Not at all.
    Never,
}

/// Which parts of a file become holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sparse {
    /// The holes of the source.
    #[default]
    Auto,
    /// All zeros.
    Always,
    /// None.
    Never,
}

/// A property of an entry that can be kept besides its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attribute {
    /// Mode bits and ACLs.
    Mode,
    /// Owner and group.
    Ownership,
    /// Access and modification time.
    Timestamps,
    /// Hard links.
    Links,
    /// Extended attributes.
    Xattr,
    /// All of these.
    All,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_stall_warning_is_hidden() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("--stall-timeout"));
        assert!(!help.contains("--stall-warning"));
    }
}
