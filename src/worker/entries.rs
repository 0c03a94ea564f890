//! The entries of a directory that are to be copied: its listing, or a list of the user, less what
//! the filters leave out.

use std::collections::HashSet;
use std::ffi::{CStr, CString};

use rustix::fs::{self, AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::Worker;
use crate::context::Context;
use crate::copy::dir::DirPair;
use crate::filter::{Chosen, Cursor, DirFilter, Exclusion, Place, Selection, is_whole};
use crate::fs::list::Listing;
use crate::fs::path::{Kind, Name, RelPath};
use crate::fs::stat::FileId;
use crate::protocol::error::{At, CopyError, Reason, Step};
use crate::protocol::{Excluded, Job};

/// A directory's entries, and how far they have been read.
pub(super) struct Listed<'a> {
    names: Source,
    /// Entries read so far, including skipped ones.
    pub(super) entries: u64,
    skip: &'a HashSet<Name>,
    filter: Option<DirFilter<'static>>,
    /// A list that may have paths below entries of this directory, all of which is copied.
    list: Option<(&'static Selection, &'a RelPath)>,
}

/// Where the names come from.
enum Source {
    Directory(Listing),
    Selection(ChosenNames),
}

/// The names in a directory that a list of the user has.
struct ChosenNames {
    selection: &'static Selection,
    cursor: Cursor,
    name: CString,
    chosen: Chosen,
}

/// An entry that is to be copied.
pub(super) struct Candidate {
    pub(super) kind: Kind,
    /// Its inode number, if the listing has it.
    pub(super) inode: u64,
}

impl<'a> Listed<'a> {
    /// Prepares to read a directory's entries.
    pub(super) fn new(
        listing: Listing,
        selection: Option<(&'static Selection, Cursor)>,
        skip: &'a HashSet<Name>,
        filter: Option<DirFilter<'static>>,
    ) -> Self {
        let names = match selection {
            None => Source::Directory(listing),
            Some((selection, cursor)) => Source::Selection(ChosenNames {
                selection,
                cursor,
                name: CString::default(),
                chosen: Chosen::default(),
            }),
        };
        Self {
            names,
            entries: 0,
            skip,
            filter,
            list: None,
        }
    }

    /// Sets the list of paths of which some may be below entries of this directory.
    pub(super) fn with_list(mut self, list: Option<&'static Selection>, dir: &'a RelPath) -> Self {
        self.list = list.map(|list| (list, dir));
        self
    }

    /// Moves on to the next entry that is not to be skipped. Returns false after the last one.
    pub(super) fn advance(&mut self) -> bool {
        loop {
            let name = match &mut self.names {
                Source::Directory(listing) => listing.read().map(|(_, name)| name),
                Source::Selection(names) => names.read(),
            };
            let Some(name) = name else {
                return false;
            };
            self.entries += 1;
            if self.skip.is_empty() || !self.skip.contains(name.to_bytes()) {
                return true;
            }
        }
    }

    /// Returns the name of the current entry.
    pub(super) fn name(&self) -> &CStr {
        match &self.names {
            Source::Directory(listing) => listing.last_read().map_or(c"", |(_, name)| name),
            Source::Selection(names) => &names.name,
        }
    }

    /// Returns the kind of the current entry, as far as the listing has it.
    pub(super) fn kind(&self) -> Kind {
        match &self.names {
            Source::Directory(listing) => listing.last_read().map_or(Kind::File, |(kind, _)| kind),
            Source::Selection(_) => Kind::File,
        }
    }

    /// Returns the error that ended the listing, if any.
    pub(super) fn result(self) -> Result<(), Errno> {
        match self.names {
            Source::Directory(listing) => listing.result(),
            Source::Selection(_) => Ok(()),
        }
    }
}

impl ChosenNames {
    fn read(&mut self) -> Option<&CStr> {
        let (name, chosen) = self.selection.next(&mut self.cursor)?;
        self.name = CString::new(name).unwrap_or_default();
        self.chosen = chosen;
        Some(&self.name)
    }
}

impl Worker {
    /// Returns the list of paths that a directory's entries are taken from. `None` if everything in
    /// it is copied.
    pub(super) fn selection_in(&self, job: &Job) -> Option<(&'static Selection, Cursor)> {
        let context: &'static Context = self.context;
        let selection = context.targets.list[job.target as usize]
            .selection
            .as_deref()?;
        let filter = context.targets.filter.as_ref();
        let is_whole = is_whole(selection, filter, &job.path);
        (!is_whole).then(|| (selection, selection.names_in(&job.path)))
    }

    /// Names the paths of a list that a directory lacks, although everything in it is copied.
    pub(super) fn check_chosen(&mut self, job: &Job, dir: &DirPair, skip: &HashSet<Name>) {
        let context: &'static Context = self.context;
        let target = &context.targets.list[job.target as usize];
        let Some(selection) = target.selection.as_deref() else {
            return;
        };
        let mut cursor = selection.names_in(&job.path);
        while let Some((name, chosen)) = selection.next(&mut cursor) {
            let name = CString::new(name).unwrap_or_default();
            if skip.contains(name.to_bytes()) {
                continue;
            }
            let examined = examine(dir, &name).and_then(|stat| {
                let kind = Kind::of(FileType::from_raw_mode(stat.st_mode));
                let kind = self.kind_to_copy(dir, kind, &name)?;
                check_way(chosen, kind)
            });
            if let Err(error) = examined {
                self.add_error(Some((Kind::File, &name)), error);
            }
        }
    }

