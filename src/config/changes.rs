//! Metadata that is changed on the way: `--chmod` and `--chown`.

use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use anyhow::{Result, bail};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::{Keep, Links, Preserve};
use crate::cli::Cli;
use crate::fs::proc::umask as current_umask;
use crate::fs::stat::FileStat;
use crate::quote::quote;

/// All bits that chmod(2) sets.
const BITS: u32 = 0o7777;

/// The metadata that entries get instead of the source's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    modes: Vec<ModeChange>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// One item of `--chmod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ModeChange {
    /// `D` and `F` in front: directories only, or everything else only.
    only: Option<Only>,
    /// Bits that stay.
    keep: u32,
    /// Bits that are added.
    add: u32,
    /// `X`: execution is added only where it is allowed to anyone, and to directories.
    is_conditional: bool,
    /// Permissions that are those of another class: shift of that class, and the classes.
    copied: Option<(u32, u32, Operator)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Only {
    Directories,
    Others,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    Add,
    Remove,
    Set,
}

impl Changes {
    /// Returns true if modes are changed.
    pub(crate) fn has_modes(&self) -> bool {
        !self.modes.is_empty()
    }

    /// Returns true if owners are changed.
    pub(crate) fn has_owners(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }

    /// Makes sure that the changes are made.
    ///
    /// # Errors
    /// If other options say that they are not.
    pub(super) fn check(&self, preserve: &mut Preserve, links: &Links) -> Result<()> {
        if self.has_modes() && !preserve.mode.is_wanted() {
            bail!("--chmod does not go with --no-preserve=mode, which leaves modes to DST");
        }
        if self.has_owners() && !preserve.ownership.is_wanted() {
            bail!("--chown does not go with --no-preserve=ownership, which leaves owners to DST");
        }
        if links.instead.is_some() && (self.has_modes() || self.has_owners()) {
            bail!("--chmod and --chown do not go with -l and -s: the source itself would change");
        }
        if self.has_owners() {
            preserve.ownership = Keep::Required;
        }
        Ok(())
    }

    /// Returns the stat of a source as the copy is to get it.
    pub(crate) fn apply(&self, mut stat: FileStat) -> FileStat {
        stat.uid = self.uid.unwrap_or(stat.uid);
        stat.gid = self.gid.unwrap_or(stat.gid);
        let file_type = FileType::from_raw_mode(stat.mode);
        if file_type != FileType::Symlink {
            let is_dir = file_type == FileType::Directory;
            let change = |mode, change: &ModeChange| change.apply(mode, is_dir);
            let mode = self.modes.iter().fold(stat.mode & BITS, change);
            stat.mode = stat.mode & !BITS | mode;
        }
        stat
    }
}

impl ModeChange {
    fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self.only {
            Some(Only::Directories) if !is_dir => return mode,
            Some(Only::Others) if is_dir => return mode,
            _ => {}
        }
        if let Some((shift, classes, operator)) = self.copied {
            let bits = (mode.unbounded_shr(shift) & 7).wrapping_mul(classes);
            return match operator {
                Operator::Add => mode | bits,
                Operator::Remove => mode & !bits,
                Operator::Set => mode & !(classes * 7) | bits,
            };
        }
        let may_execute = is_dir || mode & 0o111 != 0;
        let add = if self.is_conditional && !may_execute {
            self.add & !0o111
        } else {
            self.add
        };
        mode & self.keep | add
    }

    /// Parses one item, as rsync reads it.
    fn parse(item: &str, umask: u32) -> Option<Self> {
        let (only, item) = match item.as_bytes().first()? {
            b'D' => (Some(Only::Directories), &item[1..]),
            b'F' => (Some(Only::Others), &item[1..]),
            _ => (None, item),
        };
        let plain = Self {
            only,
            keep: BITS,
            add: 0,
            is_conditional: false,
            copied: None,
        };
        if item.bytes().all(|b| matches!(b, b'0'..=b'7')) {
            let mode = u32::from_str_radix(item, 8)
                .ok()
                .filter(|&mode| mode <= BITS)?;
            return Some(Self {
                keep: 0,
                add: mode,
                ..plain
            });
        }
        let at = item.find(['+', '-', '='])?;
        let (who, what) = (&item[..at], &item[at + 1..]);
        let operator = match item.as_bytes()[at] {
            b'+' => Operator::Add,
            b'-' => Operator::Remove,
            _ => Operator::Set,
        };
        let (mut classes, mut special) = (0, 0);
        for class in who.bytes() {
            match class {
                b'u' => (classes, special) = (classes | 0o100, special | 0o4000),
                b'g' => (classes, special) = (classes | 0o010, special | 0o2000),
                b'o' => classes |= 0o001,
                b'a' => classes |= 0o111,
                _ => return None,
            }
        }
        if let Some(shift) = match what {
            "u" => Some(6),
            "g" => Some(3),
            "o" => Some(0),
            _ => None,
        } {
            let classes = if classes == 0 { 0o111 } else { classes };
            return Some(Self {
                copied: Some((shift, classes, operator)),
                ..plain
            });
        }
        let (mut permissions, mut others, mut is_conditional) = (0, 0, false);
        for letter in what.bytes() {
            match letter {
                b'r' => permissions |= 4,
                b'w' => permissions |= 2,
                b'x' => permissions |= 1,
                b'X' => (permissions, is_conditional) = (permissions | 1, true),
                b's' => others |= if special == 0 { 0o4000 } else { special },
                b't' => others |= 0o1000,
                _ => return None,
            }
        }
        let (classes, bits) = if classes == 0 {
            (0o111, (0o111 * permissions) & !umask)
        } else {
            (classes, classes * permissions)
        };
        let bits = bits | others;
        let change = match operator {
            Operator::Add => Self { add: bits, ..plain },
            Operator::Remove => Self {
                keep: BITS & !bits,
                ..plain
            },
            Operator::Set => {
                let cleared = (classes * 7) | if others == 0 { 0 } else { special };
                Self {
                    keep: BITS & !cleared,
                    add: bits,
                    ..plain
                }
            }
        };
        Some(Self {
            is_conditional,
            ..change
        })
    }
}

