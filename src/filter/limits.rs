//! FileLimits of size and age.

use rustix::fs::{FileType, Stat};

use crate::config::{FileLimits, Moment};
use crate::fs::stat::FileStat;

/// Returns true if a limit concerns entries of some kind that is no directory.
pub(super) fn is_set(limits: &FileLimits) -> bool {
    limits.needs_time() || limits.min_size.is_some() || limits.max_size.is_some()
}

/// Returns the option that leaves out an entry with this stat, as the user wrote it.
///
/// As in rsync, sizes are asked of regular files alone. A directory has neither limit.
pub(super) fn find<'a>(limits: &'a FileLimits, stat: &Stat) -> Option<&'a str> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        return None;
    }
    let FileStat { size, mtime, .. } = FileStat::of(stat);
    let is_file = kind == FileType::RegularFile;
    let too_small = limits
        .min_size
        .as_ref()
        .filter(|it| is_file && size < it.bytes);
    let too_large = limits
        .max_size
        .as_ref()
        .filter(|it| is_file && size > it.bytes);
    let is_before = |moment: &&Moment| mtime < moment.time;
    let too_old = limits.newer_than.as_ref().filter(is_before);
    let too_new = limits.older_than.as_ref().filter(|it| !is_before(it));
    let sizes = too_small.or(too_large).map(|size| size.option.as_str());
    sizes.or(too_old.or(too_new).map(|moment| moment.option.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    #[test]
    fn what_is_at_a_limit_is_on_one_side_of_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, [0; 10]).unwrap();
        let stat = rustix::fs::stat(file.path()).unwrap();
        let size = |bytes| {
            Some(Size {
                bytes,
                option: "size".to_owned(),
            })
        };
        let of_size = |min_size, max_size| {
            let limits = FileLimits {
                min_size,
                max_size,
                ..FileLimits::default()
            };
            find(&limits, &stat).is_none()
        };
        assert!(of_size(size(10), size(10)));
        assert!(!of_size(size(11), None));
        assert!(!of_size(None, size(9)));
        let (seconds, nanoseconds) = FileStat::of(&stat).mtime;
        let moment = |later| {
            Some(Moment {
                time: (seconds + later, nanoseconds),
                option: "time".to_owned(),
            })
        };
        let of_time = |newer_than, older_than| {
            let limits = FileLimits {
                newer_than,
                older_than,
                ..FileLimits::default()
            };
            find(&limits, &stat).is_none()
        };
        for later in [-1, 0, 1] {
            // Each entry is on one side.
            assert_ne!(of_time(moment(later), None), of_time(None, moment(later)));
        }
        assert!(of_time(moment(0), moment(1)));
    }
}
