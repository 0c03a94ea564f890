//! Counts ahead of the workers, so that the bar knows how much there is to do.
//!
//! One thread of the parent lists the sources, keeps nothing but figures and ends. In process mode
//! that is safe: the fork server was forked before, and the parent itself never forks. If anything
//! fails here, the figures are incomplete, and the workers' own listings complete them later.
//!
//! It does not use walkdir, which would set the access time of every directory before a worker has
//! read that for the copy, and could follow a link that has taken the place of a directory.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, OFlags, RawDir};
use rustix::io::{Errno, Result};

use crate::context::Context;
use crate::filter::{Chosen, DirFilter, Memory, Place, is_whole};
use crate::fs::open::open_dir;
use crate::fs::path::{Kind, Names, RelPath};
use crate::scoreboard::gate::Limit;

/// Sizes are asked for until there are so many: a tenth of a second. They serve as an average then.
const MAX_SIZES: u64 = 50_000;
/// No further sizes are asked for if so many of them ...
const SIZES_AT_ONCE: u32 = 64;
/// ... take longer than this: then each is a seek, or a question to a server.
const SIZES_TIME: Duration = Duration::from_millis(20);
/// How often the thread looks while it rests whether it should stop.
const PAUSE: Duration = Duration::from_millis(50);
/// With one worker at a time the thread rests so many times as long as it listed: a disk with one
/// head seeks for each of the two.
const REST: u32 = 50;
/// The whole tree, as a sum of the shares of its directories.
const WHOLE: f64 = (1_u64 << 53) as f64;

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counted {
    /// Entries, without directories.
    pub(super) files: u64,
    /// Of these, those whose sizes are known.
    pub(super) sized: u64,
    /// The bytes of these.
    pub(super) bytes: u64,
    /// The share of the tree that was seen, from 0 to 1: each directory passes equal parts of its
    /// share on to its subdirectories.
    pub(super) share: f64,
    /// Everything was seen.
    pub(super) is_complete: bool,
    /// How long it has been counted.
    pub(super) time: Duration,
}

/// The thread that counts, as the bar sees it.
pub(super) struct Counter {
    started: Instant,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    files: AtomicU64,
    sized: AtomicU64,
    bytes: AtomicU64,
    share: AtomicU64,
    is_complete: AtomicBool,
    should_stop: AtomicBool,
}

impl Counter {
    /// Starts the thread.
    pub(super) fn start(context: &'static Context) -> Self {
        let shared = Arc::new(Shared::default());
        let walk = Walk::new(context, Arc::clone(&shared));
        // Without it, the bar knows what the workers know.
        let _ = thread::Builder::new()
            .name("pcopy: counter".to_owned())
            .spawn(move || walk.run());
        Self {
            started: Instant::now(),
            shared,
        }
    }

    pub(super) fn counted(&self) -> Counted {
        let shared = &self.shared;
        // First: what follows is final then.
        let is_complete = shared.is_complete.load(Acquire);
        Counted {
            files: shared.files.load(Relaxed),
            sized: shared.sized.load(Relaxed),
            bytes: shared.bytes.load(Relaxed),
            share: shared.share.load(Relaxed) as f64 / WHOLE,
            is_complete,
            time: self.started.elapsed(),
        }
    }
}

impl Drop for Counter {
    /// Stops the thread. It is not waited for: the file system may hang.
    fn drop(&mut self) {
        self.shared.should_stop.store(true, Relaxed);
    }
}

/// The subdirectories of a directory that were not visited yet.
struct Level {
    path: RelPath,
    names: Names,
    /// The share of each.
    share: f64,
}

/// What the thread knows.
struct Walk {
    context: &'static Context,
    shared: Arc<Shared>,
    has_seen_all: bool,
    sizes: u64,
    sizes_at_once: u32,
    sizes_time: Duration,
    are_sizes_cheap: bool,
    share: f64,
    filters: Memory,
}

impl Walk {
    fn new(context: &'static Context, shared: Arc<Shared>) -> Self {
        Self {
            context,
            shared,
            has_seen_all: true,
            sizes: 0,
            sizes_at_once: 0,
            sizes_time: Duration::ZERO,
            are_sizes_cheap: true,
            share: 0.0,
            filters: Memory::default(),
        }
    }

    fn run(mut self) {
        let targets = &self.context.targets.list;
        let share = 1.0 / targets.len().max(1) as f64;
        for (number, target) in targets.iter().enumerate() {
            match &target.single {
                Some(single) => {
                    if self.context.targets.exclusion_of(target).is_none() {
                        self.count(target.source.as_fd(), single.kind, &single.from);
                    }
                    self.add_share(share);
                }
                None => self.walk(number, share),
            }
            if self.should_stop() {
                return;
            }
        }
        self.shared.is_complete.store(self.has_seen_all, Release);
    }

    fn walk(&mut self, target: usize, share: f64) {
        let mut levels = Vec::new();
        levels.extend(self.visit(target, RelPath::default(), share));
        while let Some(level) = levels.last_mut() {
            if self.should_stop() {
                return;
            }
            match level.names.pop() {
                Some((_, name)) => {
                    let (path, share) = (level.path.join(&name), level.share);
                    levels.extend(self.visit(target, path, share));
                }
                None => drop(levels.pop()),
            }
        }
    }

