//! Sources that are descriptors: `/dev/stdin`, `/dev/fd/N`, the `<(...)` of a shell.
//!
//! Their data is read once, to its end. A FIFO or device with a path of its own is copied as a FIFO
//! or device, like those in a tree.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Result;
use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use crate::fs::sys;
use crate::protocol::error::Reason;

/// Opens a path that names a descriptor to be read like a pipe. `None` for any other path.
///
/// This happens before any worker is forked: workers have other descriptors.
pub(super) fn open(path: &Path, stat: &Stat) -> Result<Option<OwnedFd>> {
    let Some(descriptor) = Descriptor::parse(path) else {
        return Ok(None);
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice => {}
        // The file of a here-document has no name any more. Others are copied by their name.
        FileType::RegularFile if stat.st_nlink == 0 => {}
        _ => return Ok(None),
    }
    let opened = match descriptor {
        // A regular file is opened by its path, and so read from its start. A socket has no such
        // path, and opening a FIFO would wait for a writer that may have ended.
        Descriptor::Own(number) if kind != FileType::RegularFile => sys::duplicate(number),
        _ => fs::open(
            path,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        ),
    };
    Ok(Some(opened.map_err(Reason::from)?))
}

/// A descriptor that a path names.
#[derive(Debug, PartialEq, Eq)]
enum Descriptor {
    /// Of this process.
    Own(i32),
    OfOther,
}

impl Descriptor {
    fn parse(path: &Path) -> Option<Self> {
        let path = path.to_str()?;
        if path == "/dev/stdin" {
            return Some(Self::Own(0));
        }
        let (process, number) = match path.strip_prefix("/dev/fd/") {
            Some(number) => ("self", number),
            None => {
                let rest = path.strip_prefix("/proc/")?;
                let (process, number) = rest.split_once("/fd/")?;
                (process, number)
            }
        };
        let number = number.parse().ok().filter(|&number| number >= 0)?;
        let is_own =
            matches!(process, "self" | "thread-self") || process.parse() == Ok(std::process::id());
        Some(if is_own {
            Self::Own(number)
        } else {
            Self::OfOther
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_known_by_its_path() {
        let parse = |path: &str| Descriptor::parse(Path::new(path));
        assert_eq!(parse("/dev/stdin"), Some(Descriptor::Own(0)));
        assert_eq!(parse("/dev/fd/63"), Some(Descriptor::Own(63)));
        assert_eq!(parse("/proc/self/fd/4"), Some(Descriptor::Own(4)));
        let own = format!("/proc/{}/fd/5", std::process::id());
        assert_eq!(parse(&own), Some(Descriptor::Own(5)));
        assert_eq!(parse("/proc/1/fd/5"), Some(Descriptor::OfOther));
        for path in [
            "/dev/null",
            "/dev/fd/-1",
            "/dev/fd/x",
            "fd/3",
            "/proc/version",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
