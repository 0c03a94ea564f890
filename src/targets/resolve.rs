//! Resolves the paths of the command line to open sources and destination paths.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::stream;
use crate::config::{Config, Destination, normalize, own_name};
use crate::filter::Selection;
use crate::fs::open::DIRECTORY;
use crate::fs::path::Kind;
use crate::protocol::error::Reason;
use crate::quote::quote;

/// A source that is not a directory.
pub(crate) struct SingleFile {
    pub(crate) kind: Kind,
    /// Its name at the source.
    pub(crate) from: CString,
    /// The name by which the command line names it: it may be a link.
    pub(crate) named: CString,
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
    /// The stat of the entry that the path leads to.
    pub(super) stat: Stat,
    /// The destination directory, which may not exist yet.
    pub(super) destination: PathBuf,
    /// The command line names that directory itself, so it may be a link.
    pub(super) is_named: bool,
    pub(super) single: Option<SingleFile>,
    /// Only these paths below the source are copied.
    pub(super) selection: Option<Arc<Selection>>,
    /// The sources land in the destination, which is no copy itself.
    pub(super) lands_in: bool,
    /// The directories in the selection that are copied with everything in them.
    pub(super) whole_dirs: Vec<Arc<OwnedFd>>,
}

/// Finds all sources and decides where they go. Nothing is created yet.
pub(super) fn resolve(config: &Config, selection: Option<Selection>) -> Result<Vec<Resolved>> {
    if let Some(selection) = selection {
        return resolve_selection(config, selection);
    }
    let mut all = Vec::with_capacity(config.sources.len());
    let mut parents = HashMap::new();
    // A map, because a `*` can stand for very many files.
    let mut landings = HashMap::with_capacity(config.sources.len());
    let lands_in = matches!(config.destination, Destination::Directory(_));
    for path in &config.sources {
        if lands_in && config.sources.len() > 1 && own_name(path).is_none() {
            bail!(
                "cannot copy {}: it has no name of its own; copy it alone, or write its name",
                quote_path(path)
            );
        }
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

/// Finds the one source that a list has paths of.
fn resolve_selection(config: &Config, selection: Selection) -> Result<Vec<Resolved>> {
    let [path] = config.sources.as_slice() else {
        bail!(
            "--files-from takes one SRC, and these are {}",
            config.sources.len()
        );
    };
    let mut resolved = resolve_one(path, config, &mut HashMap::new())
        .with_context(|| format!("cannot copy {}", quote_path(path)))?;
    if resolved.single.is_some() {
        bail!(
            "cannot copy {}: --files-from needs a directory as SRC",
            quote_path(path)
        );
    }
    if config.filter.recursive {
        resolved.whole_dirs.push(Arc::clone(&resolved.source));
    }
    resolved.selection = Some(Arc::new(selection));
    Ok(vec![resolved])
}

/// Refuses a destination below something that is not a directory.
pub(super) fn refuse_below_file(destination: &Destination) -> Result<()> {
    let (Destination::Path(path) | Destination::Exactly(path) | Destination::Directory(path)) =
        destination
    else {
        return Ok(());
    };
    let above = normalize(path);
    for above in above.ancestors().skip(1) {
        match fs::stat(above) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => bail!(
                "cannot create the destination {}: {} is not a directory",
                quote_path(path),
                quote_path(above)
            ),
            // Other errors are reported when the destination is opened.
            _ => break,
        }
    }
    Ok(())
}

/// Refuses a destination if more than its last component is missing. A disk that is not
/// mounted looks so, and the copy must not fill the one below it.
pub(super) fn refuse_missing_parent(destination: &Destination) -> Result<()> {
    let (Destination::Path(path) | Destination::Exactly(path) | Destination::Directory(path)) =
        destination
    else {
        return Ok(());
    };
    // Other errors are reported when the destination is opened.
    let is_missing = |path: &Path| matches!(path.try_exists(), Ok(false)) && !is_link(path);
    let normal = normalize(path);
    if !is_missing(&normal) || !is_missing(&parent_of(&normal)) {
        return Ok(());
    }
    let mut missing = parent_of(&normal);
    loop {
        let parent = parent_of(&missing);
        if parent == missing || !is_missing(&parent) {
            break;
        }
        missing = parent;
    }
    bail!(
        "cannot create the destination {}: there is no {}; --mkpath creates missing directories",
        quote_path(path),
        quote_path(&missing)
    )
}

/// Refuses a copy beside its source if there is something of its name already.
fn refuse_existing(path: &Path) -> Result<()> {
    match fs::lstat(path) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => bail!("{}: {}", quote_path(path), Reason::from(errno)),
        Ok(_) => bail!(
            "{} exists; remove it first, or choose another ending with --duplicate=ENDING",
            quote_path(path)
        ),
    }
}