    /// Counts the entries of a directory, and returns its subdirectories.
    fn visit(&mut self, target: usize, path: RelPath, share: f64) -> Option<Level> {
        let mut names = Names::default();
        let before = Instant::now();
        if self.list(target, &path, &mut names).is_err() {
            self.has_seen_all = false;
        }
        self.rest(before.elapsed() * REST);
        let share = share / (names.len() + 1) as f64;
        self.add_share(share);
        (!names.is_empty()).then_some(Level { path, names, share })
    }

    fn list(&mut self, number: usize, path: &RelPath, names: &mut Names) -> Result<()> {
        let context = self.context;
        let target = &context.targets.list[number];
        let dir = open_dir(target.source.as_fd(), path)?;
        if self.context.config.one_file_system && fs::fstat(&dir)?.st_dev != target.device {
            return Ok(());
        }
        let filter = context.targets.filter.as_ref().map(|filter| {
            let place = Place {
                target: number as u32,
                root: target.source.as_fd(),
                path,
                dir: dir.as_fd(),
                follows_links: false,
            };
            DirFilter::new(filter, &mut self.filters, &place).0
        });
        let filter = filter.as_ref();
        if let Some(selection) = target.selection.as_deref()
            && !is_whole(selection, context.targets.filter.as_ref(), path)
        {
            let mut cursor = selection.names_in(path);
            while let Some((name, chosen)) = selection.next(&mut cursor) {
                let name = CString::new(name).unwrap_or_default();
                let stat = fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
                if let Ok(stat) = stat {
                    let kind = Kind::of(fs::FileType::from_raw_mode(stat.st_mode));
                    self.note(&dir, kind, &name, filter, Some(chosen), names);
                }
                if self.should_stop() {
                    return Err(Errno::CANCELED);
                }
            }
            return Ok(());
        }
        keep_access_time(&dir);
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                fs::FileType::Unknown => {
                    let stat = fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    Kind::of(fs::FileType::from_raw_mode(stat.st_mode))
                }
                known => Kind::of(known),
            };
            let list = target.selection.as_deref();
            let chosen = list.filter(|list| list.has_below(path, name.to_bytes()));
            let chosen = chosen.map(|_| Chosen::below());
            self.note(&dir, kind, name, filter, chosen, names);
            if self.should_stop() {
                return Err(Errno::CANCELED);
            }
        }
        Ok(())
    }

    /// Counts an entry, or adds a directory to `names`, unless a filter leaves it out.
    fn note(
        &mut self,
        dir: &OwnedFd,
        kind: Kind,
        name: &CStr,
        filter: Option<&DirFilter<'_>>,
        chosen: Option<Chosen>,
        names: &mut Names,
    ) {
        let is_dir = kind == Kind::Directory;
        if let Some(filter) = filter {
            let is_way = chosen.is_some_and(Chosen::is_way);
            if filter.find(name.to_bytes(), is_dir, is_way).is_some() {
                return;
            }
            // The limits of a link that is followed are those of its target, and not known here.
            let is_followed = kind == Kind::Symlink && self.context.config.dereference;
            if filter.needs_stat(kind)
                && !is_followed
                && let Ok(stat) = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                && filter.find_limit(&stat).is_some()
            {
                return;
            }
        }
        if is_dir {
            names.push(kind, name.to_bytes());
        } else {
            self.count(dir.as_fd(), kind, name);
        }
    }

    /// Counts an entry that is no directory.
    fn count(&mut self, dir: BorrowedFd<'_>, kind: Kind, name: &CStr) {
        let size = match kind {
            Kind::File => self.size(dir, name),
            // It may lead to a directory, and no link is followed here.
            Kind::Symlink if self.context.config.dereference => {
                self.has_seen_all = false;
                None
            }
            _ => Some(0),
        };
        let shared = &self.shared;
        shared.files.fetch_add(1, Relaxed);
        if let Some(size) = size {
            shared.sized.fetch_add(1, Relaxed);
            shared.bytes.fetch_add(size, Relaxed);
        }
    }

    /// Returns the size of a file, as long as sizes are cheap.
    fn size(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Option<u64> {
        if !self.are_sizes_cheap {
            return None;
        }
        let before = Instant::now();
        let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        self.note_size(before.elapsed());
        let stat = stat.ok()?;
        let names = if self.context.config.preserve.links.is_wanted() {
            // Its data is copied once. The sum is right if all its names are in the tree.
            stat.st_nlink.max(1)
        } else {
            1
        };
        // The type differs between architectures.
        #[allow(clippy::unnecessary_cast)]
        Some(stat.st_size as u64 / names as u64)
    }

    /// Notes how long it took to ask for a size.
    fn note_size(&mut self, time: Duration) {
        self.sizes += 1;
        self.sizes_at_once += 1;
        self.sizes_time += time;
        if self.sizes_time > SIZES_TIME || self.sizes >= MAX_SIZES {
            self.are_sizes_cheap = false;
        } else if self.sizes_at_once >= SIZES_AT_ONCE {
            (self.sizes_at_once, self.sizes_time) = (0, Duration::ZERO);
        }
    }

    fn add_share(&mut self, share: f64) {
        self.share += share;
        let share = (self.share.min(1.0) * WHOLE) as u64;
        self.shared.share.store(share, Relaxed);
    }

    /// Waits while one worker at a time copies, at most for the given time.
    fn rest(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time
            && self.context.scoreboard.gate.limit() == Limit::Permits(1)
            && !self.should_stop()
        {
            thread::sleep(PAUSE.min(time));
        }
    }

    /// Returns true if the run ends or stops.
    fn should_stop(&self) -> bool {
        self.shared.should_stop.load(Relaxed) || self.context.scoreboard.is_stopping()
    }
}

