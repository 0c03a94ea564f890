//! Which entries are copied: rules, `.gitignore` files, markers, limits, and what DST has already.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use crate::env::{Env, bytes_path};
use crate::targets::refused;

/// Makes a source with some files to leave out, most of them empty.
fn project(env: &Env) {
    for file in [
        "main.c",
        "main.o",
        "lib/a.c",
        "lib/a.o",
        "build/deep/x",
        "doc/build",
        "doc/b.o",
    ] {
        env.file(format!("src/{file}"), file);
    }
    env.dir("src/only-objects");
    env.file("src/only-objects/c.o", "");
}

all_modes!(excluded_entries_are_neither_copied_nor_counted, |env| {
    project(env);
    env.pcopy(["--exclude=*.o", "--exclude", "build/", "src", "dst"])
        .ok()
        .counts(3, 0, 0);
    for there in ["main.c", "lib/a.c", "doc/build", "only-objects"] {
        assert!(env.exists(format!("dst/{there}")), "{there}");
    }
    for left_out in ["main.o", "lib/a.o", "build", "doc/b.o", "only-objects/c.o"] {
        assert!(!env.exists(format!("dst/{left_out}")), "{left_out}");
    }
    // Directories that a filter leaves empty are copied with their metadata.
    assert_eq!(
        env.stat("dst/only-objects").mode(),
        env.stat("src/only-objects").mode()
    );
    // A second run finds nothing to do, and what is excluded is not touched.
    env.file("dst/main.o", "of the destination");
    env.pcopy(["--exclude=*.o", "--exclude=build/", "src", "dst"])
        .ok()
        .counts(0, 3, 0);
    assert_eq!(env.read("dst/main.o"), b"of the destination");
});

both_modes!(an_excluded_directory_is_not_entered, |env| {
    env.file("src/open/x", "");
    env.file("src/closed/x", "");
    env.dir("src/closed").mode(0);
    let arguments = ["--exclude=/closed", "src", "dst"];
    env.command(arguments)
        .unprivileged()
        .after("umask 022")
        .run();
    let run = env.pcopy(arguments).ok();
    assert!(run.complaints().is_empty(), "{run}");
    assert!(!env.exists("dst/closed"));
    env.dir("src/closed").mode(0o755);
});

both_modes!(names_and_rules_are_bytes, |env| {
    for name in [&b"\xff.o"[..], b"\xfe.o", b"a\xff", b"\xe4"] {
        env.file(std::path::Path::new("src").join(bytes_path(name)), "");
    }
    env.file("rules", b"+ \xfe*\n;\n# comment\n*.o\r\n\n- [\xe3-\xe5]\n");
    env.pcopy(["--exclude-from=rules", "src", "dst"])
        .ok()
        .counts(2, 0, 0);
    let copy = env.snapshot("dst");
    copy.entry(bytes_path(b"\xfe.o"));
    copy.entry(bytes_path(b"a\xff"));
    // The same rules from stdin, with NUL after each.
    env.file("rules0", b"+ \xfe*\0*.o\0- [\xe3-\xe5]\0");
    let script = "exec \"$@\" <rules0";
    env.command(["-0", "--exclude-from=-", "src", "dst0"])
        .under(&["sh", "-c", script, "sh"])
        .run()
        .ok()
        .counts(2, 0, 0);
});

both_modes!(a_dry_run_names_the_rule_that_decided, |env| {
    project(env);
    env.file("src/.gitignore", "# objects\n*.o\n");
    env.file("src/big", [0; 2000]);
    env.file("src/doc/.nobackup", "");
    env.file("rules", "a.c\n");
    let options = [
        "-n",
        "-v",
        "--gitignore",
        "--exclude=build/",
        "--exclude-from=rules",
        "--exclude-if-present=.nobackup",
        "--max-size=1K",
    ];
    let run = env.pcopy(options.iter().chain(&["src", "dst"])).ok();
    let run = run
        .stdout_has_line("excluded src/build/ (--exclude build/)")
        .stdout_has_line("excluded src/lib/a.c (--exclude-from rules: a.c)")
        .stdout_has_line("excluded src/main.o (.gitignore:2: '*.o')")
        .stdout_has_line("excluded src/doc/b.o (--exclude-if-present .nobackup)")
        .stdout_has_line("excluded src/big (--max-size 1K)")
        .stdout_has_line("copy src/main.c (new)");
    assert!(!run.stdout().contains("deep"), "{run}");
    let quiet = env.pcopy(["-n", "--exclude=*", "src", "dst"]).ok();
    assert!(!quiet.stdout().contains("excluded"), "{quiet}");
    assert!(!env.exists("dst"));
});