/// Opens one source. Symbolic links on the command line are followed, unless options say otherwise.
fn resolve_one(path: &Path, config: &Config, parents: &mut Parents) -> Result<Resolved> {
    let destination = &config.destination;
    // The path is not opened: opening a special file can block or have side effects.
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
    let (destination, is_named) = match destination {
        Destination::Path(path) => (path.clone(), true),
        Destination::Exactly(path) => (normalize(path), true),
        Destination::Directory(parent) => match own_name(path) {
            Some(name) => (parent.join(name), false),
            // `.`, `..` and `/` have no name under which they could land.
            None => (parent.clone(), true),
        },
        Destination::Beside(ending) => {
            let (parent, name) = beside(path, ending)?;
            let path = parent.join(name);
            refuse_existing(&path)?;
            (path, false)
        }
    };
    Ok(Resolved {
        // Again, since opening an automount point mounts it, and stat(2) does not.
        stat: fs::fstat(&source).map_err(Reason::from)?,
        source: Arc::new(source),
        source_path: path.to_owned(),
        destination,
        is_named,
        single: None,
        selection: None,
        lands_in: false,
        whole_dirs: Vec::new(),
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
        bail!("path has no parent directory");
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
        Destination::Directory(dir) => (dir.clone(), name_of_file(path)?),
        // A copied link may lead to a directory. The second run must not land in that.
        Destination::Path(dir) if dir.is_dir() && !(is_link_itself && is_link(dir)) => {
            (dir.clone(), name_of_file(path)?)
        }
        Destination::Beside(ending) => {
            let (parent, name) = beside(path, ending)?;
            refuse_existing(&parent.join(&name))?;
            (parent, name)
        }
        Destination::Path(dst) | Destination::Exactly(dst) => {
            if dst.as_os_str().as_bytes().ends_with(b"/") {
                bail!(
                    "{} ends in a slash, but it would become a file",
                    quote_path(dst)
                );
            }
            if dst.is_dir() && !is_link(dst) {
                bail!(
                    "{} is a directory; without -T it lands in it",
                    quote_path(dst)
                );
            }
            let kind = match &stream {
                Some(_) => FileType::RegularFile,
                None => FileType::from_raw_mode(stat.st_mode),
            };
            split_destination(dst, kind)?
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
        is_named: true,
        single: Some(SingleFile {
            kind,
            from: to_c_string(from),
            named: to_c_string(own_name(path).unwrap_or(from)),
            to: to_c_string(&to),
            stream,
        }),
        selection: None,
        lands_in: false,
        whole_dirs: Vec::new(),
    })
}

/// Splits the path that a single file becomes into its directory and its name.
fn split_destination(dst: &Path, source: FileType) -> Result<(PathBuf, OsString)> {
    // A link on the command line is followed, so the file that it leads to is replaced. But a link
    // that is copied as a link replaces a link.
    let dst = match dst.canonicalize() {
        _ if source == FileType::Symlink && is_link(dst) => dst.to_owned(),
        Ok(real) => real,
        Err(_) if is_link(dst) => bail!(
            "{} is a symbolic link to nothing; remove it first to put a file in its place",
            quote_path(dst)
        ),
        Err(_) => dst.to_owned(),
    };
    refuse_special(&dst, source)?;
    match dst.file_name() {
        Some(name) => Ok((parent_of(&dst), name.to_owned())),
        None => bail!("{} does not end in a name", quote_path(&dst)),
    }
}

/// Refuses to replace a device, FIFO or socket by something else.
///
/// A user who names a device as DST expects the data to be written to it.
fn refuse_special(dst: &Path, source: FileType) -> Result<()> {
    let existing = fs::lstat(dst).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match existing {
        Ok(kind) if kind == source => Ok(()),
        Ok(
            FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo | FileType::Socket,
        ) => bail!(
            "{} is a device, FIFO or socket; remove it first to put a file in its place",
            quote_path(dst)
        ),
        _ => Ok(()),
    }
}

/// Returns the name under which a file lands in a directory.
fn name_of_file(path: &Path) -> Result<OsString> {
    match own_name(path) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("it has no name"),
    }
}

/// Returns the directory and the name of a copy beside its source.
fn beside(source: &Path, ending: &OsStr) -> Result<(PathBuf, OsString)> {
    let (parent, name) = match own_name(source) {
        Some(name) => (parent_of(source), name.to_owned()),
        // `.` or `..`: the directory has a name all the same.
        None => {
            let real = source.canonicalize()?;
            let Some(name) = real.file_name() else {
                bail!("nothing can be beside the root directory");
            };
            (parent_of(&real), name.to_owned())
        }
    };
    let mut name = name;
    name.push(ending);
    Ok((parent, name))
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
    fn a_copy_beside_its_source_has_an_ending() {
        let ending = OsStr::new("~");
        let beside = |path: &str| beside(Path::new(path), ending).unwrap();
        assert_eq!(beside("a"), (".".into(), "a~".into()));
        assert_eq!(beside("a/b//"), ("a".into(), "b~".into()));
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("a/b")).unwrap();
        let in_a = real.join("a/b/..");
        assert_eq!(beside(in_a.to_str().unwrap()), (real, "a~".into()));
        assert!(super::beside(Path::new("/"), ending).is_err());
    }

    #[test]
    fn a_path_without_a_slash_is_in_the_current_directory() {
        assert_eq!(parent_of(Path::new("a")), Path::new("."));
        assert_eq!(parent_of(Path::new("a/b/")), Path::new("a"));
        assert_eq!(parent_of(Path::new("/")), Path::new("."));
    }
}
