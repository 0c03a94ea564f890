//! `--files-from`: the paths of a list, and nothing else.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;

use crate::env::{Env, bytes_path};
use crate::run::Pcopy;
use crate::targets::refused;

fn project(env: &Env) {
    for file in ["a/b/x", "a/b/y", "a/z", "c/1", "c/2", "top"] {
        env.file(format!("src/{file}"), file);
    }
    env.dir("src/a/b").mode(0o705).mtime(7, 0);
    env.dir("src/a").mode(0o750).mtime(8, 0);
}

/// Runs pcopy with this file as stdin.
fn reading<'a>(command: Pcopy<'a>, file: &str) -> Pcopy<'a> {
    command.under(&["sh", "-c", &format!("exec \"$@\" <{file}"), "sh"])
}

both_modes!(exactly_the_listed_paths_are_copied, |env| {
    project(env);
    // In any order, doubled, with comments, and spelled in many ways.
    env.file(
        "list",
        "top\n./a//b/x\n; comment\n\n/a/b/x\r\nc/../a/b/x\n# more\n",
    );
    env.pcopy(["--files-from=list", "src", "dst"])
        .ok()
        .counts(2, 0, 0);
    assert!(!env.exists("dst/a/b/y") && !env.exists("dst/a/z") && !env.exists("dst/c"));
    // Directories on the way have their metadata.
    assert_eq!(env.stat("dst/a/b").mode() & 0o777, 0o705);
    assert_eq!(env.stat("dst/a").mtime(), 8);
    env.pcopy(["--files-from", "list", "src", "dst"])
        .ok()
        .counts(0, 2, 0);
});

all_modes!(a_listed_directory_is_whole_with_r, |env| {
    project(env);
    env.file("list", "a\ntop\n");
    env.pcopy(["--files-from=list", "src", "without"])
        .ok()
        .counts(1, 0, 0);
    assert_eq!(env.stat("without/a").mode() & 0o777, 0o750);
    assert!(!env.exists("without/a/z"));
    env.pcopy(["-r", "--files-from=list", "src", "with"])
        .ok()
        .counts(4, 0, 0);
    env.assert_same("src/a", "with/a");
    assert!(!env.exists("with/c"));
    // Each path must be there, even if it lies in a directory that is copied whole.
    env.file("list", "a\na/b/missing\n");
    env.pcopy(["-r", "--files-from=list", "src", "with"])
        .exits(1)
        .fails_only(&[("src/a/b/missing", "No such file")]);
});

both_modes!(of_an_excluded_directory_what_is_listed_is_copied, |env| {
    project(env);
    env.file("list", "a\na/b/x\nc\n");
    for (rule, copied) in [
        ("--exclude=/a/", &["a/b/x", "c/1", "c/2"][..]),
        ("--exclude=b", &["a/b/x", "a/z", "c/1", "c/2"]),
        ("--exclude=c", &["a/b/x", "a/b/y", "a/z"]),
        ("--exclude=/a/**", &["c/1", "c/2"]),
    ] {
        env.sh("rm -rf dst");
        env.pcopy(["-r", "--files-from=list", rule, "src", "dst"])
            .ok();
        let found = env.sh("cd dst && find . -type f | sort | cut -c3-");
        assert_eq!(found.lines().collect::<Vec<_>>(), copied, "{rule}");
    }
});

both_modes!(what_is_missing_is_named_and_the_rest_is_copied, |env| {
    project(env);
    env.symlink("src/link", "a");
    env.file("list", "gone\na/b/x\nnowhere/at/all\nc/3\ntop/x\nlink/z\n");
    env.pcopy(["--files-from=list", "src", "dst"])
        .exits(1)
        .fails_only(&[
            ("src/gone", "No such file or directory"),
            ("src/nowhere", "No such file or directory"),
            ("src/c/3", "No such file or directory"),
            ("src/top", "Not a directory"),
            ("src/link", "symbolic link"),
        ]);
    assert!(env.exists("dst/a/b/x"));
    assert!(!env.exists("dst/link") && !env.exists("dst/nowhere"));
    env.file("list", "link/z\n");
    env.pcopy(["-L", "--files-from=list", "src", "followed"])
        .ok()
        .counts(1, 0, 0);
    assert!(env.exists("followed/link/z"));
});

