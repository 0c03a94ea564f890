//! What only the destination of a simulated run has, and when it may be removed.

use std::collections::BTreeMap;

use super::check::Printed;
use super::model::{Outcome, Rule, World};
use super::tree::{Before, Item, Rng, Tree, join};

/// Stands for a directory that the source does not have.
pub(super) const NOWHERE: usize = usize::MAX;

/// An entry that only the destination has, or that is in the way of another type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extra {
    pub(super) is_dir: bool,
    /// A rule excludes it, so it stays.
    pub(super) is_protected: bool,
    /// It cannot be removed.
    pub(super) fails: bool,
}

/// All of these, by their paths.
#[derive(Debug, Default)]
pub(super) struct Extras {
    entries: BTreeMap<Vec<u8>, Extra>,
    before: BTreeMap<Vec<u8>, Extra>,
    removed: u64,
    /// How many of them were not in the way of anything.
    removed_last: u64,
}

impl Extras {
    pub(super) fn random(tree: &Tree, rng: &mut Rng) -> Self {
        let mut extras = Self::default();
        let has_trouble = rng.chance(0.4);
        let has_obstacles = rng.chance(0.5);
        for dir in &tree.dirs {
            let is_parent_old = dir.parent.is_some_and(|parent| tree.dirs[parent].existed);
            if !dir.existed {
                if is_parent_old && has_obstacles && rng.chance(0.2) {
                    extras.add(rng, dir.path.clone(), Some(false), has_trouble);
                }
                continue;
            }
            for number in 0..rng.pick(&[0, 0, 1, 2, 9]) {
                let name = format!("x{number}");
                extras.add(rng, join(&dir.path, name.as_bytes()), None, has_trouble);
            }
        }
        for entry in &tree.entries {
            let dir = &tree.dirs[entry.dir];
            let is_free = dir.existed && entry.before == Before::Missing;
            if is_free && has_obstacles && rng.chance(0.08) {
                let path = join(&dir.path, &entry.name);
                extras.add(rng, path, Some(true), has_trouble);
            }
        }
        extras.before.clone_from(&extras.entries);
        extras
    }

    /// Adds an entry, and what is in it. `in_the_way_as_dir` is set if the source has its name.
    fn add(
        &mut self,
        rng: &mut Rng,
        path: Vec<u8>,
        in_the_way_as_dir: Option<bool>,
        has_trouble: bool,
    ) {
        let depth = path.iter().filter(|&&b| b == b'/').count();
        let is_dir = in_the_way_as_dir.unwrap_or_else(|| depth < 8 && rng.chance(0.3));
        if is_dir {
            for number in 0..rng.below(4) {
                let below = join(&path, format!("y{number}").as_bytes());
                self.add(rng, below, None, has_trouble);
            }
        }
        let extra = Extra {
            is_dir,
            is_protected: in_the_way_as_dir.is_none() && rng.chance(0.06),
            fails: has_trouble && rng.chance(0.04),
        };
        self.entries.insert(path, extra);
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<Extra> {
        self.entries.get(path).copied()
    }

    /// Returns true for an entry that was there before the run.
    pub(super) fn was_there(&self, path: &[u8]) -> bool {
        self.before.contains_key(path)
    }

    /// Returns the names in a directory.
    pub(super) fn names_in(&self, dir: &[u8]) -> Vec<(Vec<u8>, Extra)> {
        let in_dir = |path: &[u8]| {
            let name = match dir {
                b"" => path,
                dir => path.strip_prefix(dir)?.strip_prefix(b"/")?,
            };
            (!name.contains(&b'/')).then(|| name.to_vec())
        };
        let entries = self.entries.iter();
        entries
            .filter_map(|(path, extra)| Some((in_dir(path)?, *extra)))
            .collect()
    }

    /// Returns true if something was in the way of an item of the source, or of one above it.
    pub(super) fn was_in_the_way(&self, tree: &Tree, path: &[u8]) -> bool {
        is_at_or_above(path, |above| {
            tree.item(above).is_some() && self.before.contains_key(above)
        })
    }

    /// Returns true if something still is in the way.
    pub(super) fn is_in_the_way(&self, tree: &Tree, path: &[u8]) -> bool {
        is_at_or_above(path, |above| {
            tree.item(above).is_some() && self.entries.contains_key(above)
        })
    }

    /// Returns true if an entry has to stay: it is protected, or something in it is.
    pub(super) fn has_to_stay(&self, path: &[u8]) -> bool {
        let mut prefix = path.to_vec();
        prefix.push(b'/');
        let is_below = |other: &[u8]| other == path || other.starts_with(&prefix);
        let is_protected = is_at_or_above(path, |above| {
            self.before.get(above).is_some_and(|it| it.is_protected)
        });
        let mut entries = self.before.iter();
        is_protected || entries.any(|(other, extra)| is_below(other) && extra.is_protected)
    }
}

/// Returns true if this holds for a path or for one of those above it.
fn is_at_or_above(path: &[u8], mut holds: impl FnMut(&[u8]) -> bool) -> bool {
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    let mut above = ends.map(|(end, _)| &path[..end]).chain([path]);
    above.any(&mut holds)
}

impl World {
    /// Removes an entry of the destination that the source does not have, or not as this type.
    pub(super) fn delete(&mut self, path: &[u8]) {
        self.trace(|| format!("delete {}", path.escape_ascii()));
        let is_last = !self.extras.was_in_the_way(&self.tree, path);
        self.check_deletion(path, is_last);
        let removed = self.extras.entries.remove(path);
        self.extras.removed += u64::from(removed.is_some());
        self.extras.removed_last += u64::from(removed.is_some() && is_last);
        let parent = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at);
        if let Some(Item::Dir(parent)) = self.tree.item(&path[..parent]) {
            self.touch(parent);
        }
    }

