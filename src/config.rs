//! What the command line means, with every choice made.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use rustix::fs::Mode as FileMode;

use crate::cli::{Attribute, Cli, When};
pub use crate::cli::{Mode, Overwrite, Reflink, Sparse};

/// Everything that a run has to know besides what it finds.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to copy; at least one.
    pub sources: Vec<PathBuf>,
    /// Where to.
    pub destination: Destination,
    /// What the workers are.
    pub mode: Mode,
    /// At most so many workers; none: as many as pay.
    pub jobs: Option<usize>,
    /// Whether there is a progress bar.
    pub progress: bool,
    /// Whether there is a summary.
    pub summary: bool,
    /// Whether finished entries are printed.
    pub verbose: bool,
    /// Whether nothing is written but the plan.
    pub dry_run: bool,
    /// Which existing entries are replaced.
    pub overwrite: Overwrite,
    /// What is kept.
    pub preserve: Preserve,
    /// Whether extents are shared.
    pub reflink: Reflink,
    /// What becomes of holes.
    pub sparse: Sparse,
    /// Whether links in the source are followed.
    pub dereference: bool,
    /// Whether other file systems below a source are left out.
    pub one_file_system: bool,
    /// Whether the copy has to be on disk at the end.
    pub fsync: bool,
    /// When a worker without progress is replaced.
    pub stall_timeout: Option<Duration>,
    /// The umask that the program was started with. It plays no part where modes are kept.
    pub umask: u32,
    /// The effective user is root.
    pub is_root: bool,
    /// The effective group.
    pub group: u32,
    /// A number for this run's temporary names.
    pub run: u64,
}

/// Where the sources go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One source becomes this, or lands in it when the source is a file and this is a folder.
    Path(PathBuf),
    /// Each source lands in this folder under its own name.
    Directory(PathBuf),
}

/// How much it matters that something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is not kept.
    No,
    /// As far as the system allows.
    BestEffort,
    /// It is a failure where it cannot be kept.
    Required,
}

impl Keep {
    /// True unless it is not to be kept.
    pub fn wanted(self) -> bool {
        self != Self::No
    }
}

/// What is kept of an entry besides its contents.
#[derive(Clone, Copy, Debug)]
pub struct Preserve {
    /// Mode bits and ACLs.
    pub mode: Keep,
    /// Owner and group.
    pub ownership: Keep,
    /// Access and modification time.
    pub timestamps: Keep,
    /// Hard links.
    pub links: Keep,
    /// Extended attributes.
    pub xattr: Keep,
}

impl Preserve {
    fn new(must: &[Attribute], not: &[Attribute]) -> Self {
        let keep = |attribute| {
            let named = |list: &[Attribute]| list.contains(&attribute);
            let all = |list: &[Attribute]| list.contains(&Attribute::All);
            match () {
                // A word for one thing is stronger than `all`, and "not" than "must".
                () if named(not) => Keep::No,
                () if named(must) => Keep::Required,
                () if all(not) => Keep::No,
                () if all(must) => Keep::Required,
                () => Keep::BestEffort,
            }
        };
        Self {
            mode: keep(Attribute::Mode),
            ownership: keep(Attribute::Ownership),
            timestamps: keep(Attribute::Timestamps),
            links: keep(Attribute::Links),
            xattr: keep(Attribute::Xattr),
        }
    }
}

impl Config {
    /// Makes every choice that the command line leaves open. Sets the process's umask to 0.
    ///
    /// # Errors
    /// Where the words contradict each other.
    pub fn new(cli: Cli) -> Result<Self> {
        let mut paths = cli.paths;
        let destination = match (cli.target_directory, paths.len()) {
            (Some(folder), _) => Destination::Directory(folder),
            (None, 1) => bail!(
                "no destination after {}; usage: pcopy SRC... DST",
                crate::fs::path::show(paths[0].as_os_str().as_encoded_bytes())
            ),
            (None, count) => match paths.pop() {
                Some(last) if count == 2 => Destination::Path(last),
                Some(last) => Destination::Directory(last),
                None => bail!("nothing to copy; usage: pcopy SRC... DST"),
            },
        };
        if cli.stall_timeout.is_some() && cli.mode == Mode::Thread {
            bail!("--stall-timeout needs --mode process: a thread cannot be ended alone");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            sources: paths,
            destination,
            mode: cli.mode,
            jobs: cli.jobs.map(usize::from),
            progress: match cli.progress {
                When::Auto => !cli.quiet && !cli.dry_run && std::io::stderr().is_terminal(),
                When::Always => true,
                When::Never => false,
            },
            summary: !cli.quiet,
            verbose: cli.verbose,
            dry_run: cli.dry_run,
            overwrite: cli.overwrite,
            preserve: Preserve::new(&cli.preserve, &cli.no_preserve),
            reflink: cli.reflink,
            sparse: cli.sparse,
            dereference: cli.dereference,
            one_file_system: cli.one_file_system,
            fsync: cli.fsync,
            stall_timeout: cli.stall_timeout.map(Duration::from_secs),
            umask: rustix::process::umask(FileMode::empty()).bits(),
            is_root: rustix::process::geteuid().is_root(),
            group: rustix::process::getegid().as_raw(),
            run: now.map_or(0, |now| now.as_nanos() as u64) ^ u64::from(std::process::id()) << 48,
        })
    }
}

impl Config {
    /// Returns the mode to make directories with. Others get no access until the directory is
    /// finished. If modes are not kept, it is the final mode, but writable for the owner.
    pub(crate) fn new_dir_mode(&self) -> FileMode {
        if self.preserve.mode.wanted() {
            FileMode::RWXU
        } else {
            FileMode::from_raw_mode(0o777 & !self.umask | 0o700)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn config(words: &[&str]) -> Result<Config> {
        Config::new(Cli::try_parse_from([&["pcopy"], words].concat())?)
    }

    #[test]
    fn the_last_path_is_the_destination_unless_a_folder_is_named() {
        let one = config(&["a", "b"]).unwrap();
        assert_eq!(one.destination, Destination::Path("b".into()));
        let two = config(&["a", "b", "c"]).unwrap();
        assert_eq!(two.destination, Destination::Directory("c".into()));
        assert_eq!(two.sources.len(), 2);
        let named = config(&["-t", "c", "a"]).unwrap();
        assert_eq!(named.destination, Destination::Directory("c".into()));
        assert!(config(&["a"]).is_err());
    }

    #[test]
    fn what_is_named_must_be_kept_and_the_rest_is_tried() {
        let preserve = config(&["a", "b", "--preserve=xattr,mode", "--no-preserve=mode"])
            .unwrap()
            .preserve;
        assert_eq!(preserve.xattr, Keep::Required);
        assert_eq!(preserve.mode, Keep::No);
        assert_eq!(preserve.links, Keep::BestEffort);
        let preserve = config(&["a", "b", "--no-preserve=all", "--preserve=mode"])
            .unwrap()
            .preserve;
        assert_eq!(preserve.mode, Keep::Required);
        assert_eq!(preserve.timestamps, Keep::No);
    }

    #[test]
    fn a_thread_has_no_stall_timeout() {
        assert!(config(&["a", "b", "--stall-timeout=5"]).is_err());
        assert!(config(&["a", "b", "--stall-timeout=5", "--mode=process"]).is_ok());
    }
}
