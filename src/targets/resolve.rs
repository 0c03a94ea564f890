//! Resolves the paths of the command line: what each source is, and where it goes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use super::stream;
use crate::config::{Config, Destination};
use crate::fs::open::DIRECTORY;
use crate::fs::path::Kind;
use crate::protocol::error::Reason;
use crate::quote::quote;

/// A source that is not a directory.
pub(crate) struct SingleFile {
    pub(crate) kind: Kind,
    /// Its name at the source.
    pub(crate) from: CString,
    /// Its name at the destination.
    pub(crate) to: CString,
    /// Set if it is to be read like a pipe.
    pub(crate) stream: Option<OwnedFd>,
}

/// A source that was found, and where it goes.
pub(super) struct Resolved {
    /// The source directory. For a single file, the directory that contains it.
    pub(super) source: Arc<OwnedFd>,
    /// The path of that directory, for messages.
    pub(super) source_path: PathBuf,
    /// What the path on the command line leads to.
    pub(super) stat: Stat,
    /// The destination directory, which may not exist yet.
    pub(super) destination: PathBuf,
    pub(super) single: Option<SingleFile>,
}

/// Finds all sources and decides where they go. Nothing is created yet.
pub(super) fn resolve(config: &Config) -> Result<Vec<Resolved>> {
    let mut all = Vec::with_capacity(config.sources.len());
    let mut parents = HashMap::new();
    // A map, because a `*` can stand for very many files.
    let mut landings = HashMap::with_capacity(config.sources.len());
    for path in &config.sources {
        let resolved = resolve_one(path, config, &mut parents)
            .with_context(|| format!("cannot copy {}", quote_path(path)))?;
        let landing = match &resolved.single {
            Some(single) => {
                let name = OsStr::from_bytes(single.to.as_bytes());
                resolved.destination.join(name)
            }
            None => resolved.destination.clone(),
        };
        match landings.entry(landing) {
            Entry::Vacant(free) => free.insert(path),
            Entry::Occupied(taken) => bail!(
                "{} and {} would both become {}",
                quote_path(taken.get()),
                quote_path(path),
                quote_path(taken.key())
            ),
        };
        all.push(resolved);
    }
    Ok(all)
}

/// Opens one source. Symbolic links on the command line are followed, unless options say otherwise.
fn resolve_one(path: &Path, config: &Config, parents: &mut Parents) -> Result<Resolved> {
    let destination = &config.destination;
    // Not by opening it: opening a special file can block, or have effects.
    let stat = if config.links_as_links {
        fs::lstat(path)
    } else {
        fs::stat(path)
    };
    let stat = stat.map_err(Reason::from)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        resolve_dir(path, destination)
    } else {
        resolve_single(path, stat, destination, parents)
    }
}

fn resolve_dir(path: &Path, destination: &Destination) -> Result<Resolved> {
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    let source = fs::open(path, flags, Mode::empty()).map_err(Reason::from)?;
    Ok(Resolved {
        // Again, since opening an automount point mounts it, and stat(2) does not.
        stat: fs::fstat(&source).map_err(Reason::from)?,
        source: Arc::new(source),
        source_path: path.to_owned(),
        destination: match destination {
            Destination::Path(path) => path.clone(),
            Destination::Directory(parent) => parent.join(own_name(path)?),
        },
        single: None,
    })
}

/// The directories of single files, each opened once.
type Parents = HashMap<PathBuf, Arc<OwnedFd>>;