    fn check_deletion(&mut self, path: &[u8], is_last: bool) {
        let shown = path.escape_ascii().to_string();
        match self.extras.get(path) {
            None => self.broke(Rule::DeletesOnlyExtra, format!("{shown} is of the source")),
            Some(it) if it.is_protected => {
                self.broke(Rule::DeletesOnlyExtra, format!("{shown} is protected"));
            }
            Some(it) if it.is_dir && !self.extras.names_in(path).is_empty() => {
                self.broke(Rule::DeletesOnlyExtra, format!("{shown} is not empty"));
            }
            Some(_) => {}
        }
        let missing = (0..self.tree.entries.len()).find(|&entry| {
            let path = self.tree.path(entry);
            let is_excused = !is_last && self.extras.was_in_the_way(&self.tree, &path);
            !is_excused && !self.is_complete(entry)
        });
        if let Some(missing) = missing {
            let missing = self.tree.path(missing);
            let how = format!("{shown}, and {} is missing", missing.escape_ascii());
            self.broke(Rule::DeletesLast, how);
        }
    }
}

impl World {
    /// Checks at the end of a run which entries were removed, and which remain.
    pub(super) fn check_deletions(&mut self, outcome: &Outcome, printed: &Printed) {
        let removed = self.extras.removed;
        if let Some((path, lines)) = printed.deletions.iter().find(|(_, lines)| **lines > 1) {
            self.broke(Rule::DeletesOnce, format!("{lines} lines about {path}"));
        }
        let [.., deleted] = printed.summary.unwrap_or_default();
        let is_certain = !outcome.was_stopped && !self.has_losses;
        if deleted > removed || is_certain && deleted < removed {
            let how = format!("{deleted} counted, {removed} removed");
            self.broke(Rule::DeletesOnce, how);
        }
        // After the deletion, workers may have died at a directory, and the last sync may have failed.
        let is_late =
            |&dir: &usize| self.has_died_twice(dir, None) || dir == 0 && self.has_sync_failed;
        let has_failed_dirs = !printed.failed_dirs.iter().all(is_late);
        let has_failures = !printed.failed.is_empty() || has_failed_dirs;
        if has_failures && self.extras.removed_last > 0 {
            let how = format!(
                "{} removed, but {:?} and {:?} failed",
                self.extras.removed_last, printed.failed, printed.failed_dirs
            );
            self.broke(Rule::DeletesLast, how);
        }
        if outcome.status == 0
            && let Some(left) = self
                .extras
                .entries
                .keys()
                .find(|&it| !self.extras.has_to_stay(it))
        {
            let how = format!("{} is left", left.escape_ascii());
            self.broke(Rule::DeletesAll, how);
        }
        if outcome.was_stopped {
            return;
        }
        let is_source_empty = self.tree.dirs[0].items.is_empty();
        let has_failures = has_failures || !printed.failed_dirs.is_empty();
        if printed.has_kept && !has_failures && !is_source_empty {
            self.broke(Rule::DeletesAll, "nothing is deleted, for no reason");
        }
        for (path, line) in &printed.failed_deletions {
            let fails = self.extras.before.get(path).is_some_and(|it| it.fails);
            if !fails && !self.has_died_twice_at(path) {
                self.broke(Rule::FailsForAReason, line.clone());
            }
        }
    }

    /// Returns true if workers died twice at a path, or at its directory.
    fn has_died_twice_at(&self, path: &[u8]) -> bool {
        let end = path.iter().rposition(|&b| b == b'/');
        let name = &path[end.map_or(0, |end| end + 1)..];
        let parent = self.tree.item(&path[..end.unwrap_or(0)]);
        let is_in = |dir| self.has_died_twice(dir, Some(name)) || self.has_died_twice(dir, None);
        let is_dir = |item| match item {
            Item::Dir(dir) => self.has_died_twice(dir, None),
            Item::Entry(_) => false,
        };
        self.has_died_twice(NOWHERE, Some(path))
            || matches!(parent, Some(Item::Dir(dir)) if is_in(dir))
            || self.tree.item(path).is_some_and(is_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_directory_are_found() {
        let file = Extra {
            is_dir: false,
            is_protected: false,
            fails: false,
        };
        let paths = ["a", "a-b", "a/c", "a/d/e", "f"];
        let entries = paths.iter().map(|path| (path.as_bytes().to_vec(), file));
        let extras = Extras {
            entries: entries.collect(),
            ..Extras::default()
        };
        let names = |dir: &str| {
            let names = extras.names_in(dir.as_bytes()).into_iter();
            names.map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(""), [&b"a"[..], b"a-b", b"f"]);
        assert_eq!(names("a"), [b"c"]);
        assert_eq!(names("a/d"), [b"e"]);
        assert!(is_at_or_above(b"a/b", |path| path == b"a"));
        assert!(!is_at_or_above(b"a/b", |path| path == b"b"));
    }
}
