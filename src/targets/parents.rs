//! `--parents`: sources that keep their path as it is named.
//!
//! Sources below one directory are a list of paths in it, as with `--files-from`, and each is
//! copied whole. They land in DST, which is left as it is.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{self, FileType, Mode, OFlags};

use super::resolve::{Resolved, quote_path};
use crate::config::{Config, Destination, normalize};
use crate::filter::Selection;
use crate::fs::open::DIRECTORY;
use crate::protocol::error::Reason;
use crate::quote::quote;

/// The sources below one directory.
#[derive(Default)]
struct Group {
    paths: Vec<Vec<u8>>,
    /// Those that are directories.
    dirs: Vec<Arc<OwnedFd>>,
}

/// Finds all sources and decides where they go. Nothing is created yet.
pub(super) fn resolve(config: &Config) -> Result<Vec<Resolved>> {
    let (Destination::Path(destination)
    | Destination::Exactly(destination)
    | Destination::Directory(destination)) = &config.destination
    else {
        bail!("--parents needs a destination");
    };
    let mut order = Vec::new();
    let mut groups: HashMap<PathBuf, Group> = HashMap::new();
    // The first names at the destination, each with the directory that it comes from.
    let mut landings: HashMap<Vec<u8>, PathBuf> = HashMap::new();
    for source in &config.sources {
        let cannot = || format!("cannot copy {}", quote_path(source));
        let (root, path) = split(source).with_context(cannot)?;
        let dir = examine(source, &root, &path, config).with_context(cannot)?;
        let first = path.split(|&byte| byte == b'/').next().unwrap_or_default();
        let landing = landings
            .entry(first.to_vec())
            .or_insert_with(|| root.clone());
        if *landing != root {
            let name = Path::new(OsStr::from_bytes(first));
            bail!(
                "{} and {} would both become {}",
                quote_path(&landing.join(name)),
                quote_path(&root.join(name)),
                quote_path(&destination.join(name))
            );
        }
        if !groups.contains_key(&root) {
            order.push(root.clone());
        }
        let group = groups.entry(root).or_default();
        group.paths.push(path);
        group.dirs.extend(dir.map(Arc::new));
    }
    order
        .into_iter()
        .map(|root| {
            let group = groups.remove(&root).unwrap_or_default();
            group.resolve(&root, destination)
        })
        .collect()
}

impl Group {
    fn resolve(self, root: &Path, destination: &Path) -> Result<Resolved> {
        let opened = match root.as_os_str().as_bytes() {
            b"" => Path::new("."),
            _ => root,
        };
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let source = fs::open(opened, flags, Mode::empty())
            .map_err(Reason::from)
            .with_context(|| format!("cannot copy from {}", quote_path(opened)))?;
        let paths = self.paths.iter().map(Vec::as_slice);
        let selection = match Selection::new(paths, true) {
            Ok(selection) => selection,
            Err(outside) => bail!("cannot copy {outside}"),
        };
        Ok(Resolved {
            stat: fs::fstat(&source).map_err(Reason::from)?,
            source: Arc::new(source),
            source_path: root.to_owned(),
            destination: normalize(destination),
            is_named: true,
            single: None,
            selection: Some(Arc::new(selection)),
            lands_in: true,
            whole_dirs: self.dirs,
        })
    }
}

/// Splits a source into a directory and the path below it that the copy keeps. That begins after
/// `/./`, if the source has it.
fn split(source: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let bytes = source.as_os_str().as_bytes();
    let mark = bytes.windows(3).position(|part| part == b"/./");
    let (root, path) = match mark {
        Some(0) => (&b"/"[..], &bytes[3..]),
        Some(at) => (&bytes[..at], &bytes[at + 3..]),
        None if bytes.starts_with(b"/") => (&b"/"[..], &bytes[1..]),
        None => (&b""[..], bytes),
    };
    let names = path.split(|&byte| byte == b'/');
    let names: Vec<&[u8]> = names.filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        bail!("its path has .. in it, so it cannot be kept below the destination");
    }
    if names.is_empty() {
        bail!("it has no path that could be kept below the destination");
    }
    Ok((OsStr::from_bytes(root).into(), names.join(&b'/')))
}

/// Looks at a source. Returns the directory, if it is one.
fn examine(source: &Path, root: &Path, path: &[u8], config: &Config) -> Result<Option<OwnedFd>> {
    let stat = match config.dereference {
        true => fs::stat(source),
        false => fs::lstat(source),
    };
    let stat = stat.map_err(Reason::from)?;
    let mut on_the_way = root.to_owned();
    let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    for (at, name) in names.iter().enumerate() {
        on_the_way.push(OsStr::from_bytes(name));
        let is_last = at + 1 == names.len();
        if config.dereference || is_last && config.links_as_links {
            continue;
        }
        let stat = fs::lstat(&on_the_way).map_err(Reason::from)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let link = quote(on_the_way.as_os_str().as_bytes());
            bail!("{link} is a symbolic link; --parents follows it only with -L");
        }
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(None);
    }
    let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
    let dir = fs::open(source, flags, Mode::empty()).map_err(Reason::from)?;
    Ok(Some(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_keeps_its_path_below_a_mark() {
        for (source, root, path) in [
            ("a", "", "a"),
            ("./a//b/", "", "a/b"),
            ("/a/b", "/", "a/b"),
            ("a/b/./c/./d", "a/b", "c/d"),
            ("/./a", "/", "a"),
            ("../a/./b", "../a", "b"),
        ] {
            let split = split(Path::new(source)).unwrap();
            assert_eq!(split, (root.into(), path.into()), "{source}");
        }
        for source in [".", "/", "a/./", "..", "a/../b", "../a"] {
            assert!(split(Path::new(source)).is_err(), "{source}");
        }
    }
}
