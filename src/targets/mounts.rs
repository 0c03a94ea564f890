//! Finds the place of a directory in its file system, whatever it is mounted as.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, StatxFlags};

use crate::fs::proc::{mount_lines, real_path, unescape_mount};

/// The place of a directory in its file system.
///
/// A bind mount gives one directory several paths, and `..` of each leads elsewhere. The place is
/// the same for all of them.
#[derive(Debug)]
pub(super) struct Place {
    /// Major and minor number of the file system.
    pub(super) device: String,
    /// The path from the root of that file system.
    pub(super) path: PathBuf,
}

/// A mount below a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountBelow {
    /// As the mount table writes it.
    id: Vec<u8>,
    /// The path below the directory.
    pub(super) path: PathBuf,
}

/// A snapshot of the mount table.
pub(super) struct Mounts {
    /// The text of proc_pid_mountinfo(5). Empty if it cannot be read.
    table: Vec<u8>,
}

impl Mounts {
    pub(super) fn read() -> Self {
        // Most tables fit. Each further read(2) would cost as much as copying a small file.
        let mut table = Vec::with_capacity(16 << 10);
        let read = File::open("/proc/thread-self/mountinfo")
            .and_then(|mut file| file.read_to_end(&mut table));
        if read.is_err() {
            table.clear();
        }
        Self { table }
    }

    /// Returns the place of a directory, or `None` if the kernel or /proc does not tell.
    pub(super) fn place_of(&self, dir: BorrowedFd<'_>) -> Option<Place> {
        let mount = mount_id(dir)?.to_string();
        let path = real_path(dir).ok()?;
        let line = mount_lines(&self.table).find(|line| line[0] == mount.as_bytes())?;
        let below_mount = path.strip_prefix(unescape_mount(line[4])).ok()?;
        Some(Place {
            device: String::from_utf8_lossy(line[2]).into_owned(),
            path: unescape_mount(line[3]).join(below_mount),
        })
    }

    /// Returns the mounts below a directory. The one that it is on itself is not among them: it stays
    /// open.
    pub(super) fn below(&self, dir: BorrowedFd<'_>) -> Vec<MountBelow> {
        let Ok(dir) = real_path(dir) else {
            return Vec::new();
        };
        let mounts = mount_lines(&self.table).filter_map(|line| {
            let path = unescape_mount(line[4]).strip_prefix(&dir).ok()?.to_owned();
            let id = line[0].to_owned();
            (!path.as_os_str().is_empty()).then_some(MountBelow { id, path })
        });
        mounts.collect()
    }

    /// Returns the type of the file system on a device, as mount(8) names it.
    pub(super) fn type_of(&self, device: u64) -> Option<&[u8]> {
        let device = format!("{}:{}", fs::major(device), fs::minor(device));
        self.table.split(|&b| b == b'\n').find_map(|line| {
            let mut fields = line.split(|&b| b == b' ');
            if fields.nth(2)? != device.as_bytes() {
                return None;
            }
            // Optional fields end with a hyphen.
            fields.find(|field| *field == b"-")?;
            fields.next()
        })
    }
}

/// Returns the options of the file system that a directory is on, as the kernel shows them. Empty if
/// it does not.
pub(crate) fn mount_options(dir: BorrowedFd<'_>) -> Vec<u8> {
    let mounts = Mounts::read();
    let options = mount_id(dir).and_then(|mount| options_of(&mounts.table, mount));
    options.unwrap_or_default().to_vec()
}

/// Finds the last field of a mount's line: `ID ... - TYPE SOURCE OPTIONS`.
fn options_of(table: &[u8], mount: u64) -> Option<&[u8]> {
    let id = format!("{mount} ");
    let mut lines = table.split(|&b| b == b'\n');
    let line = lines.find(|line| line.starts_with(id.as_bytes()))?;
    line.rsplit(|&b| b == b' ').next()
}

/// Returns the ID of the mount that a directory was opened through (Linux 5.8 and later).
pub(super) fn mount_id(dir: BorrowedFd<'_>) -> Option<u64> {
    let wanted = StatxFlags::MNT_ID;
    let statx = fs::statx(dir, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
    (statx.stx_mask & wanted.bits() != 0).then_some(statx.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn options_are_those_of_the_mount() {
        let table =
            b"1 0 0:1 / / rw - ext4 /dev/a rw,one\n12 1 0:2 / /a rw shared:1 - cifs b rw,two\n";
        assert_eq!(options_of(table, 1), Some(&b"rw,one"[..]));
        assert_eq!(options_of(table, 12), Some(&b"rw,two"[..]));
        assert_eq!(options_of(table, 2), None);
    }

    #[test]
    fn the_type_of_a_file_system_is_found_by_its_device() {
        let mounts = Mounts {
            table:
                b"29 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n30 29 0:5 / /proc rw - proc p rw\n"
                    .to_vec(),
        };
        assert_eq!(mounts.type_of(fs::makedev(254, 0)), Some(&b"ext4"[..]));
        assert_eq!(mounts.type_of(fs::makedev(0, 5)), Some(&b"proc"[..]));
        assert_eq!(mounts.type_of(fs::makedev(0, 6)), None);
    }

    #[test]
    fn a_mount_is_lost_if_it_is_gone_or_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let dir = fs::open(temp.path(), crate::fs::open::DIRECTORY, fs::Mode::empty()).unwrap();
        let path = real_path(dir.as_fd()).unwrap();
        let table = |id: u8, point: &str| {
            let point = path.join(point);
            let line = format!("{id} 1 0:5 / {} rw - tmpfs none rw\n", point.display());
            let table = line.into_bytes();
            Mounts { table }
        };
        assert!(table(7, "").below(dir.as_fd()).is_empty());
        let below = table(7, "a/disk").below(dir.as_fd());
        assert_eq!(below.len(), 1);
        assert_eq!(below[0].path, PathBuf::from("a/disk"));
        let is_there = |table: Mounts| table.below(dir.as_fd()).contains(&below[0]);
        assert!(is_there(table(7, "a/disk")));
        assert!(!is_there(table(8, "a/disk")));
        assert!(!is_there(table(7, "b/disk")));
    }

    #[test]
    fn the_place_of_a_directory_is_below_that_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        let mounts = Mounts::read();
        let place = |path| {
            let dir = fs::open(path, crate::fs::open::DIRECTORY, fs::Mode::empty()).unwrap();
            mounts.place_of(dir.as_fd())
        };
        // Kernels before 5.8 return no mount IDs.
        if let (Some(parent), Some(child)) = (place(dir.path()), place(&dir.path().join("a"))) {
            assert_eq!(parent.device, child.device);
            assert_eq!(parent.path.join("a"), child.path);
        }
    }
}
