//! A generated tree with one of everything that a faithful copy has to keep.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, chmodat, makedev, mkdirat, mknodat,
    openat, symlinkat, utimensat,
};

use crate::acl::{ACCESS_ACL, AclTag, DEFAULT_ACL, NO_ID, acl};
use crate::env::{Env, NOBODY, bytes_path, is_root};
use crate::noise::pattern;

/// The owner of a zoo.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zoo {
    /// Everything that the user of the tests can create.
    Full,
    /// Everything that a normal user can create, read and own. It belongs to "nobody" if root
    /// creates it.
    User,
}

impl Zoo {
    /// Builds the zoo in the directory `root`, and returns the kinds of entries that it lacks.
    pub(crate) fn build(self, env: &Env, root: &str) -> Vec<&'static str> {
        let zoo = Builder {
            env,
            root,
            as_root: self == Zoo::Full && is_root(),
        };
        env.dir(root);
        let mut skipped = Vec::new();
        zoo.sizes();
        zoo.modes();
        zoo.times();
        zoo.links();
        zoo.hard_links();
        zoo.specials();
        zoo.holes();
        zoo.names();
        zoo.deep();
        zoo.crowd();
        zoo.attributes(&mut skipped);
        zoo.acls(&mut skipped);
        if zoo.as_root {
            zoo.owners();
            zoo.devices();
        } else {
            skipped.push("devices, foreign owners, capabilities, unreadable files: need root");
        }
        if self == Zoo::User && is_root() {
            // chown removes the setuid bits.
            env.sh(&format!("chown -hR {NOBODY}:{NOBODY} {root}"));
            zoo.setuid_and_setgid();
        }
        // Directories last: a new entry changes their time, and their mode may forbid it.
        zoo.directories();
        skipped
    }
}

struct Builder<'a> {
    env: &'a Env,
    root: &'a str,
    as_root: bool,
}

