//! The settings of a run: the command line, checked and complete.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::fs::Mode as FileMode;

use crate::cli::{Attribute, Cli, When};
pub use crate::cli::{Mode, Overwrite, Reflink, Sparse};
use crate::quote::quote;

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The paths to copy; at least one.
    pub sources: Vec<PathBuf>,
    /// Where to copy them.
    pub destination: Destination,
    /// How workers run.
    pub mode: Mode,
    /// The most workers. `None`: as many as make it faster.
    pub jobs: Option<usize>,
    /// Show a progress bar.
    pub progress: bool,
    /// Print a summary.
    pub summary: bool,
    /// Print finished entries.
    pub verbose: bool,
    /// Print what would be done, and write nothing.
    pub dry_run: bool,
    /// Which existing entries to replace.
    pub overwrite: Overwrite,
    /// Write into existing files instead of replacing them.
    pub inplace: bool,
    /// Which properties to keep.
    pub preserve: Preserve,
    /// When to share extents with the source.
    pub reflink: Reflink,
    /// Which parts of a file become holes.
    pub sparse: Sparse,
    /// Follow symbolic links in the source.
    pub dereference: bool,
    /// Copy a link named as a source as a link.
    pub links_as_links: bool,
    /// Skip other file systems below a source.
    pub one_file_system: bool,
    /// Sync the copy to disk.
    pub fsync: bool,
    /// Replace a worker after this time without progress. `None`: never.
    pub stall_timeout: Option<Duration>,
    /// Warn about a worker after this time without progress.
    pub stall_warning: Duration,
    /// Print decisions about the number of workers.
    pub debug: bool,
}

/// Where the sources go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The one source becomes this path. A file lands in it instead if it is a directory.
    Path(PathBuf),
    /// Each source lands in this directory under its own name.
    Directory(PathBuf),
}

/// How much it matters that a property is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is not kept.
    No,
    /// It is kept as far as the system allows.
    BestEffort,
    /// An entry fails if it cannot be kept.
    Required,
}

impl Keep {
    /// Returns true if the property should be kept if possible.
    pub fn is_wanted(self) -> bool {
        self != Self::No
    }
}

