//! Identifies the source of an unfinished file in its temporary name (`--partial`).

use std::ffi::CStr;

use rustix::fs::{self, AtFlags};
use twox_hash::XxHash3_128;

use super::dir::DirPair;
use crate::context::Context;
use crate::fs::list::{self, Listing};
use crate::fs::stat::FileStat;

/// The source of an unfinished file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    inode: u64,
    size: u64,
    /// A hash of the times and the name.
    hash: u64,
}

impl Origin {
    /// Returns the origin of a file. If hard links are kept, one of its names is copied, and it does
    /// not matter which.
    pub(super) fn of(name: &CStr, stat: &FileStat, keeps_links: bool) -> Self {
        let mut hasher = XxHash3_128::new();
        let times = [stat.mtime, stat.ctime];
        for number in times.iter().flat_map(|&(seconds, rest)| [seconds, rest]) {
            hasher.write(&number.to_le_bytes());
        }
        // This decides how the file is divided into chunks.
        hasher.write(&stat.allocated.to_le_bytes());
        if stat.links <= 1 || !keeps_links {
            hasher.write(name.to_bytes());
        }
        Self {
            inode: stat.id.ino,
            size: stat.size,
            hash: hasher.finish_128() as u64,
        }
    }

    /// Returns the part of a temporary name.
    pub(super) fn text(&self) -> String {
        format!("{:x}-{:x}-{:016x}", self.inode, self.size, self.hash)
    }

    /// Reads the part of a temporary name.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|&b| b == b'-').map(|part| {
            let digits = std::str::from_utf8(part).ok()?;
            let are_digits = digits.bytes().all(|b| b.is_ascii_hexdigit());
            are_digits
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        });
        let origin = Self {
            inode: parts.next()??,
            size: parts.next()??,
            hash: parts.next()??,
        };
        parts.next().is_none().then_some(origin)
    }

    /// Returns true if the source directory still has this file, unchanged, and the destination has
    /// no copy of it.
    pub(super) fn is_wanted(&self, context: &Context, dir: &DirPair) -> bool {
        let keeps_links = context.config.preserve.links.is_wanted();
        let dereference = context.config.dereference;
        let flags = if dereference {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let mut listing = Listing::of(list::path_to(dir.source(), false));
        while let Some((_, name)) = listing.read() {
            let name = name.to_owned();
            // The number in the directory is that of the link, if links are followed.
            if (dereference || listing.inode() == self.inode)
                && let Ok(stat) = fs::statat(dir.source(), &name, flags)
                && Self::of(&name, &FileStat::of(&stat), keeps_links) == *self
            {
                let to = context.targets.list[dir.target].name_at_destination(&name);
                let essence = |stat: &fs::Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
                let copy = dir.stat_destination(to).ok().flatten();
                return copy.is_none_or(|copy| essence(&copy) != essence(&stat));
            }
        }
        false
    }
}
