//! Checks the rules when a simulated run has ended.

use std::collections::{HashMap, HashSet};

use super::model::{Broken, Outcome, Rule, TEMPORARY, World};
use super::tree::{Before, Entry, Item, Sort, Trouble};

/// The printed lines, by entry and directory.
#[derive(Default)]
pub(super) struct Printed {
    pub(super) failed: HashMap<usize, u32>,
    pub(super) failed_dirs: HashSet<usize>,
    pub(super) lines: HashMap<usize, u32>,
    pub(super) dir_lines: HashMap<usize, u32>,
    /// Removals that failed, other than those that keep an entry from being copied.
    pub(super) failed_deletions: Vec<(Vec<u8>, String)>,
    pub(super) deletions: HashMap<String, u32>,
    /// A line says that nothing was deleted.
    pub(super) has_kept: bool,
    /// copied, unchanged, failed, deleted.
    pub(super) summary: Option<[u64; 4]>,
}

impl World {
    /// Returns the broken rules.
    pub(super) fn check(mut self, outcome: &Outcome) -> Vec<Broken> {
        self.end_mirror();
        let printed = self.read(outcome);
        self.check_entries(outcome, &printed);
        if !outcome.was_stopped {
            self.check_links(&printed);
            self.check_dirs(outcome, &printed);
        }
        self.check_sums(outcome, &printed);
        self.check_deletions(outcome, &printed);
        if outcome.status == 0 && self.is_unsynced() {
            self.broke(Rule::SyncedLast, "changed after the last sync");
        }
        if !outcome.free_chunked_slots && !outcome.was_stopped {
            self.broke(Rule::ChunkedSlots, "not all are free");
        }
        self.broken
    }

    fn read(&mut self, outcome: &Outcome) -> Printed {
        let mut printed = Printed::default();
        for line in &outcome.err {
            if line.ends_with("still waiting")
                || line.contains("none can be started")
                || line.contains(" failed for a reason that can pass; trying ")
            {
                continue;
            }
            if line.contains(" was deleted, because ") || line.contains(" so nothing was deleted") {
                printed.has_kept = true;
                continue;
            }
            if let Some(counts) = read_summary(line) {
                let sum = printed.summary.get_or_insert_default();
                for (sum, count) in sum.iter_mut().zip(counts) {
                    *sum += count;
                }
                continue;
            }
            let path = line.split(": ").next().unwrap_or_default();
            let is_deletion = line.contains(": delete: ");
            let below = self.below_root(path, outcome);
            let bytes = |path: Option<&str>| path.unwrap_or_default().as_bytes().to_vec();
            let was_there = |path: &str| self.extras.was_there(path.as_bytes());
            match self.item(path, outcome) {
                None if below.is_some_and(was_there) => {
                    printed.failed_deletions.push((bytes(below), line.clone()));
                }
                Some(item) if is_deletion => {
                    printed.failed_deletions.push((bytes(below), line.clone()));
                    if let Item::Dir(dir) = item
                        && below.is_some_and(was_there)
                    {
                        printed.failed_dirs.insert(dir);
                    }
                }
                Some(Item::Dir(dir)) => _ = printed.failed_dirs.insert(dir),
                Some(Item::Entry(entry)) => *printed.failed.entry(entry).or_default() += 1,
                // A host that was lost.
                None if line.ends_with(": lost") => {}
                None => self.broke(Rule::Message, line.clone()),
            }
        }
        for line in &outcome.out {
            let path = line.split_once("] ").map_or("", |(_, path)| path);
            if let Some(path) = path.strip_prefix("delete ") {
                let path = path.trim_end_matches('/').to_owned();
                *printed.deletions.entry(path).or_default() += 1;
                continue;
            }
            match self.item(path.trim_end_matches('/'), outcome) {
                Some(Item::Dir(dir)) => *printed.dir_lines.entry(dir).or_default() += 1,
                Some(Item::Entry(entry)) => *printed.lines.entry(entry).or_default() += 1,
                None => self.broke(Rule::Message, line.clone()),
            }
        }
        printed
    }

    fn item(&self, path: &str, outcome: &Outcome) -> Option<Item> {
        let path = self.below_root(path, outcome)?;
        self.tree.item(path.as_bytes())
    }

