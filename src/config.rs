//! The settings of a run: the command line, checked and complete.

mod backup;
mod changes;
mod contents;
mod destination;
mod filter;
mod limits;
mod links;
mod mirror;
mod mpi;
mod report;
mod time;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::fs::Mode as FileMode;

pub use crate::cli::{Algorithm, Mode, Overwrite, Reflink, Sparse};
use crate::cli::{Attribute, Cli, When};
use crate::protocol::entry::Decision;
pub use backup::{Backup, BackupNaming};
pub use changes::Changes;
pub use contents::{Contents, Manifest};
pub use destination::Destination;
pub(crate) use destination::{normalize, own_name};
pub use filter::{FileLimits, FilterSettings, Moment, RuleOption, Size};
pub use limits::Limits;
pub use links::{Linking, Links};
pub use mirror::Mirror;
pub use mpi::{Decided, MpiSettings};
pub use report::Report;

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The paths to copy; at least one.
    pub sources: Vec<PathBuf>,
    /// Where to copy them.
    pub destination: Destination,
    /// Create missing parents of the destination.
    pub mkpath: bool,
    /// How workers run.
    pub mode: Mode,
    /// Settings of a run on many machines.
    pub mpi: MpiSettings,
    /// The maximum number of workers. `None`: as many as make the run faster.
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
    /// Which entries are copied.
    pub filter: FilterSettings,
    /// Comparing, verifying and listing contents.
    pub contents: Contents,
    /// Which properties to keep.
    pub preserve: Preserve,
    /// When to share extents with the source.
    pub reflink: Reflink,
    /// Which parts of a file become holes.
    pub sparse: Sparse,
    /// Metadata that is changed on the way.
    pub changes: Changes,
    /// Print changes in the letters of rsync.
    pub itemize: bool,
    /// Make links instead of copies.
    pub links: Links,
    /// Keep what is replaced or removed.
    pub backup: Option<Backup>,
    /// Remove what only the destination has.
    pub mirror: Option<Mirror>,
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
    /// What to report besides.
    pub report: Report,
    /// Limits of time and speed, and second attempts.
    pub limits: Limits,
    /// Print decisions about the number of workers.
    pub debug: bool,
}

/// How much it matters that a property is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is not kept.
    No,
    /// It is kept as far as the system allows.
    BestEffort,
    /// An entry fails if the property cannot be kept.
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
    /// Mode bits, and ACLs unless they are required alone.
    pub mode: Keep,
    /// ACLs. Not kept only if the mode is not kept either.
    pub acl: Keep,
    /// Owner and group.
    pub ownership: Keep,
    /// Access and modification time.
    pub timestamps: Keep,
    /// Hard links.
    pub links: Keep,
    /// Extended attributes.
    pub xattr: Keep,
    /// The label of SELinux.
    pub context: Keep,
    /// Inode flags, as chattr(1) sets them: required or not kept.
    pub flags: Keep,
}

impl Preserve {
    /// Combines the lists of `--preserve` and `--no-preserve`.
    ///
    /// # Errors
    /// If ACLs are to be left out and the mode is not: its group bits hold the mask of the ACL.
    fn new(required: &[Attribute], unwanted: &[Attribute]) -> Result<Self> {
        let keep = |attribute, otherwise| {
            // A property's own name wins over `all`, and --no-preserve over --preserve.
            if unwanted.contains(&attribute) {
                Keep::No
            } else if required.contains(&attribute) {
                Keep::Required
            } else {
                otherwise
            }
        };
        let all = keep(Attribute::All, Keep::BestEffort);
        let mode = keep(Attribute::Mode, all);
        let xattr = keep(Attribute::Xattr, all);
        let preserve = Self {
            mode,
            acl: keep(Attribute::Acl, mode),
            ownership: keep(Attribute::Ownership, all),
            timestamps: keep(Attribute::Timestamps, all),
            links: keep(Attribute::Links, all),
            xattr,
            context: keep(Attribute::Context, xattr),
            // Most are for one disk and not for the data. Immutable files cannot be replaced or
            // removed. So they are kept only if that is asked for by name.
            flags: keep(Attribute::Flags, Keep::No),
        };
        match (preserve.mode.is_wanted(), preserve.acl.is_wanted()) {
            (true, false) => bail!(
                "--no-preserve=acl: an ACL cannot be left out alone; --no-preserve=mode leaves \
                 both to the destination"
            ),
            (false, true) => bail!(
                "--preserve=acl does not go with --no-preserve=mode: an ACL contains the mode"
            ),
            _ => Ok(preserve),
        }
    }
}

