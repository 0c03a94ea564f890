//! The command line: its options and their help. [`crate::config`] decides what they mean.

pub(crate) mod backup;
pub(crate) mod changes;
mod contents;
pub mod filter;
pub mod limits;
pub(crate) mod links;
pub(crate) mod mirror;
mod mpi;
pub mod report;
pub(crate) mod size;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum, ValueHint};

use crate::environment::Environment;
pub use crate::environment::When;
use crate::foreign;
pub use contents::{Algorithm, Contents};
pub use mpi::{MpiOptions, MpiWorkers};

const EXAMPLES: &str = "\
Examples:
  pcopy photos /mnt/backup/photos      make (or bring up to date) a copy of a directory
  pcopy photos /mnt/usb/               into a directory: /mnt/usb/photos
  pcopy a b notes.txt /mnt/backup      several sources, each under its own name
  pcopy --mode process -j 16 /srv /mnt/nas/srv
                                       survive crashed and stuck workers
  pcopy -n src dst                     show what would be done

If SRC is one directory, DST becomes a copy of it. DST/ with a slash at its end means into that
directory: DST/SRC. Only the last directory of DST is created, unless --mkpath is given. Entries
that are the same at DST already (type, size, time) are left alone. Entries that differ are
replaced atomically. Entries that only DST has are not touched, unless
--delete is given. Everything is kept: mode, owner,
times, attributes, ACLs, hard links, holes, special files.

Exit status:
  0    everything is at DST
  1    finished, but some entries failed (each is named on stderr); or DST was full, or SRC or DST
       went away
  2    wrong usage, or nothing could be started
  3    finished, but some sources vanished or changed meanwhile (each is named on stderr)
  4    only with -n --exit-code: DST differs
  5    stopped by --stop-after, and nothing failed. Run again to resume.
  130  stopped by SIGINT (Ctrl-C); 143: by SIGTERM; 129: by SIGHUP. Run again to resume.

Environment: PCOPY_JOBS and PCOPY_PROGRESS are the defaults of --jobs and --progress.
The manual: pcopy --generate man | man -l -";

/// The options that copy a link named as SRC as a link.
const NO_DEREFERENCE: [&str; 3] = ["no_dereference", "no_dereference_d", "archive"];

/// The second line of `--version`: build.rs knows it.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit ",
    env!("PCOPY_COMMIT"),
    ", ",
    env!("PCOPY_TARGET")
);

/// Copy directories in parallel: faithful, safe and fast by default.
#[derive(Debug, Parser)]
#[command(version, long_version = LONG_VERSION, args_override_self = true)]
#[command(after_long_help = EXAMPLES, max_term_width = 100)]
#[command(override_usage = "pcopy [OPTIONS] <SRC>... <DST>\n       \
    pcopy [OPTIONS] -t <DIR> <SRC>...\n       \
    pcopy [OPTIONS] --duplicate <SRC>...")]
pub struct Cli {
    /// What to copy, and where to: SRC... DST
    ///
    /// If SRC is one directory, DST becomes a copy of it. Several sources, or a file copied to a
    /// directory, land in DST under their own names. Symbolic links named here are followed.
    #[arg(value_name = "PATH", hide = true, value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,

    /// Copy each SRC into this directory, under its own name
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub target_directory: Option<PathBuf>,

    /// Take DST for the copy itself, even if it ends in a slash or is a directory
    #[arg(short = 'T', long)]
    pub no_target_directory: bool,

    /// Create missing parents of DST
    ///
    /// Without it only the last directory of DST is created. So a disk that is not mounted is an
    /// error, and the copy does not land below its empty mount point.
    #[arg(long)]
    pub mkpath: bool,

    /// Make a copy beside each SRC [default ENDING: " (copy)", or "[复件]" in a Chinese locale]
    ///
    /// The copy is named SRC with ENDING. It must not exist yet.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "ENDING")]
    pub duplicate: Option<Option<OsString>>,