fn resolve_single(
    path: &Path,
    stat: Stat,
    destination: &Destination,
    parents: &mut Parents,
) -> Result<Resolved> {
    let stream = stream::open(path, &stat)?;
    let is_link_itself = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let real = match path.file_name() {
        Some(name) if is_link_itself || stream.is_some() => {
            parent_of(path).canonicalize()?.join(name)
        }
        // If the path is a link, the name of the file that it leads to.
        _ => path.canonicalize()?,
    };
    let (Some(parent), Some(from)) = (real.parent(), real.file_name()) else {
        bail!("it has no parent directory");
    };
    let source = match parents.get(parent) {
        Some(source) => Arc::clone(source),
        None => {
            let opened = fs::open(parent, DIRECTORY, Mode::empty()).map_err(Reason::from)?;
            let opened = Arc::new(opened);
            parents.insert(parent.to_owned(), Arc::clone(&opened));
            opened
        }
    };
    let (destination, to) = match destination {
        Destination::Directory(dir) => (dir.clone(), own_name(path)?),
        // A copied link may lead to a directory. The second run must not land in that.
        Destination::Path(dir)
            if dir.is_dir() && !(is_link_itself && is_link(dir)) || ends_in_slash(dir) =>
        {
            (dir.clone(), own_name(path)?)
        }
        Destination::Path(target) => {
            let kind = match &stream {
                Some(_) => FileType::RegularFile,
                None => FileType::from_raw_mode(stat.st_mode),
            };
            split_target(target, kind)?
        }
    };
    let kind = match &stream {
        Some(_) => Kind::File,
        None => Kind::of(FileType::from_raw_mode(stat.st_mode)),
    };
    Ok(Resolved {
        source,
        source_path: path.parent().unwrap_or(Path::new("")).to_owned(),
        stat,
        destination,
        single: Some(SingleFile {
            kind,
            from: to_c_string(from),
            to: to_c_string(&to),
            stream,
        }),
    })
}

/// Splits the path that a single file becomes into its directory and its name.
fn split_target(target: &Path, source: FileType) -> Result<(PathBuf, OsString)> {
    // A link on the command line is followed, so the file that it leads to is replaced. But a link
    // that is copied as a link replaces a link.
    let target = match target.canonicalize() {
        _ if source == FileType::Symlink && is_link(target) => target.to_owned(),
        Ok(real) => real,
        Err(_) if is_link(target) => bail!(
            "{} is a symbolic link to nothing; remove it first to put a file in its place",
            quote_path(target)
        ),
        Err(_) => target.to_owned(),
    };
    refuse_special(&target, source)?;
    match target.file_name() {
        Some(name) => Ok((parent_of(&target), name.to_owned())),
        None => bail!("{} does not end in a name", quote_path(&target)),
    }
}

/// Refuses to replace a device, FIFO or socket by something else.
///
/// Someone who names a device as DST expects the data to be written to it.
fn refuse_special(target: &Path, source: FileType) -> Result<()> {
    let existing = fs::lstat(target).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match existing {
        Ok(kind) if kind == source => Ok(()),
        Ok(
            FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo | FileType::Socket,
        ) => bail!(
            "{} is a device, FIFO or socket; remove it first to put a file in its place",
            quote_path(target)
        ),
        _ => Ok(()),
    }
}

/// Returns the name under which a source lands in a directory of several.
///
/// It is the last name of the path, or of the real path if that is `.` or `..`.
fn own_name(path: &Path) -> Result<OsString> {
    let name = match path.file_name() {
        Some(name) if !path.as_os_str().as_bytes().ends_with(b"/.") => Some(name.to_owned()),
        _ => path.canonicalize()?.file_name().map(ToOwned::to_owned),
    };
    name.ok_or_else(|| anyhow!("the root directory has no name; copy it alone, without -t"))
}

/// Returns the directory that the last name of a path is in.
pub(super) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

pub(super) fn is_link(path: &Path) -> bool {
    fs::lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn to_c_string(name: &OsStr) -> CString {
    CString::new(name.as_bytes()).unwrap_or_default()
}

pub(super) fn quote_path(path: &Path) -> String {
    quote(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_lands_under_its_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("a/b")).unwrap();
        let name = |path: &str| own_name(&real.join(path)).unwrap();
        assert_eq!(name("a/b"), "b");
        assert_eq!(name("a/b/"), "b");
        assert_eq!(name("a/b/."), "b");
        assert_eq!(name("a/b/.."), "a");
        assert!(own_name(Path::new("/")).is_err());
    }

    #[test]
    fn a_path_without_a_slash_is_in_the_current_directory() {
        assert_eq!(parent_of(Path::new("a")), Path::new("."));
        assert_eq!(parent_of(Path::new("a/b/")), Path::new("a"));
        assert_eq!(parent_of(Path::new("/")), Path::new("."));
    }
}
