//! Links instead of copies.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cli::{Cli, Reflink};
use crate::quote::quote;

/// The settings of links.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// Earlier copies. What is the same there becomes a hard link to it.
    pub snapshots: Vec<PathBuf>,
    /// What is made instead of copies.
    pub instead: Option<Linking>,
}

/// What entries of the source become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linking {
    /// Hard links to them.
    Hard,
    /// Symbolic links to them.
    Symbolic,
}

/// Returns the settings of links.
///
/// # Errors
/// If options contradict each other.
pub(super) fn of(cli: &Cli, sources: &[PathBuf]) -> Result<Links> {
    let options = &cli.links;
    let instead = match (options.link, options.symbolic_link) {
        (true, true) => bail!("-l and -s contradict each other: hard links, or symbolic ones"),
        (true, false) => Some(Linking::Hard),
        (false, true) => Some(Linking::Symbolic),
        (false, false) => None,
    };
    let has_snapshots = !options.link_dest.is_empty();
    let name = match instead {
        Some(Linking::Hard) => "-l",
        Some(Linking::Symbolic) => "-s",
        None if has_snapshots => "--link-dest",
        None => return Ok(Links::default()),
    };
    if cli.inplace {
        bail!("{name} does not go with --inplace, which would write through the links");
    }
    if has_snapshots && cli.contents.checksum {
        bail!("--link-dest does not go with -c: snapshots are compared by size and time");
    }
    if cli.contents.manifest.is_some() {
        bail!("{name} does not go with --manifest: a link is made without reading the file");
    }
    if instead.is_some() && has_snapshots {
        bail!("{name} does not go with --link-dest: an entry can be one link only");
    }
    if instead.is_some() && cli.reflink == Reflink::Always {
        bail!("{name} does not go with --reflink=always: nothing is copied");
    }
    if instead == Some(Linking::Symbolic)
        && let Some(source) = sources.iter().find(|source| !source.is_absolute())
    {
        let source = quote(source.as_os_str().as_encoded_bytes());
        bail!(
            "-s needs a SRC that begins with a slash, unlike {source}: links to it lead elsewhere"
        );
    }
    Ok(Links {
        snapshots: options.link_dest.clone(),
        instead,
    })
}