impl Builder<'_> {
    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    /// Sizes at the limits of a copier's loops.
    fn sizes(&self) {
        for size in [0, 1, 4095, 4096, 4097, 65_537, 3 * 1024 * 1024 + 5] {
            self.env.file(
                self.at(&format!("sizes/{size}")),
                pattern(size, size as u64),
            );
        }
        // Stored zeros, which are no hole.
        self.env.file(self.at("sizes/zeros"), vec![0; 100_000]);
    }

    fn modes(&self) {
        for mode in [0o444, 0o400, 0o600, 0o640, 0o755, 0o777, 0o666, 0o1644] {
            self.env
                .file(self.at(&format!("modes/{mode:04o}")), "mode")
                .mode(mode);
        }
        if self.as_root {
            for mode in [0o000, 0o200, 0o111] {
                self.env
                    .file(self.at(&format!("modes/{mode:04o}")), "mode")
                    .mode(mode);
            }
        }
        for (mode, name) in SETUID_AND_SETGID {
            self.env
                .file(self.at(&format!("modes/{name}")), "mode")
                .mode(mode);
        }
    }

    fn setuid_and_setgid(&self) {
        for (mode, name) in SETUID_AND_SETGID {
            self.env.at(self.at(&format!("modes/{name}"))).mode(mode);
        }
    }

    fn times(&self) {
        for (name, seconds, nanoseconds) in [
            ("old", 1, 0),
            ("before-1970", -1_000_000_000, 250_000_000),
            ("just-before-1970", -1, 999_999_999),
            ("zero", 0, 0),
            ("one-nanosecond", 1_500_000_000, 1),
            ("almost-a-second", 1_500_000_000, 999_999_999),
            ("future", 4_102_444_800, 123_456_789),
            ("beyond-2038", 2_147_483_648, 1),
        ] {
            self.env
                .file(self.at(&format!("times/{name}")), name)
                .mtime(seconds, nanoseconds);
            self.env
                .symlink(self.at(&format!("times/link-{name}")), name)
                .mtime(seconds, nanoseconds);
            self.env
                .dir(self.at(&format!("times/directory-{name}")))
                .mtime(seconds, nanoseconds);
            self.env
                .fifo(self.at(&format!("times/fifo-{name}")))
                .mtime(seconds, nanoseconds);
        }
    }

    fn links(&self) {
        let links = [
            ("dangling", "no/such/thing"),
            ("to-file", "../sizes/4096"),
            ("to-directory", "../modes"),
            ("absolute", "/etc/hostname"),
            ("to-above", "../.."),
            ("to-itself", "to-itself"),
            ("odd", " a\nb*"),
        ];
        for (name, target) in links {
            self.env.symlink(self.at(&format!("links/{name}")), target);
        }
        self.env
            .symlink(self.at("links/not-utf8"), bytes_path(b"\xff\xfe"));
        // File systems with blocks of 4 KiB store almost PATH_MAX bytes.
        self.env.symlink(self.at("links/long"), "x/".repeat(500));
        self.env
            .symlink(self.at("links/old"), "to-file")
            .mtime(86_400, 7);
    }

    fn hard_links(&self) {
        let env = self.env;
        env.file(self.at("hard/one"), pattern(10_000, 7))
            .mode(0o640);
        env.hard_link(self.at("hard/two"), self.at("hard/one"));
        env.hard_link(self.at("hard-elsewhere/three"), self.at("hard/one"));
        env.hard_link(self.at("a-hard-first/four"), self.at("hard/one"));
        env.file(self.at("hard/other"), pattern(10_000, 7))
            .mode(0o640);
        env.hard_link(self.at("hard-elsewhere/other"), self.at("hard/other"));
        env.file(self.at("hard/empty"), "");
        env.hard_link(self.at("hard-elsewhere/empty"), self.at("hard/empty"));
        env.symlink(self.at("hard/link"), "one");
        env.hard_link(self.at("hard-elsewhere/link"), self.at("hard/link"));
        env.fifo(self.at("hard/fifo"));
        env.hard_link(self.at("hard-elsewhere/fifo"), self.at("hard/fifo"));
        // Its other name lies outside the tree.
        env.file(self.at("hard/alone"), "alone");
        env.hard_link(format!("{}-outside", self.root), self.at("hard/alone"));
    }

    fn specials(&self) {
        self.env
            .fifo(self.at("special/fifo"))
            .mode(0o620)
            .mtime(1_000_000_000, 1);
        self.env
            .socket(self.at("special/socket"))
            .mode(0o711)
            .mtime(1_000_000_000, 2);
    }

    fn devices(&self) {
        for (name, kind, major, minor) in [
            ("null", FileType::CharacterDevice, 1, 3),
            ("char-big", FileType::CharacterDevice, 300, 70_000),
            ("block", FileType::BlockDevice, 7, 99),
            ("block-big", FileType::BlockDevice, 259, 200_000),
            ("zero-zero", FileType::CharacterDevice, 0, 0),
        ] {
            self.env
                .special(
                    self.at(&format!("special/{name}")),
                    kind,
                    makedev(major, minor),
                )
                .mode(0o604)
                .mtime(1_000_000_000, 3);
        }
    }

    fn owners(&self) {
        let env = self.env;
        for (name, uid, gid) in [
            ("a", 1, 2),
            ("b", NOBODY, 0),
            ("c", 0, 3),
            ("d", 3_000_000_000, 4_000_000_000),
        ] {
            env.file(self.at(&format!("owners/file-{name}")), name)
                .owner(uid, gid);
            env.file(self.at(&format!("owners/setuid-{name}")), name)
                .owner(uid, gid)
                .mode(0o6755);
            env.symlink(self.at(&format!("owners/link-{name}")), name)
                .owner(uid, gid);
            env.fifo(self.at(&format!("owners/fifo-{name}")))
                .owner(uid, gid);
            env.dir(self.at(&format!("owners/directory-{name}")))
                .owner(uid, gid)
                .mode(0o2750);
            env.file(self.at(&format!("owners/directory-{name}/inside")), name);
        }
    }

    /// Files with holes.
    fn holes(&self) {
        const MIB: u64 = 1024 * 1024;
        let data = pattern(20_000, 11);
        let env = self.env;
        env.sparse(
            self.at("holes/leading"),
            8 * MIB,
            &[(8 * MIB - 20_000, &data)],
        );
        env.sparse(
            self.at("holes/middle"),
            16 * MIB,
            &[(0, &data), (16 * MIB - 20_000, &data)],
        );
        env.sparse(self.at("holes/trailing"), 64 * MIB, &[(0, &data)]);
        env.sparse(self.at("holes/only"), 64 * MIB, &[]);
        env.sparse(
            self.at("holes/odd-size"),
            5 * MIB + 123,
            &[(MIB + 1, b"x"), (3 * MIB - 1, &data)],
        );
        let extents: Vec<(u64, &[u8])> = (0..32).map(|i| (i * MIB / 2, &data[..4096])).collect();
        env.sparse(self.at("holes/many"), 20 * MIB, &extents);
        env.sparse(
            self.at("holes/beyond-4-gib"),
            5 << 30,
            &[((4 << 30) + 4096, &data)],
        );
    }

    fn names(&self) {
        let long_file = "f".repeat(255);
        let long_directory = "d".repeat(255);
        for name in [
            " leading and trailing ",
            "-rf",
            "--help",
            "...",
            "new\nline",
            "tab\tbell\x07escape\x1b[31m",
            "quote'\"`$(touch x)\\",
            "umlaut-ü-\u{1F980}",
            "*?[a]",
            &long_file,
        ] {
            self.env.file(self.at(&format!("names/{name}")), name);
        }
        self.env.file(
            self.at(&format!("names/{long_directory}/{long_file}")),
            "long",
        );
        self.env
            .symlink(self.at(&format!("names/{long_directory}/link")), &long_file);
        for bytes in [&b"\xff\xfe"[..], b"latin-\xfc", b"\xc3(", b"\x01\x7f\x80"] {
            let path = bytes_path(&[self.root.as_bytes(), b"/names/", bytes].concat());
            self.env.file(path, bytes);
            let path =
                bytes_path(&[self.root.as_bytes(), b"/names/directory-", bytes, b"/file"].concat());
            self.env.file(path, bytes);
        }
    }

    /// Entries of all kinds at the end of a path far longer than PATH_MAX.
    fn deep(&self) {
        let directory_mode = Mode::from_raw_mode(0o755);
        let name = "deep-".repeat(40);
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut directory: OwnedFd =
            openat(CWD, self.env.path(self.root), open, Mode::empty()).unwrap();
        for _ in 0..40 {
            mkdirat(&directory, &name, directory_mode).unwrap();
            directory = openat(&directory, &name, open, Mode::empty()).unwrap();
        }
        for name in ["file", "second-file"] {
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(&directory, name, create, Mode::from_raw_mode(0o600)).unwrap();
            rustix::io::write(&file, b"far down").unwrap();
        }
        rustix::fs::linkat(
            &directory,
            "file",
            &directory,
            "hard-link",
            AtFlags::empty(),
        )
        .unwrap();
        symlinkat("file", &directory, "link").unwrap();
        mknodat(
            &directory,
            "fifo",
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        mkdirat(&directory, "empty", directory_mode).unwrap();
        chmodat(
            &directory,
            "empty",
            Mode::from_raw_mode(0o711),
            AtFlags::empty(),
        )
        .unwrap();
        let time = Timespec {
            tv_sec: 1_234_567_890,
            tv_nsec: 42,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        for name in ["file", "link", "fifo", "empty"] {
            utimensat(&directory, name, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }

    fn crowd(&self) {
        for i in 0..1000 {
            self.env
                .file(self.at(&format!("crowd/{i:04}")), i.to_string());
        }
        self.env.dir(self.at("empty/inner/innermost"));
    }

    fn attributes(&self, skipped: &mut Vec<&'static str>) {
        let env = self.env;
        let file = env.file(self.at("xattrs/file"), "x");
        if !file.try_xattr("user.simple", "value") {
            skipped.push("user attributes: not on this file system");
            return;
        }
        file.xattr("user.empty", "")
            .xattr("user.binary", b"\0\xff\n\0")
            .xattr("user.longer", pattern(900, 5));
        let many = env.file(self.at("xattrs/many"), "x");
        for i in 0..20 {
            assert!(many.try_xattr(&format!("user.number-{i}"), i.to_string()));
        }
        env.dir(self.at("xattrs/directory"))
            .xattr("user.on-directory", "yes");
        env.file(self.at("xattrs/read-only"), "x")
            .xattr("user.simple", "value")
            .mode(0o444);
        env.file(self.at("xattrs/hard"), "x")
            .xattr("user.simple", "value");
        env.hard_link(self.at("xattrs/hard-too"), self.at("xattrs/hard"));
        if !self.as_root {
            return;
        }
        let trusted = env.file(self.at("xattrs/trusted"), "x");
        if trusted.try_xattr("trusted.pcopy-test", "value") {
            env.symlink(self.at("xattrs/trusted-link"), "file")
                .xattr("trusted.pcopy-test", "on a link");
            env.fifo(self.at("xattrs/trusted-fifo"))
                .xattr("trusted.pcopy-test", "on a FIFO");
            env.dir(self.at("xattrs/trusted-directory"))
                .xattr("trusted.pcopy-test", "on a directory");
        } else {
            skipped.push("trusted attributes: not on this file system");
        }
        if !env
            .file(self.at("xattrs/security"), "x")
            .try_xattr("security.pcopy-test", "value")
        {
            skipped.push("security attributes: not on this file system");
        }
        // CAP_NET_BIND_SERVICE, permitted and effective; revision 2.
        let words = [0x0200_0001_u32, 1 << 10, 0, 0, 0];
        let capability: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let capable = env
            .file(self.at("xattrs/capable"), "x")
            .owner(1, 1)
            .mode(0o755);
        if !capable.try_xattr("security.capability", &capability) {
            skipped.push("file capabilities: not on this file system");
        }
        env.file(self.at("xattrs/capable-setuid"), "x")
            .owner(NOBODY, 5)
            .mode(0o4755)
            .try_xattr("security.capability", &capability);
    }

    fn acls(&self, skipped: &mut Vec<&'static str>) {
        use AclTag::{Group, GroupObj, Mask, Other, User, UserObj};
        let env = self.env;
        let access = acl(&[
            (UserObj, 6, NO_ID),
            (User, 4, 1234),
            (GroupObj, 0, NO_ID),
            (Group, 6, 4321),
            (Mask, 6, NO_ID),
            (Other, 0, NO_ID),
        ]);
        let default = acl(&[
            (UserObj, 7, NO_ID),
            (User, 7, 1234),
            (GroupObj, 5, NO_ID),
            (Mask, 7, NO_ID),
            (Other, 0, NO_ID),
        ]);
        if !env
            .file(self.at("acls/file"), "x")
            .try_xattr(ACCESS_ACL, &access)
        {
            skipped.push("ACLs: not on this file system");
            return;
        }
        // Entries without an ACL, created before the directory has its default ACL.
        env.file(self.at("acls/default/plain-file"), "x")
            .mode(0o644);
        env.dir(self.at("acls/default/plain-directory/inner"))
            .mode(0o755);
        env.fifo(self.at("acls/default/plain-fifo"));
        env.symlink(self.at("acls/default/plain-link"), "plain-file");
        env.at(self.at("acls/default")).xattr(DEFAULT_ACL, &default);
        // Entries that inherit the default ACL.
        env.file(self.at("acls/default/inherited-file"), "x");
        env.dir(self.at("acls/default/inherited-directory/inner"));
        // With `access` a normal user could not look into it.
        env.dir(self.at("acls/directory"))
            .xattr(ACCESS_ACL, &default);
        if self.as_root {
            env.fifo(self.at("acls/fifo")).xattr(ACCESS_ACL, &access);
        }
    }

    /// Directories with unusual modes and times.
    fn directories(&self) {
        let env = self.env;
        for (name, mode) in [
            ("read-only", 0o555),
            ("private-read-only", 0o500),
            ("setgid", 0o2775),
            ("sticky", 0o1777),
            ("private", 0o700),
        ] {
            let path = self.at(&format!("directories/{name}"));
            env.file(format!("{path}/file"), name);
            env.dir(format!("{path}/inner")).mode(0o755);
            env.file(format!("{path}/inner/file"), name);
            env.symlink(format!("{path}/link"), "file");
            if is_root() && !self.as_root {
                env.sh(&format!("chown -hR {NOBODY}:{NOBODY} {path}"));
            }
            env.at(format!("{path}/inner"))
                .mode(mode)
                .mtime(1_111_111_111, 111);
            env.at(&path).mode(mode).mtime(999_999_999, 999);
        }
        if self.as_root {
            env.dir(self.at("directories/closed/inner"))
                .mode(0o000)
                .mtime(5, 5);
            env.at(self.at("directories/closed"))
                .mode(0o000)
                .mtime(6, 6);
        }
        if is_root() && !self.as_root {
            env.at(self.at("directories")).owner(NOBODY, NOBODY);
        }
        env.at(self.at("times")).mtime(77, 7);
        env.at(self.root).mode(0o750).mtime(1_222_333_444, 555);
    }
}

const SETUID_AND_SETGID: [(u32, &str); 3] =
    [(0o4755, "setuid"), (0o2755, "setgid"), (0o6711, "both")];
