//! The command line: what may be said, and its help. What it means is [`crate::config`]'s.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  pcopy photos /mnt/backup/photos      make (or bring up to date) a copy of a folder
  pcopy a b notes.txt /mnt/backup      several sources, each under its own name
  pcopy -t /mnt/backup photos          the same for one source: /mnt/backup/photos
  pcopy --mode process -j 16 /srv /mnt/nas/srv
                                       survive whatever happens to a worker
  pcopy -n src dst                     show what would be done

A folder as SRC: DST becomes a copy of it, never DST/SRC. What is the same at DST already (type,
size, time) is left alone; what differs is replaced atomically; what only DST has is not touched.
Everything is kept: mode, owner, times, attributes, ACLs, hard links, holes, special files.

Exit status:
  0    everything is at DST
  1    finished, but some entries failed (each is named on stderr), or DST was full
  2    wrong usage, or nothing could be started
  130  stopped by SIGINT (Ctrl-C); 143: by SIGTERM; 129: by SIGHUP. A second run continues.";

/// Copy folders in parallel: faithful, safe and fast by default.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES, max_term_width = 100)]
#[command(
    override_usage = "pcopy [OPTIONS] <SRC>... <DST>\n       pcopy [OPTIONS] -t <DIR> <SRC>..."
)]
pub struct Cli {
    /// What to copy, and where to: SRC... DST
    ///
    /// One folder as SRC: DST becomes a copy of it. Several, or a file into a folder: each
    /// lands in DST under its own name. Symbolic links named here are followed.
    #[arg(required = true, value_name = "PATH", hide = true)]
    pub paths: Vec<PathBuf>,

    /// Copy each SRC into this folder, under its own name
    #[arg(short, long, value_name = "DIR")]
    pub target_directory: Option<PathBuf>,

    /// What the workers are
    ///
    /// Threads start faster; processes can be lost without losing the run: one that is killed,
    /// runs out of memory or hangs is replaced.
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "thread|process"
    )]
    pub mode: Mode,

    /// At most N workers, 1 to 1024 [default: as many as pay]
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
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print each finished entry on stdout, with the worker that copied it
    #[arg(short, long)]
    pub verbose: bool,

    /// Print what would be done, one line an entry, and write nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// What of an existing entry to replace
    ///
    /// changed: what differs in type, size or time. older: what is older than the source.
    /// never: nothing. always: everything.
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "changed|always|older|never"
    )]
    pub overwrite: Overwrite,

    /// Fail where one of these cannot be kept
    ///
    /// Everything is kept as far as the system allows; what is named here must be. LIST is some
    /// of mode, ownership, timestamps, links, xattr, all, with commas between.
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

    /// Share extents with the source where the file system can
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, require_equals = true,
          default_missing_value = "always", hide_possible_values = true, value_name = "auto|always|never")]
    pub reflink: Reflink,

    /// Keep holes (auto), make some wherever there are zeros (always), fill them (never)
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    pub sparse: Sparse,

    /// Follow symbolic links in SRC and copy what they point to
    #[arg(short = 'L', long)]
    pub dereference: bool,

    /// Stay on the file system of each SRC
    #[arg(short = 'x', long)]
    pub one_file_system: bool,

    /// Have data and folders on disk before exit status 0
    #[arg(long)]
    pub fsync: bool,

    /// Replace a worker that makes no progress for so long (needs --mode process)
    ///
    /// Its entry is tried once more, then reported as failed. Without this option pcopy warns
    /// after 30 seconds and waits.
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub stall_timeout: Option<u64>,
}

/// What the workers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Threads of one pool.
    #[default]
    Thread,
    /// Forked processes.
    Process,
}

/// Whether to show progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// When stderr is a terminal.
    #[default]
    Auto,
    /// Even when it is not.
    Always,
    /// Not at all.
    Never,
}

/// Which existing entries are replaced.
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

/// Whether extents are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Reflink {
    /// Where it can be done.
    #[default]
    Auto,
    /// Everywhere; a file that cannot share fails.
    Always,
    /// Nowhere.
    Never,
}

/// What becomes of holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sparse {
    /// They stay holes.
    #[default]
    Auto,
    /// Zeros become holes too.
    Always,
    /// They are filled.
    Never,
}

/// What can be kept of an entry besides its contents.
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
}