both_modes!(a_hard_link_whose_first_name_is_excluded_is_copied, |env| {
    env.file("src/a", "shared");
    for name in ["b", "c"] {
        env.hard_link(format!("src/{name}"), "src/a");
    }
    env.pcopy(["--exclude=a", "src", "dst"])
        .ok()
        .counts(2, 0, 0);
    assert_eq!(env.stat("dst/b").ino(), env.stat("dst/c").ino());
    assert_eq!(env.stat("dst/b").nlink(), 2);
});

both_modes!(rules_apply_to_files_that_are_named, |env| {
    for file in ["a.o", "b.c", "real"] {
        env.file(file, file);
    }
    env.symlink("link.o", "real");
    let run = env.pcopy(["-n", "-v", "--exclude=*.o", "a.o", "b.c", "link.o", "dst"]);
    let run = run.ok().stdout_has_line("excluded a.o (--exclude '*.o')");
    assert!(!run.stdout().contains("dst"), "{run}");
    env.pcopy(["--exclude=*.o", "a.o", "b.c", "link.o", "dst"])
        .ok()
        .counts(1, 0, 0);
    assert!(!env.exists("dst/a.o") && env.exists("dst/b.c"));
    // SRC itself is never excluded: rules see what is below it.
    env.file("src/x", "");
    env.pcopy(["--exclude=src", "--exclude=/src", "src", "copy"])
        .ok()
        .counts(1, 0, 0);
    env.pcopy(["--max-size=1", "real", "b.c", "limited"])
        .ok()
        .counts(0, 0, 0);
});

both_modes!(a_followed_link_is_what_it_leads_to, |env| {
    env.file("elsewhere/x", "");
    env.file("src/plain", "");
    env.symlink("src/dir", "../elsewhere");
    env.symlink("src/file", "plain");
    env.symlink("src/broken.o", "nowhere");
    env.pcopy(["-L", "--exclude=dir/", "--exclude=*.o", "src", "dst"])
        .ok()
        .counts(2, 0, 0);
    assert!(!env.exists("dst/dir"));
    // Without -L it is a link, and no directory.
    env.pcopy(["--exclude=dir/", "src", "links"]).ok();
    assert!(env.stat("links/dir").is_symlink());
});

all_modes!(gitignore_files_are_read_as_git_reads_them, |env| {
    env.dir("repo/.git");
    env.file("repo/.gitignore", "*.log\n");
    for file in [
        "keep",
        "a.log",
        "target/x",
        "sub/a.tmp",
        "sub/b.log",
        "sub/target",
    ] {
        env.file(format!("repo/src/{file}"), "");
    }
    env.file("repo/src/.gitignore", "/target/\n*.tmp\n");
    env.file("repo/src/sub/.gitignore", "!a.tmp\n!b.log\n");
    env.pcopy(["--gitignore", "repo/src", "dst"])
        .ok()
        .counts(6, 0, 0);
    for there in ["keep", "sub/a.tmp", "sub/b.log", "sub/target", ".gitignore"] {
        assert!(env.exists(format!("dst/{there}")), "{there}");
    }
    // Without the option they are files like any other.
    env.pcopy(["repo/src", "all"]).ok().counts(8, 0, 0);
});

both_modes!(the_contents_of_caches_are_left_out, |env| {
    let tag = "Signature: 8a477f597d28d172789f06886806bc55\n";
    env.file("src/cache/CACHEDIR.TAG", tag);
    env.file("src/cache/sub/x", "");
    env.file("src/no-cache/CACHEDIR.TAG", "something else");
    env.file("src/no-cache/x", "");
    env.file("src/marked/.nobackup", "");
    env.file("src/marked/x", "");
    env.pcopy([
        "--exclude-caches",
        "--exclude-if-present",
        ".nobackup",
        "src",
        "dst",
    ])
    .ok()
    .counts(4, 0, 0);
    assert!(env.exists("dst/cache/CACHEDIR.TAG") && !env.exists("dst/cache/sub"));
    assert!(env.exists("dst/no-cache/x"));
    assert!(env.exists("dst/marked/.nobackup") && !env.exists("dst/marked/x"));
});