impl Config {
    /// Checks the command line and fills in the defaults.
    ///
    /// # Errors
    /// If paths are missing, or options contradict each other.
    pub fn new(cli: Cli) -> Result<Self> {
        let (sources, destination) = destination::of(&cli)?;
        let filter = FilterSettings::new(&cli)?;
        let overwrite = match cli.filters.ignore_existing {
            true => Overwrite::Never,
            false => cli.update.map_or(cli.overwrite, Overwrite::from),
        };
        let changes = changes::of(&cli)?;
        let links = links::of(&cli, &sources)?;
        let mut preserve = Preserve::new(&cli.preserve, &cli.no_preserve)?;
        changes.check(&mut preserve, &links)?;
        let backup = backup::of(&cli)?;
        let mirror = mirror::of(&cli, sources.len())?;
        let links_as_links =
            cli.no_dereference || cli.habits.no_dereference_d || cli.habits.archive;
        if cli.reflink == Reflink::Always && cli.sparse != Sparse::Auto {
            bail!(
                "--reflink=always needs --sparse=auto: shared extents have the holes of the source"
            );
        }
        // A thread cannot be killed.
        let default_mode = match cli.stall_timeout {
            Some(_) => Mode::Process,
            None => Mode::Thread,
        };
        if cli.stall_timeout.is_some() && cli.mode == Some(Mode::Thread) {
            bail!("--stall-timeout needs --mode process: a single thread cannot be killed");
        }
        if cli.inplace && matches!(overwrite, Overwrite::Older | Overwrite::Never) {
            bail!(
                "--inplace does not go with --overwrite=older or never: these trust every \
                 existing file to be complete"
            );
        }
        let contents = Contents::new(&cli, overwrite)?;
        // `-q` and `-n` say more than the environment.
        let default_progress = match cli.environment.progress {
            Some(When::Always) if cli.quiet || cli.dry_run => When::Never,
            progress => progress.unwrap_or_default(),
        };
        let mpi = MpiSettings::new(&cli)?;
        Ok(Self {
            mpi,
            sources,
            destination,
            mkpath: cli.mkpath,
            mode: cli.mode.unwrap_or(default_mode),
            jobs: cli.jobs.or(cli.environment.jobs).map(usize::from),
            progress: match cli.progress.unwrap_or(default_progress) {
                // With --json it would go to stdout, where only what is asked for goes.
                When::Auto if cli.report.json => false,
                When::Auto => !cli.quiet && !cli.dry_run && std::io::stderr().is_terminal(),
                When::Always => true,
                When::Never => false,
            },
            summary: !cli.quiet,
            verbose: cli.verbose,
            dry_run: cli.dry_run,
            overwrite,
            inplace: cli.inplace,
            filter,
            contents,
            preserve,
            reflink: cli.reflink,
            sparse: cli.sparse,
            changes,
            itemize: cli.changes.itemize_changes,
            links,
            backup,
            mirror,
            dereference: cli.dereference,
            links_as_links,
            one_file_system: cli.one_file_system,
            fsync: cli.fsync,
            stall_timeout: cli.stall_timeout.map(Duration::from_secs),
            stall_warning: Duration::from_secs(cli.stall_warning),
            report: Report::new(cli.report),
            limits: Limits::new(cli.limits)?,
            debug: cli.debug,
        })
    }

    /// Returns true if `-v` or `-n` prints this decision: the changes, and what a dry run leaves
    /// alone only with both.
    pub(crate) fn prints(&self, decision: Decision) -> bool {
        if self.itemize {
            // What a snapshot shares is the same: rsync has no line for it either.
            return decision.changes() && decision != Decision::LinkSame;
        }
        (self.verbose || self.dry_run) && decision.changes() || self.verbose && self.dry_run
    }

    /// Returns true if files may wait for a common sync before they get their times and names.
    ///
    /// A batch succeeds or fails as a whole, after its files were written. Options that are about
    /// single files need each file synced alone.
    pub(crate) fn can_batch(&self) -> bool {
        let has_limits = self.limits.retries > 0 || self.limits.stop_after.is_some();
        let has_lists = self.itemize || self.report.failed_to.is_some();
        // syncfs(2) writes what this machine has, and not what others have.
        let is_alone = self.mode != Mode::Mpi;
        is_alone
            && !(self.contents.reads_everything()
                || self.backup.is_some()
                || has_limits
                || has_lists)
    }

    /// Returns true if entries are named that a filter leaves out.
    pub(crate) fn prints_exclusions(&self) -> bool {
        self.verbose && self.dry_run
    }

