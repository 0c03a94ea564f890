//! `--parents`: sources keep their path as it is named.

use std::os::unix::fs::MetadataExt;

use crate::env::Env;
use crate::targets::refused;

fn project(env: &Env) {
    for file in ["a/b/x", "a/b/y", "a/z", "c/1"] {
        env.file(file, file);
    }
    env.dir("a/b").mode(0o705).mtime(7, 0);
    env.dir("a").mode(0o750).mtime(8, 0);
}

all_modes!(the_path_as_named_is_kept_below_the_destination, |env| {
    project(env);
    env.dir("dst").mode(0o711).mtime(9, 0);
    env.pcopy(["--parents", "a/b", "c/1", "dst"])
        .ok()
        .counts(3, 0, 0);
    env.assert_same("a/b", "dst/a/b");
    assert!(!env.exists("dst/a/z"));
    assert_eq!(env.stat("dst/a").mode() & 0o777, 0o750);
    assert_eq!(env.stat("dst/a").mtime(), 8);
    // The destination is no copy of anything.
    assert_eq!(env.stat("dst").mode() & 0o777, 0o711);
    env.pcopy(["--relative", "./a//b/", "c/1", "dst"])
        .ok()
        .counts(0, 3, 0);
    // -t, a new destination, and a file alone.
    env.pcopy(["--parents", "-t", "new", "a/z"])
        .ok()
        .counts(1, 0, 0);
    assert_eq!(env.read("new/a/z"), b"a/z");
    env.snapshot(".").assert_no_temporaries();
});

both_modes!(an_absolute_path_and_a_mark_are_kept_too, |env| {
    project(env);
    let absolute = env.inner_path("a/z");
    let below = format!("dst{}", absolute.display());
    env.pcopy(["--parents", absolute.to_str().unwrap(), "dst"])
        .ok()
        .counts(1, 0, 0);
    assert_eq!(env.read(below), b"a/z");
    env.pcopy(["--parents", "a/./b/x", "c/./1", "marked"])
        .ok()
        .counts(2, 0, 0);
    assert!(env.exists("marked/b/x") && env.exists("marked/1"));
});

both_modes!(rules_apply_below_what_is_named, |env| {
    project(env);
    env.pcopy(["--parents", "--exclude=y", "a", "dst"])
        .ok()
        .counts(2, 0, 0);
    assert!(env.exists("dst/a/b/x") && !env.exists("dst/a/b/y"));
    let run = env.pcopy(["-n", "-v", "--parents", "a/b/x", "plan"]).ok();
    run.stdout_has_line("make a/ (new)")
        .stdout_has_line("copy a/b/x (new)");
    assert!(!env.exists("plan"));
});

once!(paths_that_cannot_be_kept_are_refused, |env| {
    project(env);
    env.symlink("link", "a");
    for (arguments, words) in [
        (&["--parents", "a/../c", "dst"][..], "has .. in it"),
        (&["--parents", ".", "dst"], "no path that could be kept"),
        (
            &["--parents", "missing/x", "dst"],
            "cannot copy missing/x: No such file or directory",
        ),
        (
            &["--parents", "link/z", "dst"],
            "link is a symbolic link; --parents follows it only with -L",
        ),
        (&["--parents", "link", "dst"], "link is a symbolic link"),
        (&["--parents", "a/./b", "c/./b", "dst"], "No such file"),
        (&["--parents", "a/./b", "b", "dst"], "No such file"),
        (&["--parents", "-T", "a", "dst"], "does not go with -T"),
        (
            &["--parents", "--duplicate", "a"],
            "does not go with --duplicate",
        ),
    ] {
        refused(env, env.pcopy(arguments), words);
    }
    env.file("b/x", "");
    let run = env.pcopy(["--parents", "a/./b", "b", "dst"]);
    refused(env, run, "a/b and b would both become dst/b");
    env.pcopy(["--parents", "a/b", "a/b/new"])
        .exits(2)
        .stderr_has("the destination lies inside the source");
    env.pcopy(["--parents", "a/b", "."])
        .exits(2)
        .stderr_has("source and destination are the same directory");
    env.pcopy(["--parents", "-P", "link", "link-copy"]).ok();
    assert!(env.stat("link-copy/link").is_symlink());
    env.pcopy(["--parents", "-L", "link/z", "followed"]).ok();
    assert_eq!(env.read("followed/link/z"), b"a/z");
});
