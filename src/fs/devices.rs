//! Device numbers that mean the same on all machines of a run.
//!
//! Each machine numbers its mounts itself, so `st_dev` of one file system differs between them. A
//! node of a run on many machines therefore renames the devices. Those of the roots get the lead's
//! numbers. A file system that is mounted below a root is named by the root and the path of its
//! mount point. Without this, hard links would become files, or, worse, two files become one.
//!
//! A run on one machine renames nothing.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rustix::fs::{major, minor};

use super::proc::{mount_lines, unescape_mount};

/// The bit of numbers that no kernel uses for a device.
const NAMED: u64 = 1 << 63;
/// The bit of numbers that mean something on one machine only.
const PRIVATE: u64 = 1 << 62;

static NAMES: OnceLock<Devices> = OnceLock::new();

thread_local! {
    /// The last device that this thread asked for, and its name.
    static LAST: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

struct Devices {
    known: Mutex<Vec<(u64, u64)>>,
    /// The paths of the roots on this machine, in the lead's order.
    roots: Vec<PathBuf>,
    rank: u32,
}

/// Renames the devices of this process from now on. `known` are the roots' devices: the number here
/// and the name. A name of `None` stands for one whose inode numbers mean nothing elsewhere.
pub(crate) fn rename(rank: u32, roots: Vec<PathBuf>, known: &[(u64, Option<u64>)]) {
    let known = known.iter().map(|&(dev, name)| {
        let name = name.unwrap_or_else(|| private(rank, dev));
        (dev, name)
    });
    let devices = Devices {
        known: Mutex::new(known.collect()),
        roots,
        rank,
    };
    // Once in a process: a node serves one run.
    let _ = NAMES.set(devices);
}

/// Returns the number that a device has on all machines of the run.
pub(crate) fn common(dev: u64) -> u64 {
    let Some(devices) = NAMES.get() else {
        return dev;
    };
    if let Some((last, name)) = LAST.get()
        && last == dev
    {
        return name;
    }
    let name = devices.name(dev);
    LAST.set(Some((dev, name)));
    name
}

/// Returns true if inode numbers of the device mean something on this machine only.
pub(crate) fn is_private(common: u64) -> bool {
    common & (NAMED | PRIVATE) == NAMED | PRIVATE
}

/// Returns true if this process is one of several that copy on several machines.
pub(crate) fn is_shared() -> bool {
    NAMES.get().is_some()
}

fn private(rank: u32, dev: u64) -> u64 {
    NAMED | PRIVATE | hash(&(rank, dev))
}

impl Devices {
    fn name(&self, dev: u64) -> u64 {
        let mut known = match self.known.lock() {
            Ok(known) => known,
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some((_, name)) = known.iter().find(|(own, _)| *own == dev) {
            return *name;
        }
        let table = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
        let name = match self.place_of(dev, &table) {
            Some(place) => NAMED | hash(&place),
            None => private(self.rank, dev),
        };
        known.push((dev, name));
        name
    }

    /// Returns where a device is mounted: the root that the mount point is below, and the rest of
    /// its path. Of several places it is always the same one.
    fn place_of(&self, dev: u64, table: &[u8]) -> Option<(usize, Vec<u8>)> {
        let device = format!("{}:{}", major(dev), minor(dev));
        let points = mount_lines(table)
            .filter(|line| line[2] == device.as_bytes())
            .map(|line| unescape_mount(line[4]));
        points.filter_map(|point| self.below_root(&point)).min()
    }

    /// Returns the root that a mount point is below. One that is below none is reached through a
    /// link, and named by its whole path.
    fn below_root(&self, point: &Path) -> Option<(usize, Vec<u8>)> {
        let mut roots = self.roots.iter().enumerate();
        let below = roots.find_map(|(index, root)| Some((index, point.strip_prefix(root).ok()?)));
        let (index, path) = below.unwrap_or((usize::MAX, point));
        Some((index, path.as_os_str().as_bytes().to_owned()))
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish() >> 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

    fn devices(rank: u32, root: &str, known: (u64, u64)) -> Devices {
        Devices {
            known: Mutex::new(vec![known]),
            roots: vec![root.into(), "/elsewhere".into()],
            rank,
        }
    }

    const TABLE: &[u8] = b"1 0 0:7 / /mnt/a rw - nfs x rw
2 1 0:8 / /mnt/a/more\\040space rw - nfs y rw
3 1 0:9 / /srv/other rw - nfs z rw
";

    #[test]
    fn mounts_are_named_by_their_place_below_a_root() {
        let other = b"1 0 0:31 / /net/b rw - nfs x rw
2 1 0:44 / /net/b/more\\040space rw - nfs y rw
3 1 0:45 / /srv/other rw - nfs z rw
";
        let (here, there) = (devices(1, "/mnt/a", (7, 7)), devices(2, "/net/b", (31, 7)));
        let place =
            |devices: &Devices, minor, table: &[u8]| devices.place_of(makedev(0, minor), table);
        assert_eq!(place(&here, 8, TABLE), place(&there, 44, other));
        assert_eq!(place(&here, 8, TABLE), Some((0, b"more space".to_vec())));
        assert_eq!(place(&here, 9, TABLE), place(&there, 45, other));
        assert_ne!(place(&here, 8, TABLE), place(&here, 9, TABLE));
        assert_eq!(place(&here, 77, TABLE), None);
    }

    #[test]
    fn roots_have_the_leads_number_and_unknown_devices_their_own() {
        let (here, there) = (
            devices(1, "/mnt/a", (7, 70)),
            devices(2, "/net/b", (31, 70)),
        );
        assert_eq!((here.name(7), there.name(31)), (70, 70));
        let unknown = makedev(4000, 4000);
        assert_ne!(here.name(unknown), there.name(unknown));
        assert_eq!(here.name(unknown), here.name(unknown));
        assert!(is_private(here.name(unknown)) && !is_private(70));
    }

    #[test]
    fn one_machine_renames_nothing() {
        assert_eq!(common(5), 5);
        assert!(!is_shared());
    }
}
