//! What is removed from the destination.

use anyhow::{Result, bail};

use crate::cli::Cli;
use crate::cli::mirror::Delete;

/// The settings of `--delete`.
#[derive(Clone, Copy, Debug)]
pub struct Mirror {
    /// An empty source empties the destination.
    pub force: bool,
    /// The most entries that are removed.
    pub limit: Option<u64>,
    /// Entries that a filter excludes are removed too.
    pub excluded: bool,
}

/// Returns the settings of deletion, if it is wanted.
///
/// # Errors
/// If it is not clear what the mirror of what is.
pub(super) fn of(cli: &Cli, sources: usize) -> Result<Option<Mirror>> {
    let options = &cli.mirror;
    let delete = match options.delete {
        None if options.delete_excluded => Delete::Safe,
        None if options.max_delete.is_some() => bail!("--max-delete needs --delete"),
        None => return Ok(None),
        Some(delete) => delete,
    };
    if cli.duplicate.is_some() {
        bail!("--delete does not go with --duplicate: a new copy has nothing to remove");
    }
    if sources != 1 {
        bail!("--delete takes one SRC, a directory, and these are {sources}");
    }
    let filters = &cli.filters;
    for (is_given, name) in [
        (filters.gitignore, "--gitignore"),
        (filters.exclude_caches, "--exclude-caches"),
        (
            !filters.exclude_if_present.is_empty(),
            "--exclude-if-present",
        ),
        (filters.files_from.is_some(), "--files-from"),
        (filters.parents, "--parents"),
    ] {
        if is_given {
            bail!(
                "--delete does not go with {name}: only the rules of --exclude and --include say \
                 what may be deleted"
            );
        }
    }
    Ok(Some(Mirror {
        force: delete == Delete::Force,
        limit: options.max_delete,
        excluded: options.delete_excluded,
    }))
}