both_modes!(limits_of_size_and_age_concern_files, |env| {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or(Duration::ZERO).as_secs().cast_signed();
    for (name, size, days) in [
        ("small-new", 10, 1),
        ("large-new", 5000, 1),
        ("small-old", 10, 30),
    ] {
        env.file(format!("src/dir/{name}"), vec![0; size])
            .mtime(now - days * 86_400, 0);
    }
    env.symlink("src/dir/old-link", "x").mtime(0, 0);
    env.dir("src/dir").mtime(5, 5);
    for (options, copied) in [
        (
            &["--max-size=1K"][..],
            &["old-link", "small-new", "small-old"][..],
        ),
        (&["--min-size=1k"], &["large-new", "old-link"]),
        (
            &["--min-size=10", "--max-size=10"],
            &["old-link", "small-new", "small-old"],
        ),
        (&["--newer-than=7d"], &["large-new", "small-new"]),
        (&["--older-than=7d"], &["old-link", "small-old"]),
        (
            &["--newer-than=1970-01-02", "--older-than=168h"],
            &["small-old"],
        ),
        (&["--newer-than=7d", "--max-size=1K"], &["small-new"]),
    ] {
        let copy = format!("dst{}", options.concat());
        let run = env
            .pcopy(options.iter().copied().chain(["src", &copy]))
            .ok();
        let run = run.counts(copied.len() as u64, 0, 0);
        for name in ["small-new", "large-new", "small-old"] {
            let is_there = env.exists(format!("{copy}/dir/{name}"));
            assert_eq!(is_there, copied.contains(&name), "{name}: {run}");
        }
        assert_eq!(env.stat(format!("{copy}/dir")).mtime(), 5);
    }
});

both_modes!(existing_creates_nothing, |env| {
    env.file("src/old", "new content");
    env.file("src/new", "");
    env.symlink("src/new-link", "x");
    env.fifo("src/pipe");
    env.hard_link("src/pipe2", "src/pipe");
    env.hard_link("src/old2", "src/old");
    env.file("src/new-dir/x", "");
    env.file("src/dir/new", "");
    env.file("dst/old", "old");
    env.fifo("dst/pipe2");
    env.dir("dst/dir");
    let run = env.pcopy(["-n", "-v", "--existing", "src", "dst"]).ok();
    run.stdout_has_line("skip src/new (not at the destination)")
        .stdout_has_line("skip src/new-dir (not at the destination)")
        .stdout_has_line("replace src/old (size differs)");
    env.pcopy(["--existing", "src", "dst"]).ok();
    assert_eq!(env.read("dst/old"), b"new content");
    for name in ["new", "new-link", "pipe", "old2", "new-dir", "dir/new"] {
        assert!(!env.exists(format!("dst/{name}")), "{name}");
    }
    env.file("one", "1");
    env.pcopy(["--existing", "one", "dst"]).ok().counts(0, 0, 0);
    assert!(!env.exists("dst/one"));
});

both_modes!(ignore_existing_is_overwrite_never, |env| {
    env.file("src/old", "new content");
    env.file("src/new", "new");
    env.file("dst/old", "old");
    env.pcopy(["--ignore-existing", "src", "dst"]).ok();
    assert_eq!(env.read("dst/old"), b"old");
    assert_eq!(env.read("dst/new"), b"new");
    // The last one wins.
    env.pcopy(["--ignore-existing", "--overwrite=changed", "src", "dst"])
        .ok();
    assert_eq!(env.read("dst/old"), b"new content");
});

once!(wrong_filters_are_refused, |env| {
    env.file("src/x", "");
    for (options, words) in [
        (
            &["--exclude-from=missing"][..],
            "--exclude-from: missing: No such file or directory",
        ),
        (&["--max-size=big"], "--max-size big: not a size"),
        (
            &["--newer-than=2026-02-30"],
            "--newer-than 2026-02-30: there is no such day",
        ),
        (
            &["--exclude-from=-", "--include-from=-"],
            "stdin can be read once",
        ),
    ] {
        refused(
            env,
            env.pcopy(options.iter().copied().chain(["src", "dst"])),
            words,
        );
    }
});