    /// Returns true if something at the destination that is in the way of an entry of another type
    /// is removed.
    pub(crate) fn makes_room(&self) -> bool {
        self.mirror.is_some() && self.overwrite != Overwrite::Never
    }

    /// Returns true if workers must know the path of a directory, not only the open directory.
    pub(crate) fn needs_paths(&self) -> bool {
        self.backup
            .as_ref()
            .is_some_and(|backup| backup.dir.is_some())
            || !self.links.snapshots.is_empty()
            || self.links.instead == Some(Linking::Symbolic)
    }

    /// Returns the mode that a new directory has until its final mode is set.
    ///
    /// If modes are kept, only the owner has access while entries are copied. Otherwise the
    /// directory gets the source's permissions, reduced by the umask or a default ACL, as with cp
    /// -r. In both cases the owner has access until the entries are complete.
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
    use crate::environment::Environment;
    use clap::Parser;

    fn config(words: &[&str]) -> Result<Config> {
        Config::new(Cli::try_parse_from([&["pcopy"], words].concat())?)
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
        let flags = |words: &[&str]| {
            config(&[&["a", "b"], words].concat())
                .unwrap()
                .preserve
                .flags
        };
        assert_eq!(flags(&["--preserve=all"]), Keep::No);
        assert_eq!(flags(&["--preserve=flags"]), Keep::Required);
        assert_eq!(
            flags(&["--preserve=flags", "--no-preserve=flags"]),
            Keep::No
        );
        let all = config(&["a", "b", "--preserve=all", "--no-preserve=all"]);
        assert_eq!(all.unwrap().preserve.links, Keep::No);
    }

    #[test]
    fn acls_belong_to_the_mode_and_labels_to_the_attributes() {
        let preserve = |list: &str| config(&["a", "b", list]).map(|config| config.preserve);
        let mode = preserve("--preserve=mode").unwrap();
        assert_eq!((mode.acl, mode.context), (Keep::Required, Keep::BestEffort));
        let acl = preserve("--preserve=acl,context").unwrap();
        assert_eq!((acl.mode, acl.acl), (Keep::BestEffort, Keep::Required));
        assert_eq!((acl.xattr, acl.context), (Keep::BestEffort, Keep::Required));
        let no_label = preserve("--no-preserve=context").unwrap();
        assert_eq!(
            (no_label.xattr, no_label.context),
            (Keep::BestEffort, Keep::No)
        );
        assert_eq!(preserve("--no-preserve=all").unwrap().acl, Keep::No);
        assert!(preserve("--no-preserve=acl").is_err());
        assert!(config(&["a", "b", "--no-preserve=mode", "--preserve=acl"]).is_err());
    }

    #[test]
    fn update_is_overwrite_in_the_words_of_cp() {
        let overwrite = |words: &[&str]| config(&[&["a", "b"], words].concat()).unwrap().overwrite;
        assert_eq!(overwrite(&["-u"]), Overwrite::Older);
        assert_eq!(overwrite(&["--update"]), Overwrite::Older);
        assert_eq!(overwrite(&["--update=none"]), Overwrite::Never);
        assert_eq!(overwrite(&["--update=all"]), Overwrite::Always);
        assert_eq!(overwrite(&["-ruv"]), Overwrite::Older);
        // The last one wins.
        assert_eq!(overwrite(&["-u", "--overwrite=never"]), Overwrite::Never);
        assert_eq!(overwrite(&["--overwrite=never", "-u"]), Overwrite::Older);
        assert!(config(&["a", "b", "--inplace", "-u"]).is_err());
    }

    #[test]
    fn the_environment_is_weaker_than_options() {
        let with = |words: &[&str]| {
            let mut cli = Cli::try_parse_from([&["pcopy", "a", "b"], words].concat()).unwrap();
            cli.environment = Environment {
                jobs: Some(7),
                progress: Some(When::Always),
                ..Environment::default()
            };
            Config::new(cli).unwrap()
        };
        assert_eq!((with(&[]).jobs, with(&[]).progress), (Some(7), true));
        assert_eq!(with(&["-j2"]).jobs, Some(2));
        for words in [&["--progress=never"][..], &["-q"], &["-n"]] {
            assert!(!with(words).progress, "{words:?}");
        }
        assert!(with(&["-q", "--progress=always"]).progress);
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
        let mode = |words: &[&str]| config(&[&["a", "b"], words].concat()).map(|it| it.mode);
        assert_eq!(mode(&[]).unwrap(), Mode::Thread);
        assert_eq!(mode(&["--stall-timeout=5"]).unwrap(), Mode::Process);
        assert!(mode(&["--stall-timeout=5", "--mode=thread"]).is_err());
    }
}