    /// Run workers as threads or as processes
    ///
    /// Threads start faster. Processes are safer: a worker that crashes, is killed or runs out of
    /// memory is replaced. With --stall-timeout, so is one that hangs. mpi: on all hosts on which
    /// mpirun or srun has started pcopy, once on each.
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "thread|process|mpi",
        help = "Run workers as threads, as processes, or on many hosts [default: thread]"
    )]
    pub mode: Option<Mode>,

    /// Use at most N workers, 1 to 1024 [default: as many as make it faster]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,

    /// Show a progress bar on stderr [default: auto]
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    pub progress: Option<When>,

    /// Print errors only
    #[arg(short, long, overrides_with = "verbose")]
    pub quiet: bool,

    /// Print each finished entry on stdout, and the worker that copied it
    #[arg(short, long, overrides_with = "quiet")]
    pub verbose: bool,

    /// Print what would be done, one line per entry, and write nothing
    ///
    /// With -v, unchanged entries too.
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
        value_name = "changed|always|older|never",
        overrides_with_all = ["update", "ignore_existing"]
    )]
    pub overwrite: Overwrite,

    /// The same in the words of cp: -u is --overwrite=older, none is never, all is always
    #[arg(short, long, value_enum, num_args = 0..=1, require_equals = true,
          default_missing_value = "older", hide_possible_values = true,
          value_name = "older|none|all",
          overrides_with_all = ["overwrite", "ignore_existing"])]
    pub update: Option<Update>,

    /// Write into existing files instead of replacing them by a rename
    ///
    /// For destinations that cannot rename, such as phones and some FUSE file systems. A run that is
    /// interrupted can leave a file incomplete; the next run completes it. Other hard links to the
    /// file show the new contents. Not with --overwrite=older or never.
    #[arg(long)]
    pub inplace: bool,

    /// Options about contents.
    #[command(flatten)]
    pub contents: Contents,

    /// Fail if one of these cannot be kept
    ///
    /// By default everything is kept as far as the system allows. LIST is a comma-separated list
    /// of mode, acl, ownership, timestamps, links, xattr, context, all. ACLs belong to mode, and
    /// context, the label of SELinux, to xattr. "flags" adds the inode flags of chattr(1), which are
    /// not kept otherwise, nor with all.
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

    /// Options of cp.
    #[command(flatten)]
    pub habits: Habits,

    /// Which entries.
    #[command(flatten)]
    pub filters: filter::Filters,
    /// Options of deletion.
    #[command(flatten)]
    pub mirror: mirror::Mirror,

    /// Options of metadata.
    #[command(flatten)]
    pub changes: changes::Changes,

    /// Options of links.
    #[command(flatten)]
    pub links: links::Links,

    /// Options of backups.
    #[command(flatten)]
    pub backups: backup::Backups,

    /// Stay on the file system of each SRC
    #[arg(short = 'x', long)]
    pub one_file_system: bool,

    /// Sync files and directories to disk before exiting with status 0
    ///
    /// ext4, XFS, btrfs and F2FS are synced many files at a time. On other file systems each file is
    /// synced alone, which is slower.
    #[arg(long)]
    pub fsync: bool,

    /// Replace a worker that makes no progress for SECS seconds (implies --mode process)
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

    /// What is reported besides.
    #[command(flatten)]
    pub report: report::Report,

    /// Limits of the run.
    #[command(flatten)]
    pub limits: limits::Limits,

    /// Print the manual page or the completions of a shell
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "man|complete-bash|complete-zsh|complete-fish"
    )]
    pub generate: Option<Generate>,

    /// Print each decision about the number of workers on stderr
    ///
    /// Hidden: for tests, the races and the curious.
    #[arg(long, hide = true)]
    pub debug: bool,

    /// Options of `--mode mpi`.
    #[command(flatten)]
    pub mpi: MpiOptions,

    /// What the environment says.
    #[arg(skip)]
    pub environment: Environment,
}

impl Cli {
    /// Reads the command line and the environment of this process.
    ///
    /// # Errors
    /// If one of them is wrong, or for `--help` and `--version`, which are an error of clap.
    pub fn read() -> anyhow::Result<Self> {
        let mut cli = Self::try_parse().map_err(foreign::explain)?;
        // A wrong default that is not used does no harm.
        let is_used = |name: &str| match name {
            "PCOPY_JOBS" => cli.jobs.is_none() && cli.generate.is_none(),
            "PCOPY_PROGRESS" => cli.progress.is_none() && cli.generate.is_none(),
            _ => true,
        };
        cli.environment =
            Environment::read(|name| std::env::var_os(name).filter(|_| is_used(name)))?;
        Ok(cli)
    }
}

/// Options of cp, accepted for the habit of typing them, and hidden.
#[derive(Debug, Args)]
pub struct Habits {
    /// As -P: hard links are kept in any case
    #[arg(short = 'd', hide = true, overrides_with_all = ["dereference", "no_dereference", "archive"])]
    pub no_dereference_d: bool,

    /// As -P: everything is kept in any case
    #[arg(short = 'a', long, hide = true,
          overrides_with_all = ["dereference", "no_dereference", "no_dereference_d"])]
    pub archive: bool,

    /// Links named as SRC are followed in any case, unless another option says otherwise
    #[arg(short = 'H', hide = true,
          overrides_with_all = ["dereference", "no_dereference", "no_dereference_d", "archive"])]
    pub follow_named: bool,

    /// Directories are copied in any case
    #[arg(short = 'r', short_alias = 'R', long, hide = true)]
    pub recursive: bool,

    /// Mode, owner and times are kept in any case
    #[arg(short = 'p', hide = true)]
    pub preserve_p: bool,

    /// Files that cannot be written to are replaced in any case
    #[arg(short = 'f', long, hide = true)]
    pub force: bool,
}

/// What `--generate` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generate {
    /// The manual page.
    Man,
    /// Completions for bash.
    CompleteBash,
    /// Completions for zsh.
    CompleteZsh,
    /// Completions for fish.
    CompleteFish,
}

/// How workers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// As threads of one pool.
    #[default]
    Thread,
    /// As forked processes.
    Process,
    /// On all hosts on which mpirun or srun has started pcopy.
    Mpi,
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

/// Which existing entries to replace, in the words of cp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Update {
    /// Those with an earlier modification time.
    Older,
    /// None.
    None,
    /// All.
    All,
}

impl From<Update> for Overwrite {
    fn from(update: Update) -> Self {
        match update {
            Update::Older => Self::Older,
            Update::None => Self::Never,
            Update::All => Self::Always,
        }
    }
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
    /// ACLs alone.
    Acl,
    /// Owner and group.
    Ownership,
    /// Access and modification time.
    Timestamps,
    /// Hard links.
    Links,
    /// Extended attributes.
    Xattr,
    /// The label of SELinux alone.
    Context,
    /// Inode flags, as chattr(1) sets them.
    Flags,
    /// All of these but the inode flags.
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