    fn below_root<'a>(&self, path: &'a str, outcome: &Outcome) -> Option<&'a str> {
        let in_root = |root: &String| path.strip_prefix(root.as_str());
        let path = outcome.roots.iter().find_map(in_root)?;
        Some(path.trim_matches('/'))
    }

    /// Returns true if a directory or one above it failed: then nothing is expected below.
    fn is_excused(&self, mut dir: usize, printed: &Printed) -> bool {
        loop {
            if printed.failed_dirs.contains(&dir) {
                return true;
            }
            match self.tree.dirs[dir].parent {
                Some(parent) => dir = parent,
                None => return false,
            }
        }
    }

    /// Returns true if a retry may count complete entries of a directory as unchanged. That is so
    /// in directories from before the run. There a retry also takes a new subdirectory for an old
    /// one, if the worker that made it died before its report.
    fn is_possibly_old(&self, dir: usize) -> bool {
        let above = self.tree.dirs[dir].parent;
        let is_below_old = || above.is_some_and(|above| self.is_possibly_old(above));
        self.has_losses && (!self.dirs[dir].is_new || is_below_old())
    }

    pub(super) fn is_complete(&self, entry: usize) -> bool {
        let Entry { dir, name, .. } = &self.tree.entries[entry];
        let inode = self.existing(*dir, name);
        inode.is_some_and(|inode| self.is_copy(inode, entry))
    }

    /// Returns how many rounds of retries a directory and those above it may take.
    fn rounds_until_listed(&self, dir: usize) -> u32 {
        let dir = &self.tree.dirs[dir];
        let above = dir
            .parent
            .map_or(0, |above| self.rounds_until_listed(above));
        dir.passes + above
    }

    pub(super) fn has_died_twice(&self, dir: usize, name: Option<&[u8]>) -> bool {
        let place = (dir, name.map(<[u8]>::to_vec));
        self.deaths.get(&place).is_some_and(|&deaths| deaths >= 2)
    }

    fn check_entries(&mut self, outcome: &Outcome, printed: &Printed) {
        for number in 0..self.tree.entries.len() {
            let entry = &self.tree.entries[number];
            let (dir, trouble, before) = (entry.dir, entry.trouble, entry.before);
            let name = entry.name.clone();
            let shown = format!(
                "{} in {}, {:?}, {before:?}, {trouble:?}",
                name.escape_ascii(),
                self.tree.dirs[dir].path.escape_ascii(),
                entry.sort
            );
            let failures = printed.failed.get(&number).copied().unwrap_or(0);
            let is_complete = self.is_complete(number);
            let is_excused = self.is_excused(dir, printed);
            if failures > 1 {
                self.broke(Rule::FailsOnce, format!("{failures} of {shown}"));
            }
            let rounds_above = self.rounds_until_listed(dir);
            // A run that is stopped tries nothing again.
            let most = if outcome.was_stopped {
                0
            } else {
                outcome.retries
            };
            let path = self.tree.path(number);
            // The rounds of retries may be over when there is room for it.
            let is_obstructed = self.extras.is_in_the_way(&self.tree, &path)
                || matches!(trouble, Trouble::Passes(_))
                    && self.extras.was_in_the_way(&self.tree, &path);
            let may_fail = matches!(trouble, Trouble::Fails | Trouble::ChunkFails(_))
                || matches!(trouble, Trouble::Passes(times) if times + rounds_above > most)
                || self.full.contains(&number)
                || self.has_died_twice(dir, Some(&name))
                || self.has_died_twice(dir, None)
                || is_obstructed;
            if failures > 0 && !may_fail {
                let message = outcome
                    .err
                    .iter()
                    .find(|line| line.contains(&format!("{}: ", name.escape_ascii())));
                self.broke(Rule::FailsForAReason, format!("{shown}: {message:?}"));
            }
            // An entry at which a worker crashed is replaced whenever it is examined again. After
            // a host is lost, the run learns late which entries its workers were at.
            let is_suspect = self.deaths.contains_key(&(dir, Some(name.clone())));
            let commits = self.commits.get(&number).copied().unwrap_or(0);
            if commits > 1 && !is_suspect && !self.has_lost_host {
                self.broke(Rule::CommittedOnce, shown.clone());
            }
            let lines = printed.lines.get(&number).copied().unwrap_or(0);
            if lines > 1 {
                self.broke(Rule::LineIsPrintedOnce, format!("{lines} of {shown}"));
            }
            if outcome.was_stopped || is_excused {
                continue;
            }
            if failures == 0 && (!is_complete || self.missed.contains(&number)) {
                self.broke(Rule::CompleteOrFailed, shown.clone());
            }
            let may_be_found = self.is_possibly_old(dir);
            if is_complete && failures == 0 && lines == 0 && before != Before::Same && !may_be_found
            {
                self.broke(Rule::LineIsPrinted, shown);
            }
        }
        let leftover: Vec<_> = self
            .names
            .iter()
            .filter(|((_, name), inode)| {
                name.starts_with(TEMPORARY)
                    || outcome.was_stopped
                        && self.inodes[inode].source.is_some()
                        && !self.inodes[inode].is_complete
            })
            .map(|((dir, name), _)| (*dir, name.clone()))
            .collect();
        for (dir, name) in leftover {
            if outcome.was_stopped && outcome.is_left_behind || self.is_excused(dir, printed) {
                continue;
            }
            // A lost worker may not have reported a file that has no times yet.
            if self.has_losses && self.is_durable && !name.starts_with(TEMPORARY) {
                continue;
            }
            // Nobody knows what a lost host was writing. In a run that stops, it may not be removed.
            if self.has_lost_host && outcome.was_stopped {
                continue;
            }
            let rule = if name.starts_with(TEMPORARY) {
                Rule::NoTemporaryName
            } else {
                Rule::NothingIncomplete
            };
            let dir = self.tree.dirs[dir].path.escape_ascii();
            let how = format!("{} in {dir}", name.escape_ascii());
            self.broke(rule, how);
        }
    }

    fn check_links(&mut self, printed: &Printed) {
        for group in 0..self.tree.groups.len() {
            let mut inodes = HashSet::new();
            for &entry in &self.tree.groups[group] {
                let Entry { dir, name, .. } = &self.tree.entries[entry];
                if !printed.failed.contains_key(&entry)
                    && !self.is_excused(*dir, printed)
                    && let Some(inode) = self.existing(*dir, name)
                    && self.is_copy(inode, entry)
                {
                    inodes.insert(inode);
                }
            }
            if inodes.len() > 1 {
                self.broke(Rule::Linked, format!("group {group}: {inodes:?}"));
            }
        }
    }

    fn check_dirs(&mut self, outcome: &Outcome, printed: &Printed) {
        for number in 0..self.tree.dirs.len() {
            let dir = self.dirs[number];
            let shown = self.tree.dirs[number].path.escape_ascii().to_string();
            let is_passing = self.rounds_until_listed(number) > outcome.retries;
            let path = &self.tree.dirs[number].path;
            let is_obstructed = self.extras.is_in_the_way(&self.tree, path)
                || self.tree.dirs[number].passes > 0
                    && self.extras.was_in_the_way(&self.tree, path);
            let may_fail = self.has_died_twice(number, None)
                || self.has_sync_failed
                || is_passing
                || is_obstructed
                // A sync that crashes fails its files.
                || self.is_durable && self.has_died_twice(0, None);
            if printed.failed_dirs.contains(&number) && !may_fail {
                let messages: Vec<_> = outcome
                    .err
                    .iter()
                    .filter(|line| line.contains(&format!("{shown}: ")))
                    .collect();
                self.broke(Rule::FailsForAReason, format!("{shown}/: {messages:?}"));
            }
            if self.is_excused(number, printed) {
                continue;
            }
            match dir.finished {
                None => self.broke(Rule::MetadataLast, format!("never applied to {shown}/")),
                // Its deletions were given up.
                Some(_) if self.has_died_twice(number, None) => {}
                Some(finished) if finished < dir.changed => {
                    let how = format!("{shown}/ was changed later");
                    self.broke(Rule::MetadataLast, how);
                }
                Some(_) => {}
            }
            let lines = printed.dir_lines.get(&number).copied().unwrap_or(0);
            let above = self.tree.dirs[number].parent;
            let may_be_found = above.is_some_and(|above| self.is_possibly_old(above));
            if lines != u32::from(dir.is_new) && !(lines == 0 && may_be_found) {
                self.broke(Rule::DirectoryLine, format!("{lines} of {shown}/"));
            }
        }
    }

    fn check_sums(&mut self, outcome: &Outcome, printed: &Printed) {
        let all = self.tree.entries.len() as u64;
        let Some([copied, unchanged, failed, _]) = printed.summary else {
            self.broke(Rule::SummaryAddsUp, "no summary");
            return;
        };
        let failed = failed.saturating_sub(printed.failed_deletions.len() as u64);
        let sum = copied + unchanged + failed;
        let shown =
            format!("{copied} copied + {unchanged} unchanged + {failed} failed of {all} entries");
        if outcome.was_stopped {
            if sum > all + printed.failed_dirs.len() as u64 + 1 {
                self.broke(Rule::SummaryAddsUp, shown);
            }
            let entries = 0..self.tree.entries.len();
            if outcome.status == 0 && !entries.into_iter().all(|entry| self.is_complete(entry)) {
                self.broke(Rule::ExitStatus, "0 of a run that was stopped");
            }
            return;
        }
        let complete = |entry| self.is_complete(entry);
        let is_all_there = (0..self.tree.entries.len()).all(complete);
        let has_failed = failed > 0 || !printed.failed_deletions.is_empty() || printed.has_kept;
        if (outcome.status == 0) == has_failed || outcome.status == 0 && !is_all_there {
            let how = format!("{}, all there: {is_all_there}, {shown}", outcome.status);
            self.broke(Rule::ExitStatus, how);
        }
        if !printed.failed_dirs.is_empty() {
            return;
        }
        if outcome.found != all {
            let how = format!("{} of {all} entries", outcome.found);
            self.broke(Rule::Total, how);
        }
        if sum != all {
            self.broke(Rule::SummaryAddsUp, shown);
            return;
        }
        // A retry may find complete, and so unchanged, what was copied before into a directory
        // that was there.
        let entries = self.tree.entries.iter().enumerate();
        let succeeded = entries.filter(|(number, _)| !printed.failed.contains_key(number));
        let (mut same, mut certain) = (0, 0);
        for (number, entry) in succeeded {
            // The leader of a group may be a name that was missing; then the others change too.
            let is_same = |&entry: &usize| self.tree.entries[entry].before == Before::Same;
            let is_whole = match entry.sort {
                Sort::Linked(group) => self.tree.groups[group].iter().all(is_same),
                _ => true,
            };
            let is_suspect = |&entry: &usize| {
                let entry = &self.tree.entries[entry];
                self.deaths
                    .contains_key(&(entry.dir, Some(entry.name.clone())))
            };
            let is_whole = is_whole
                && !match entry.sort {
                    Sort::Linked(group) => self.tree.groups[group].iter().any(is_suspect),
                    _ => is_suspect(&number),
                };
            same += u64::from(entry.before == Before::Same && is_whole);
            let is_certain = !self.is_possibly_old(entry.dir);
            certain += u64::from(is_certain && entry.before != Before::Same);
        }
        if copied < certain || unchanged < same {
            let how = format!("{shown}, {same} the same before, {certain} in new directories");
            self.broke(Rule::SummaryIsRight, how);
        }
    }
}

/// Returns what a line of the summary says was copied, unchanged, failed and deleted.
fn read_summary(line: &str) -> Option<[u64; 4]> {
    let (number, rest) = line.split_once(' ')?;
    let number = match number {
        "no" => 0,
        number => number.parse().ok()?,
    };
    let count = |of: &str| {
        let mut parts = rest.split(", ").filter_map(|part| part.split_once(' '));
        let number = parts.find(|(_, what)| what.starts_with(of))?.0;
        number.parse().ok()
    };
    let deleted = count("deleted").unwrap_or(0);
    if rest.contains(" (named above)") {
        Some([0, 0, number, 0])
    } else if rest.contains(" copied to ") {
        Some([number, count("unchanged").unwrap_or(0), 0, deleted])
    } else {
        let is_first = rest.contains(" unchanged at ");
        is_first.then_some([0, number, 0, deleted])
    }
}