both_modes!(names_between_nuls_may_be_anything, |env| {
    let names = [&b"#name"[..], b";name", b"a\nb", b"\xff", b" x\r", b"-n"];
    let mut list = Vec::new();
    for name in names {
        env.file(std::path::Path::new("src").join(bytes_path(name)), "");
        list.extend_from_slice(name);
        list.push(0);
    }
    env.file("src/not-listed", "");
    env.file("list", &list);
    reading(
        env.command(["-0", "--files-from", "-", "src", "dst"]),
        "list",
    )
    .run()
    .ok()
    .counts(6, 0, 0);
    let copy = env.snapshot("dst");
    for name in names {
        copy.entry(bytes_path(name));
    }
});

both_modes!(what_git_lists_is_copied_below_the_repository, |env| {
    if env.skipped_without("git") {
        return;
    }
    project(env);
    env.sh("cd src && git init -q && git add a top && echo untracked >u");
    let script = "cd src && git ls-files -z | exec \"$@\"";
    env.command(["-0", "--files-from=-", ".", "dst"])
        .under(&["sh", "-c", script, "sh"])
        .run()
        .ok()
        .counts(4, 0, 0);
    assert!(env.exists("src/dst/a/b/x") && !env.exists("src/dst/u") && !env.exists("src/dst/dst"));
});

both_modes!(a_list_does_not_copy_a_directory_into_itself, |env| {
    project(env);
    env.file("list", "a/z\ndst/x\n");
    env.file("src/dst/x", "");
    env.pcopy(["--files-from=list", "src", "src/dst"])
        .exits(1)
        .fails_only(&[("src/dst", "directory is the destination itself")]);
    assert!(env.exists("src/dst/a/z") && !env.exists("src/dst/dst/x"));
    // From a directory to the one that it is in: the source must not be written to.
    env.file("up/src/src/x", "new");
    env.file("up/src/x", "precious");
    env.file("list", "src/x\n");
    env.pcopy(["--files-from=list", "up/src", "up"])
        .exits(1)
        .fails_only(&[("up/src", "directory belongs to the source")]);
    assert_eq!(env.read("up/src/x"), b"precious");
});

both_modes!(a_long_list_is_copied_by_all_workers, |env| {
    let mut list = String::new();
    for number in 0..3000 {
        let path = format!("{}/{}/{number}", number % 3, number % 7);
        env.file(format!("src/{path}"), "");
        if number % 2 == 0 {
            let _ = writeln!(list, "{path}");
        }
    }
    env.file("list", list);
    env.pcopy(["-j", "4", "--files-from=list", "src", "dst"])
        .ok()
        .counts(1500, 0, 0);
});

once!(lists_that_make_no_sense_are_refused, |env| {
    project(env);
    env.file("list", "a\n");
    env.file("outside", "a\n../src/a\n");
    for (arguments, words) in [
        (
            &["--files-from=missing", "src", "dst"][..],
            "--files-from: missing: No such file",
        ),
        (
            &["--files-from=outside", "src", "dst"],
            "../src/a: leads out of SRC",
        ),
        (
            &["--files-from=list", "src", "src/a", "dst"],
            "takes one SRC",
        ),
        (
            &["--files-from=list", "src/top", "dst"],
            "needs a directory as SRC",
        ),
        (
            &["--files-from=list", "-x", "src", "dst"],
            "does not go with -x",
        ),
        (
            &["--files-from=list", "--duplicate", "src"],
            "does not go with --duplicate",
        ),
    ] {
        refused(env, env.pcopy(arguments), words);
    }
    let run = env.pcopy(["--files-from=list", "src", "src"]);
    run.exits(2)
        .stderr_has("source and destination are the same directory");
    let run = env.pcopy(["-r", "--files-from=list", "src", "src/new"]);
    run.exits(2)
        .stderr_has("the destination lies inside the source");
});
