//! Directories beside the destination: those of `--backup-dir` and `--link-dest`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, Mode};
use rustix::io::Errno;

use super::mounts::Mounts;
use super::overlap::Overlap;
use super::resolve::{Resolved, parent_of, quote_path};
use super::{create_dir, missing_parents, open_followed, sync_parent};
use crate::config::{Config, Destination, normalize};
use crate::fs::path::RelPath;
use crate::fs::stat::FileId;
use crate::protocol::error::Reason;

/// Directories that a run uses beside its sources and destinations.
#[derive(Default)]
pub(super) struct Beside {
    /// The directory of `--backup-dir`.
    pub(super) backup: Option<Arc<OwnedFd>>,
    /// The directories of `--link-dest`.
    pub(super) snapshots: Vec<Arc<OwnedFd>>,
    /// Those that do not exist.
    pub(super) missing: Vec<PathBuf>,
    ids: Vec<FileId>,
}

impl Beside {
    /// Opens and creates the directories. `named` is what relative paths are relative to.
    pub(super) fn open(
        config: &Config,
        named: &Path,
        root: Option<Arc<OwnedFd>>,
        overlap: &Overlap,
        mounts: &Mounts,
    ) -> Result<Self> {
        let mut beside = Self::default();
        if let Some(dir) = config.backup.as_ref().and_then(|it| it.dir.as_ref()) {
            let path = relative_to(named, dir);
            let cannot = || format!("--backup-dir: {}", quote_path(&path));
            overlap
                .refuse_nesting(mounts, &path, false)
                .with_context(cannot)?;
            let backup = open_backup_dir(&path, config)
                .map_err(Reason::from)
                .with_context(cannot)?;
            if let (Some(backup), Some(root)) = (&backup, &root) {
                let (backup, root) = (id_of(backup)?, id_of(root)?);
                if backup == root {
                    bail!("--backup-dir: {} is DST itself", quote_path(&path));
                }
                if backup.dev != root.dev {
                    bail!(
                        "--backup-dir: {} is on another file system than DST, so nothing can be \
                         moved there",
                        quote_path(&path)
                    );
                }
                beside.ids.push(backup);
            }
            beside.backup = backup.map(Arc::new);
        }
        for dir in &config.links.snapshots {
            beside.add_snapshot(relative_to(named, dir), &root)?;
        }
        Ok(beside)
    }

    fn add_snapshot(&mut self, path: PathBuf, root: &Option<Arc<OwnedFd>>) -> Result<()> {
        let cannot = || format!("--link-dest: {}", quote_path(&path));
        let snapshot = match open_followed(&path) {
            // The first snapshot has none before it.
            Err(Errno::NOENT) => {
                self.missing.push(path);
                return Ok(());
            }
            result => result.map_err(Reason::from).with_context(cannot)?,
        };
        let id = id_of(&snapshot)?;
        if let Some(root) = root {
            let root = id_of(root)?;
            if id == root {
                bail!("--link-dest: {} is DST itself", quote_path(&path));
            }
            if id.dev != root.dev {
                bail!(
                    "--link-dest: {} is on another file system than DST, so nothing can be linked",
                    quote_path(&path)
                );
            }
        }
        self.ids.push(id);
        self.snapshots.push(Arc::new(snapshot));
        Ok(())
    }

    /// Makes it of directories that are open.
    pub(super) fn of_opened(
        backup: Option<Arc<OwnedFd>>,
        snapshots: Vec<Arc<OwnedFd>>,
    ) -> Result<Self> {
        let ids = backup.iter().chain(&snapshots).map(id_of);
        Ok(Self {
            ids: ids.collect::<Result<_>>()?,
            backup,
            snapshots,
            missing: Vec::new(),
        })
    }

    /// Returns true if this is one of the directories.
    pub(super) fn has(&self, dir: FileId) -> bool {
        self.ids.contains(&dir)
    }
}

/// Returns the directory that the command line names as DST, or the one that a file lands in.
pub(super) fn named_directory(config: &Config, sources: &[Resolved]) -> PathBuf {
    match (&config.destination, sources.first()) {
        (Destination::Directory(dir), _) => dir.clone(),
        (_, Some(source)) => source.destination.clone(),
        (_, None) => PathBuf::new(),
    }
}

/// Returns the path of a destination below the directory that the command line names.
pub(super) fn path_below(named: &Path, destination: &Path) -> RelPath {
    let below = destination.strip_prefix(named).unwrap_or(Path::new(""));
    let names = below.components();
    names.fold(RelPath::default(), |path, name| {
        path.join(name.as_os_str().as_bytes())
    })
}

/// Returns the path of a directory that options name: relative to DST, as with rsync.
fn relative_to(named: &Path, dir: &Path) -> PathBuf {
    let mut dir = normalize(dir);
    let mut named = named.to_owned();
    // Below a DST that does not exist, `..` leads nowhere. A dry run does not create DST.
    while !named.exists()
        && let Ok(rest) = dir.strip_prefix("..")
    {
        dir = rest.to_owned();
        named = parent_of(&named);
    }
    named.join(dir)
}

fn open_backup_dir(path: &Path, config: &Config) -> rustix::io::Result<Option<OwnedFd>> {
    if !config.dry_run {
        let create = |path: &Path, mode| {
            if create_dir(path, mode)? && config.fsync {
                sync_parent(path)?;
            }
            Ok(())
        };
        if config.mkpath {
            for parent in missing_parents(path).iter().rev() {
                create(parent, Mode::from_raw_mode(0o777))?;
            }
        }
        // What it keeps may be private, and its directories get the modes of those of DST.
        create(path, Mode::RWXU)?;
    }
    match open_followed(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) if config.dry_run && parent_of(path).exists() => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn id_of(dir: impl AsFd) -> Result<FileId> {
    Ok(FileId::of(&fs::fstat(dir).map_err(Reason::from)?))
}