/// Returns the changes that options ask for.
///
/// # Errors
/// If a mode cannot be read, or a user or group is not known.
pub(super) fn of(cli: &Cli) -> Result<Changes> {
    let options = &cli.changes;
    let mut changes = Changes::default();
    let mut umask: Option<u32> = None;
    for item in options.chmod.iter().flat_map(|list| list.split(',')) {
        let umask = umask.get_or_insert_with(current_umask);
        match ModeChange::parse(item, *umask) {
            Some(change) => changes.modes.push(change),
            None => bail!(
                "--chmod: {} is no mode; for example: D755,F644 or u+rwX,go-w",
                quote(item.as_bytes())
            ),
        }
    }
    if let Some(owner) = &options.chown {
        let owner = owner.as_bytes();
        let (user, group) = match owner.iter().position(|&b| b == b':') {
            Some(colon) => (&owner[..colon], &owner[colon + 1..]),
            None => (owner, &b""[..]),
        };
        if user.is_empty() && group.is_empty() {
            bail!("--chown needs a user, a :group or both");
        }
        changes.uid = number(user, "user", "passwd")?;
        changes.gid = number(group, "group", "group")?;
    }
    Ok(changes)
}

/// Returns the number of a user or group. `database` is the name that getent(1) takes.
fn number(name: &[u8], what: &str, database: &str) -> Result<Option<u32>> {
    if name.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(name).unwrap_or_default();
    let file = std::fs::read(format!("/etc/{database}")).unwrap_or_default();
    let found = find_number(&file, name).or_else(|| {
        // Other sources, such as LDAP. A static program cannot ask them itself.
        let asked = Command::new("getent").args([database, text]).output();
        find_number(&asked.ok()?.stdout, name)
    });
    match found.or_else(|| text.parse().ok().filter(|&id| id != u32::MAX)) {
        Some(id) => Ok(Some(id)),
        None => bail!("--chown: there is no {what} {}", quote(name)),
    }
}

/// Finds a name in lines of passwd(5) or group(5).
fn find_number(lines: &[u8], name: &[u8]) -> Option<u32> {
    lines.split(|&b| b == b'\n').find_map(|line| {
        let mut fields = line.split(|&b| b == b':');
        let is_wanted = fields.next() == Some(name);
        let number = fields.nth(1).filter(|_| is_wanted)?;
        std::str::from_utf8(number).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(items: &str, mode: u32, is_dir: bool) -> Option<u32> {
        let items = items.split(',').map(|item| ModeChange::parse(item, 0o022));
        let items: Option<Vec<_>> = items.collect();
        Some(items?.iter().fold(mode, |mode, it| it.apply(mode, is_dir)))
    }

    #[test]
    fn names_of_users_are_found() {
        let lines = b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:100::/home/me:/bin/sh\n";
        assert_eq!(find_number(lines, b"me"), Some(1000));
        assert_eq!(find_number(lines, b"m"), None);
    }

    #[test]
    fn modes_change_as_with_rsync() {
        for (items, mode, is_dir, changed) in [
            ("644", 0o4755, false, 0o644),
            ("D755,F644", 0o700, true, 0o755),
            ("D755,F644", 0o700, false, 0o644),
            ("go-rwx", 0o2755, false, 0o2700),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o744, false, 0o755),
            ("a+X", 0o644, true, 0o755),
            ("+w", 0o444, false, 0o644),
            ("u=rw,g=u,o=", 0o7777, false, 0o7660),
            ("u+s,g+s,+t", 0o755, false, 0o7755),
            ("Dg+s,ug+w,Fo-w,+X", 0o754, true, 0o2775),
        ] {
            let found = change(items, mode, is_dir);
            assert_eq!(found, Some(changed), "{items} on {mode:o}: {found:?}");
        }
        for wrong in ["", "8", "17777", "z+r", "u+q", "Dx", "u"] {
            assert_eq!(change(wrong, 0, false), None, "{wrong}");
        }
    }
}