    /// Prepares the filters for a directory.
    pub(super) fn filter_for(
        &mut self,
        job: &Job,
        dir: &DirPair,
        skip: &HashSet<Name>,
    ) -> Option<DirFilter<'static>> {
        let context: &'static Context = self.context;
        let filter = context.targets.filter.as_ref()?;
        let place = Place {
            target: job.target,
            root: context.targets.list[job.target as usize].source_fd(),
            path: &job.path,
            dir: dir.source(),
            follows_links: context.config.dereference,
        };
        let (dir_filter, error) = DirFilter::new(filter, &mut self.filters, &place);
        if let Some(errno) = error
            && !skip.contains(GITIGNORE.to_bytes())
        {
            self.add_error(
                Some((Kind::File, GITIGNORE)),
                CopyError::new(Step::Open, errno),
            );
        }
        Some(dir_filter)
    }

    /// Decides whether the current entry is copied, and as what: a link that is followed is its
    /// target.
    pub(super) fn choose(
        &mut self,
        dir: &DirPair,
        listed: &Listed<'_>,
    ) -> Result<Option<Candidate>, CopyError> {
        let name = listed.name();
        let (candidate, chosen) = match &listed.names {
            Source::Directory(listing) => {
                let kind = listing.last_read().map_or(Kind::File, |(kind, _)| kind);
                let inode = listing.inode();
                (Ok(Candidate { kind, inode }), None)
            }
            Source::Selection(names) => {
                let candidate = examine(dir, name).map(|stat| Candidate {
                    kind: Kind::of(FileType::from_raw_mode(stat.st_mode)),
                    inode: FileId::of(&stat).ino,
                });
                (candidate, Some(names.chosen))
            }
        };
        let candidate = candidate.and_then(|mut candidate| {
            candidate.kind = self.kind_to_copy(dir, candidate.kind, name)?;
            if let Some(chosen) = chosen {
                check_way(chosen, candidate.kind)?;
            }
            Ok(candidate)
        });
        let Some(filter) = &listed.filter else {
            return candidate.map(Some);
        };
        let is_dir = matches!(&candidate, Ok(it) if it.kind == Kind::Directory);
        let leads_below = || match listed.list {
            Some((list, dir)) => is_dir && list.has_below(dir, name.to_bytes()),
            None => false,
        };
        let is_way = chosen.map_or_else(leads_below, Chosen::is_way);
        let candidate = match candidate {
            Ok(candidate) => candidate,
            // As in rsync, an entry that a rule leaves out is no error, whatever it is.
            Err(error) => {
                let mut both = [false, true].into_iter();
                let is_excluded =
                    !is_way && both.any(|is_dir| filter.is_excluded(name.to_bytes(), is_dir));
                return if is_excluded { Ok(None) } else { Err(error) };
            }
        };
        if let Some(exclusion) = filter.find(name.to_bytes(), is_dir, is_way) {
            self.note_excluded(name, is_dir, &exclusion);
            return Ok(None);
        }
        if filter.needs_stat(candidate.kind)
            // If this fails, copying the entry shows the error.
            && let Ok(stat) = self.stat_to_copy(dir, name)
            && let Some(exclusion) = filter.find_limit(&stat)
        {
            self.note_excluded(name, is_dir, &exclusion);
            return Ok(None);
        }
        Ok(Some(candidate))
    }

    /// Adds the line of `-n -v`.
    fn note_excluded(&mut self, name: &CStr, is_dir: bool, exclusion: &Exclusion<'_>) {
        let config = &self.context.config;
        if !config.prints_exclusions() {
            return;
        }
        let excluded = Excluded {
            name: Name::new(name.to_bytes()),
            is_dir,
            by: exclusion.to_string(),
        };
        self.size += name.count_bytes() + excluded.by.len() + size_of::<Excluded>();
        self.current.update.excluded.push(excluded);
    }

    fn stat_to_copy(&self, dir: &DirPair, name: &CStr) -> rustix::io::Result<Stat> {
        let flags = match self.context.config.dereference {
            true => AtFlags::empty(),
            false => AtFlags::SYMLINK_NOFOLLOW,
        };
        fs::statat(dir.source(), name, flags)
    }

    /// Returns the kind of an entry as it is copied: a link that is followed is its target.
    pub(super) fn kind_to_copy(
        &self,
        dir: &DirPair,
        kind: Kind,
        name: &CStr,
    ) -> Result<Kind, CopyError> {
        if kind != Kind::Symlink || !self.context.config.dereference {
            return Ok(kind);
        }
        let stat = match fs::statat(dir.source(), name, AtFlags::empty()) {
            // If the link itself is gone, it has vanished.
            Err(Errno::NOENT)
                if fs::statat(dir.source(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok() =>
            {
                return Err(CopyError::new(Step::Look, Reason::DanglingLink));
            }
            result => result.at(Step::Look)?,
        };
        Ok(Kind::of(FileType::from_raw_mode(stat.st_mode)))
    }
}

const GITIGNORE: &CStr = c".gitignore";

/// Looks at a path that the user has listed. If it is missing, it has not vanished: perhaps it was
/// never there.
fn examine(dir: &DirPair, name: &CStr) -> Result<Stat, CopyError> {
    match fs::statat(dir.source(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Err(CopyError::new(Step::Look, Reason::Missing)),
        result => result.at(Step::Look),
    }
}

/// Fails if paths below an entry are listed, and it is no directory.
fn check_way(chosen: Chosen, kind: Kind) -> Result<(), CopyError> {
    let reason = match kind {
        _ if !chosen.has_below => return Ok(()),
        Kind::Directory => return Ok(()),
        Kind::Symlink => Reason::LinkOnTheWay,
        Kind::File | Kind::Special => Errno::NOTDIR.into(),
    };
    Err(CopyError::new(Step::Look, reason))
}
