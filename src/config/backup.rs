//! How what is replaced is kept.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::cli::Cli;
use crate::environment::Control;

/// The settings of backups.
#[derive(Clone, Debug)]
pub struct Backup {
    /// How they are named.
    pub naming: BackupNaming,
    /// What simple backups end in. Empty only in a directory of their own.
    pub suffix: Vec<u8>,
    /// The directory that they are moved to, if it is not that of the entry.
    pub dir: Option<PathBuf>,
}

/// How backups are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupNaming {
    /// With the suffix.
    Simple,
    /// With a number.
    Numbered,
    /// With a number if there are such backups of that name.
    Existing,
}

/// Returns the settings of backups, if they are wanted.
///
/// # Errors
/// If options contradict each other.
pub(super) fn of(cli: &Cli) -> Result<Option<Backup>> {
    let options = &cli.backups;
    let has_dir = options.backup_dir.is_some();
    if options.backup.is_none() && options.suffix.is_none() && !has_dir {
        return Ok(None);
    }
    let control = match options.backup.flatten() {
        Some(control) => control,
        None if has_dir => Control::Simple,
        None => cli.environment.version_control.unwrap_or(Control::Existing),
    };
    let naming = match control {
        Control::None => return Ok(None),
        Control::Numbered if has_dir => bail!(
            "--backup=numbered does not go with --backup-dir, which keeps one of each name: a DIR \
             for each run keeps more"
        ),
        Control::Existing if !has_dir => BackupNaming::Existing,
        Control::Numbered => BackupNaming::Numbered,
        Control::Simple | Control::Existing => BackupNaming::Simple,
    };
    if cli.inplace {
        bail!("--inplace does not go with --backup: it overwrites what is to be kept");
    }
    if has_dir && cli.duplicate.is_some() {
        bail!("--backup-dir does not go with --duplicate, which replaces nothing");
    }
    let suffix = match &options.suffix {
        Some(suffix) => suffix.as_bytes().to_vec(),
        None if has_dir => Vec::new(),
        None => match &cli.environment.backup_suffix {
            Some(suffix) => suffix.as_bytes().to_vec(),
            None => b"~".to_vec(),
        },
    };
    if suffix.contains(&b'/') || suffix.is_empty() && !has_dir {
        bail!("--suffix: the suffix must not be empty, and must contain no slash");
    }
    let dir = options.backup_dir.clone();
    Ok(Some(Backup {
        naming,
        suffix,
        dir,
    }))
}