/// Which properties of an entry are kept besides its contents.
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
    /// Combines the lists of `--preserve` and `--no-preserve`.
    fn new(required: &[Attribute], unwanted: &[Attribute]) -> Self {
        let keep = |attribute| {
            // A property's own name wins over `all`, and --no-preserve over --preserve.
            if unwanted.contains(&attribute) {
                Keep::No
            } else if required.contains(&attribute) {
                Keep::Required
            } else if unwanted.contains(&Attribute::All) {
                Keep::No
            } else if required.contains(&Attribute::All) {
                Keep::Required
            } else {
                Keep::BestEffort
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
    /// Checks the command line and fills in the defaults.
    ///
    /// # Errors
    /// If paths are missing, or options contradict each other.
    pub fn new(cli: Cli) -> Result<Self> {
        let mut paths = cli.paths;
        let destination = match (cli.target_directory, paths.len()) {
            (Some(dir), _) => Destination::Directory(dir),
            (None, 1) => bail!(
                "no destination after {}; usage: pcopy SRC... DST",
                quote(paths[0].as_os_str().as_encoded_bytes())
            ),
            (None, count) => match paths.pop() {
                Some(last) if count == 2 => Destination::Path(last),
                Some(last) => Destination::Directory(last),
                None => bail!("nothing to copy; usage: pcopy SRC... DST"),
            },
        };
        if cli.reflink == Reflink::Always && cli.sparse != Sparse::Auto {
            bail!(
                "--reflink=always needs --sparse=auto: shared extents have the holes of the source"
            );
        }
        if cli.stall_timeout.is_some() && cli.mode == Mode::Thread {
            bail!("--stall-timeout needs --mode process: a single thread cannot be killed");
        }
        if cli.inplace && matches!(cli.overwrite, Overwrite::Older | Overwrite::Never) {
            bail!(
                "--inplace does not go with --overwrite=older or never: these trust every \
                 existing file to be complete"
            );
        }
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
            inplace: cli.inplace,
            preserve: Preserve::new(&cli.preserve, &cli.no_preserve),
            reflink: cli.reflink,
            sparse: cli.sparse,
            dereference: cli.dereference,
            links_as_links: cli.no_dereference || cli.no_dereference_d || cli.archive,
            one_file_system: cli.one_file_system,
            fsync: cli.fsync,
            stall_timeout: cli.stall_timeout.map(Duration::from_secs),
            stall_warning: Duration::from_secs(cli.stall_warning),
            debug: cli.debug,
        })
    }

    /// Returns the mode that directories are created with; they get the final one at the end.
    ///
    /// If modes are kept, only the owner has access while the entries are copied. If not, they get
    /// the source's permissions as far as the umask or a default ACL allows, as with cp -r. But
    /// the owner has access until the entries are there.
    pub(crate) fn new_dir_mode(&self, source: u32) -> FileMode {
        if self.preserve.mode.is_wanted() {
            FileMode::RWXU
        } else {
            FileMode::from_raw_mode(source & 0o777 | 0o700)
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
    fn the_last_path_is_the_destination_without_t() {
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
    fn named_properties_are_required_and_the_others_best_effort() {
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
        let all = config(&["a", "b", "--preserve=all", "--no-preserve=all"]);
        assert_eq!(all.unwrap().preserve.links, Keep::No);
    }

    #[test]
    fn a_warning_comes_after_30_seconds_unless_an_option_says_otherwise() {
        let after = |words: &[&str]| config(words).unwrap().stall_warning.as_secs();
        assert_eq!(after(&["a", "b"]), 30);
        assert_eq!(after(&["a", "b", "--stall-warning=2"]), 2);
        assert!(config(&["a", "b", "--stall-warning=0"]).is_err());
    }

    #[test]
    fn only_the_owner_has_access_to_a_new_directory_if_modes_are_kept() {
        let kept = config(&["a", "b"]).unwrap();
        assert_eq!(kept.new_dir_mode(0o755).bits(), 0o700);
        let not_kept = config(&["a", "b", "--no-preserve=mode"]).unwrap();
        assert_eq!(not_kept.new_dir_mode(0o2055).bits(), 0o755);
    }

    #[test]
    fn the_last_of_an_option_wins() {
        let last = |words: &[&str]| config(&[&["a", "b"], words].concat()).unwrap();
        assert_eq!(last(&["-j2", "-j", "3"]).jobs, Some(3));
        assert_eq!(
            last(&["--mode=process", "--mode=thread"]).mode,
            Mode::Thread
        );
        assert_eq!(last(&["-nn", "--fsync", "--fsync"]).sources.len(), 1);
        assert!(last(&["-q", "-v"]).summary);
        assert!(!last(&["-v", "-q"]).verbose);
        assert!(last(&["-L", "-P"]).links_as_links);
        assert!(!last(&["-P", "-L"]).links_as_links);
        assert!(last(&["-a", "-d", "-L"]).dereference);
        // Lists add up.
        let preserve = last(&["--preserve=mode", "--preserve=links"]).preserve;
        assert_eq!(
            (preserve.mode, preserve.links),
            (Keep::Required, Keep::Required)
        );
        let apart = config(&["a", "-q", "b", "-x", "c"]).unwrap();
        assert_eq!(apart.sources.len(), 2);
    }

    #[test]
    fn shared_extents_have_the_holes_of_the_source() {
        assert!(config(&["a", "b", "--reflink=always", "--sparse=never"]).is_err());
        assert!(config(&["a", "b", "--reflink=always", "--sparse=always"]).is_err());
        assert!(config(&["a", "b", "--reflink=always"]).is_ok());
    }

    #[test]
    fn files_that_are_trusted_are_not_written_in_place() {
        for overwrite in ["--overwrite=older", "--overwrite=never"] {
            assert!(config(&["a", "b", "--inplace", overwrite]).is_err());
        }
        assert!(config(&["a", "b", "--inplace"]).unwrap().inplace);
    }

    #[test]
    fn a_thread_has_no_stall_timeout() {
        assert!(config(&["a", "b", "--stall-timeout=5"]).is_err());
        assert!(config(&["a", "b", "--stall-timeout=5", "--mode=process"]).is_ok());
    }
}