/// Keeps listing a directory from changing its access time. Only its owner may ask for that.
fn keep_access_time(dir: &OwnedFd) {
    if let Ok(flags) = fs::fcntl_getfl(dir) {
        let _ = fs::fcntl_setfl(dir, flags | OFlags::NOATIME);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::config::Config;
    use crate::context::Identity;
    use crate::scoreboard::Scoreboard;
    use crate::targets::Targets;

    fn context(dir: &Path, options: &[&str], sources: &[&str]) -> &'static Context {
        let paths = sources.iter().chain(&["dst"]);
        let paths = paths.map(|path| dir.join(path).into_os_string());
        let words = ["pcopy"].iter().chain(options).map(|word| word.into());
        let config = Config::new(Cli::try_parse_from(words.chain(paths)).unwrap()).unwrap();
        let identity = Identity::read();
        Box::leak(Box::new(Context {
            targets: Targets::open(&config, identity.umask).unwrap(),
            scoreboard: Scoreboard::new(1, 1, 1).unwrap(),
            identity,
            config,
        }))
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("src/a/b")).unwrap();
        std::fs::create_dir_all(path("elsewhere")).unwrap();
        std::fs::create_dir_all(path("dst")).unwrap();
        for (name, size) in [("src/a/b/x", 10), ("src/a/y", 100), ("elsewhere/z", 1000)] {
            std::fs::write(path(name), vec![0; size]).unwrap();
        }
        std::fs::hard_link(path("src/a/y"), path("src/y")).unwrap();
        symlink("../elsewhere", path("src/link")).unwrap();
        dir
    }

    fn count(context: &'static Context) -> Counted {
        let counter = Counter {
            started: Instant::now(),
            shared: Arc::default(),
        };
        Walk::new(context, Arc::clone(&counter.shared)).run();
        let time = Duration::ZERO;
        Counted {
            time,
            ..counter.counted()
        }
    }

    #[test]
    fn all_entries_are_counted_and_no_link_is_followed() {
        let dir = tree();
        let counted = count(context(dir.path(), &[], &["src", "elsewhere/z"]));
        assert_eq!((counted.files, counted.sized, counted.bytes), (5, 5, 1110));
        assert!(counted.is_complete);
        assert!((counted.share - 1.0).abs() < 1e-9, "{}", counted.share);
    }

    #[test]
    fn counting_changes_no_access_time() {
        let dir = tree();
        let path = dir.path().join("src/a");
        let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let times = std::fs::FileTimes::new().set_accessed(long_ago);
        let opened = std::fs::File::open(&path).unwrap();
        opened.set_times(times).unwrap();
        assert!(count(context(dir.path(), &[], &["src"])).is_complete);
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.accessed().unwrap(), long_ago);
    }

    #[test]
    fn a_link_that_the_workers_follow_leaves_the_count_open() {
        let dir = tree();
        let counted = count(context(dir.path(), &["-L"], &["src"]));
        assert_eq!((counted.files, counted.sized), (4, 3));
        assert!(!counted.is_complete);
    }

    #[test]
    fn a_directory_that_cannot_be_listed_leaves_the_count_open() {
        let dir = tree();
        let context = context(dir.path(), &[], &["src"]);
        std::fs::remove_dir_all(dir.path().join("src/a")).unwrap();
        std::fs::remove_dir_all(dir.path().join("src")).unwrap();
        assert!(!count(context).is_complete || count(context).files == 0);
    }

    #[test]
    fn a_run_that_stops_is_not_counted() {
        let dir = tree();
        let context = context(dir.path(), &[], &["src"]);
        context.scoreboard.stop();
        let counted = count(context);
        assert!(counted.files <= 1 && !counted.is_complete);
    }

    #[test]
    fn sizes_that_take_long_are_not_asked_for() {
        let dir = tree();
        let mut walk = Walk::new(context(dir.path(), &[], &["src"]), Arc::default());
        for _ in 0..10 * SIZES_AT_ONCE {
            walk.note_size(Duration::from_micros(100));
        }
        assert!(walk.are_sizes_cheap);
        for _ in 0..5 {
            walk.note_size(Duration::from_millis(5));
        }
        assert!(!walk.are_sizes_cheap);
    }
}
