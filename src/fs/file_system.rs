//! The kinds of file systems that pcopy treats differently.

use std::os::fd::AsFd;

use rustix::fs;

/// A kind of file system, as statfs(2) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Bcachefs,
    Btrfs,
    ExFat,
    /// ext2, ext3 or ext4: statfs(2) does not tell them apart.
    Ext,
    F2fs,
    Fat,
    /// Any file system in user space.
    Fuse,
    /// The driver of NTFS in the kernel. ntfs-3g is [`FileSystem::Fuse`].
    Ntfs3,
    Overlayfs,
    Ramfs,
    /// SMB, in any of its versions.
    Smb,
    Tmpfs,
    Xfs,
    Zfs,
    /// Another one, by its number.
    Other(u64),
}

impl FileSystem {
    /// Returns the file system that an open entry is on. `None` if statfs(2) fails.
    pub(crate) fn of(entry: impl AsFd) -> Option<Self> {
        // The field's type differs between architectures. Where it has 32 bits, it is signed.
        #[allow(clippy::unnecessary_cast)]
        let number = fs::fstatfs(entry).ok()?.f_type as u64 & 0xffff_ffff;
        Some(Self::of_number(number))
    }

    /// The numbers are those of linux/magic.h. ntfs3, SMB 2, ZFS and bcachefs have theirs in the
    /// drivers' sources.
    const fn of_number(number: u64) -> Self {
        match number {
            0xca45_1a4e => Self::Bcachefs,
            0x9123_683e => Self::Btrfs,
            0x2011_bab0 => Self::ExFat,
            0xef53 => Self::Ext,
            0xf2f5_2010 => Self::F2fs,
            0x4d44 => Self::Fat,
            0x6573_5546 => Self::Fuse,
            0x7366_746e => Self::Ntfs3,
            0x794c_7630 => Self::Overlayfs,
            0x8584_58f6 => Self::Ramfs,
            0xff53_4d42 | 0xfe53_4d42 => Self::Smb,
            0x0102_1994 => Self::Tmpfs,
            0x5846_5342 => Self::Xfs,
            0x2fc1_2fc1 => Self::Zfs,
            number => Self::Other(number),
        }
    }
}
