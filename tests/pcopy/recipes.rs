//! The recipes of README.md, run as they stand there.
//!
//! Absolute paths lie below the test's directory, and `pcopy` is the program under test.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::env::Env;
use crate::noise::pattern;

const README: &str = include_str!("../../README.md");

/// Returns the shell commands of a recipe.
fn recipe(name: &str) -> &'static str {
    let marker = format!("<!-- recipe: {name} -->\n```sh\n");
    let (_, after) = README
        .split_once(&marker)
        .unwrap_or_else(|| panic!("README.md has no recipe {name}"));
    after.split_once("```").expect("the block ends").0
}

/// Puts each absolute path of a script below `root`.
fn below(root: &str, script: &str) -> String {
    let mut moved = String::new();
    let mut before = ' ';
    for c in script.chars() {
        if c == '/' && before.is_whitespace() {
            moved.push_str(root);
        }
        moved.push(c);
        before = c;
    }
    moved
}

impl Env {
    /// Runs a recipe. Returns what it printed.
    #[track_caller]
    fn run_recipe(&self, name: &str) -> String {
        let root = self.path("");
        let root = root.to_str().unwrap().trim_end_matches('/');
        let mode = self.mode().name();
        let program = self.program(false);
        let wrapper = format!(
            "#!/bin/sh\nexec '{}' --mode {mode} \"$@\"\n",
            program.display()
        );
        self.file("bin/pcopy", wrapper);
        let path = self.path("bin/pcopy");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = below(root, recipe(name));
        // What a recipe waits for need not be waited for here.
        self.sh(&format!(
            "PATH=\"{root}/bin:$PATH\"; sleep() {{ :; }}\n{script}"
        ))
    }
}

#[test]
fn only_absolute_paths_are_moved() {
    let moved = below("/t", "cp -a /a/b c/d --x=/e\n\t/f . a /");
    assert_eq!(moved, "cp -a /t/a/b c/d --x=/e\n\t/t/f . a /t/");
}

both_modes!(a_backup_with_snapshots, |env| {
    env.file("home/ada/kept", "kept");
    env.file("home/ada/sub/changed", "before");
    env.dir("mnt/backup");
    env.pcopy(["home/ada", "mnt/backup/monday"]).ok();
    env.file("home/ada/sub/changed", "afterwards");
    env.run_recipe("snapshots");
    env.assert_same("home/ada", "mnt/backup/tuesday");
    let inode = |path: &str| env.stat(path).ino();
    assert_eq!(
        inode("mnt/backup/monday/kept"),
        inode("mnt/backup/tuesday/kept")
    );
    assert_eq!(env.read("mnt/backup/monday/sub/changed"), b"before");
});

both_modes!(a_mirror, |env| {
    env.file("srv/data/new", "new");
    env.file("srv/data/changed", "longer than before");
    env.file("mnt/mirror/data/changed", "before");
    env.file("mnt/mirror/data/gone/file", "gone");
    let printed = env.run_recipe("mirror");
    assert!(printed.contains("delete "), "{printed}");
    env.assert_same("srv/data", "mnt/mirror/data");
    assert_eq!(env.read("mnt/mirror/replaced/changed"), b"before");
    assert_eq!(env.read("mnt/mirror/replaced/gone/file"), b"gone");
});

both_modes!(photos_from_a_stick, |env| {
    for number in 0..5 {
        let photo = pattern(100_000 + number, number as u64);
        env.file(format!("media/stick/DCIM/100APPLE/IMG_{number}.jpg"), photo);
    }
    env.dir("home/ada");
    env.run_recipe("photos");
    env.assert_same("media/stick/DCIM", "home/ada/photos/2026-11");
});

both_modes!(small_files_to_a_server, |env| {
    for number in 0..20 {
        env.file(format!("srv/mail/{number}/new"), "mail");
    }
    for dir in ["mnt/nas", "var/log", "var/tmp"] {
        env.dir(dir);
    }
    env.run_recipe("server");
    env.assert_same("srv/mail", "mnt/nas/mail");
    assert!(!env.read("var/log/mail-copy.log").is_empty());
    assert!(env.read("var/tmp/mail-failed").is_empty());
});

both_modes!(what_git_tracks, |env| {
    if env.skipped_without("git") {
        return;
    }
    env.file("home/ada/project/main.rs", "fn main() {}");
    env.file("home/ada/project/docs/a b.md", "text");
    env.file("home/ada/project/.gitignore", "target\n");
    env.file("home/ada/project/target/build", "product");
    env.dir("tmp");
    env.sh("cd home/ada/project; git init -q .; git add .");
    env.run_recipe("ci");
    for copy in ["tmp/release", "tmp/snapshot"] {
        assert_eq!(env.read(format!("{copy}/docs/a b.md")), b"text");
        assert_eq!(env.read(format!("{copy}/main.rs")), b"fn main() {}");
        assert!(!env.exists(format!("{copy}/target/build")), "{copy}");
        assert!(!env.exists(format!("{copy}/.git")), "{copy}");
    }
});

both_modes!(a_script_that_looks_at_the_status, |env| {
    env.file("srv/data/file", "x");
    env.dir("mnt/backup");
    assert_eq!(env.run_recipe("script"), "");
    env.assert_same("srv/data", "mnt/backup/data");
});
