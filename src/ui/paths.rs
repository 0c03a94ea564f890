//! An entry's path as the user knows it: it begins with the path on the command line.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::config::own_name;
use crate::fs::path::{Name, RelPath};
use crate::targets::Target;

/// The side of a target that an entry is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// Returns the word for it in messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Returns the path of an entry in a target's directory, or of the directory itself.
pub(super) fn path_of(side: Side, target: &Target, dir: &RelPath, name: Option<&Name>) -> Vec<u8> {
    let name = name.map(Name::as_bytes);
    let (root, name) = match (side, &target.single) {
        (Side::Source, _) => (&target.source_path, name),
        // A single file may have another name at the destination.
        (Side::Destination, Some(single)) => {
            let name = name.and(Some(single.to.as_bytes()));
            (&target.destination_path, name)
        }
        (Side::Destination, None) => (&target.destination_path, name),
    };
    let root = root.as_os_str().as_bytes();
    join(root, [dir.as_bytes(), name.unwrap_or_default()])
}

/// Returns the path of an entry relative to its source. If there are several sources, it is relative
/// to the directory that the source is in, so that it begins with the name of the source.
pub(super) fn relative_path(
    targets: &[Target],
    target: u32,
    dir: &RelPath,
    name: Option<&Name>,
) -> Vec<u8> {
    let Target {
        source_path,
        single,
        ..
    } = &targets[target as usize];
    let source = own_name(source_path).map_or(&b""[..], OsStr::as_bytes);
    let root = match single {
        None if targets.len() > 1 => source,
        _ => b"",
    };
    let of_single = single.as_ref().map(|single| single.from.as_bytes());
    let name = name.map(Name::as_bytes).or(of_single).unwrap_or_default();
    match join(root, [dir.as_bytes(), name]) {
        path if path.is_empty() => b".".to_vec(),
        path => path,
    }
}

/// Returns the path where a run copies to: the copy of its one source, or the directory that all
/// sources land in.
pub(super) fn destination(targets: &[Target]) -> Vec<u8> {
    let Some(first) = targets.first() else {
        return Vec::new();
    };
    let path = first.destination_path.as_path();
    let path = match (&first.single, targets.len()) {
        (Some(single), 1) => path.join(OsStr::from_bytes(single.to.as_bytes())),
        (None, 2..) if !first.lands_in => path.parent().unwrap_or(path).to_owned(),
        _ => path.to_owned(),
    };
    // The directory where pcopy runs has no name in a relative path.
    match path.as_os_str().as_bytes() {
        b"" => b".".to_vec(),
        path => path.to_vec(),
    }
}

pub(super) fn join(root: &[u8], parts: [&[u8]; 2]) -> Vec<u8> {
    let mut path = root.to_vec();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if !path.is_empty() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_slash_between_its_parts() {
        for (root, parts, path) in [
            ("src", ["", ""], "src"),
            ("src", ["", "a"], "src/a"),
            ("src", ["dir", ""], "src/dir"),
            ("src/", ["dir", "a"], "src/dir/a"),
            ("/", ["", "etc"], "/etc"),
            ("", ["dir", "a"], "dir/a"),
        ] {
            let joined = join(root.as_bytes(), parts.map(str::as_bytes));
            assert_eq!(joined, path.as_bytes());
        }
    }
}
