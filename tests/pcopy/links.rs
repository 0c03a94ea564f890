//! Hard links and symbolic links.

use std::os::unix::fs::MetadataExt;

// ---- hard links -----------------------------------------------------------------------------

all_modes!(hard_links_are_kept_across_the_sources_of_one_run, |env| {
    env.file("one/file", "content");
    env.hard_link("two/deeper/file", "one/file");
    env.hard_link("three", "one/file");
    env.pcopy(["-t", "dst", "one", "two", "three"]).ok();
    let inode = |path: &str| env.stat(path).ino();
    assert_eq!(inode("dst/one/file"), inode("dst/two/deeper/file"));
    assert_eq!(inode("dst/one/file"), inode("dst/three"));
    assert_eq!(env.read("dst/three"), b"content");
});

all_modes!(a_new_hard_link_joins_its_group, |env| {
    env.file("src/a", "content");
    env.hard_link("src/b", "src/a");
    env.pcopy(["src", "dst"]).ok();
    env.hard_link("src/0-before", "src/a");
    env.hard_link("src/directory/z-after", "src/a");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(
    a_changed_group_of_hard_links_is_replaced_as_a_whole,
    |env| {
        env.file("src/a", "content");
        env.hard_link("src/b", "src/a");
        env.hard_link("src/directory/c", "src/a");
        env.pcopy(["src", "dst"]).ok();
        env.file("src/a", "other content");
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
    }
);

both_modes!(
    hard_links_that_only_the_destination_has_are_separated,
    |env| {
        env.file("src/a", "one").mtime(1, 1);
        env.file("src/b", "two").mtime(1, 2);
        env.file("dst/a", "one").mtime(1, 1);
        env.hard_link("dst/b", "dst/a");
        env.pcopy(["src", "dst"]).ok();
        env.assert_same("src", "dst");
    }
);

all_modes!(hard_links_are_kept_whatever_is_overwritten, |env| {
    env.file("src/a", "x");
    env.hard_link("src/b", "src/a");
    for overwrite in ["never", "older"] {
        let option = format!("--overwrite={overwrite}");
        env.pcopy([&option, "--no-preserve=timestamps", "src", overwrite])
            .ok();
        let of = |name| env.stat(format!("{overwrite}/{name}")).ino();
        assert_eq!(of("a"), of("b"), "{overwrite}");
    }
});

both_modes!(files_kept_by_older_and_never_are_not_linked_to, |env| {
    env.file("src/a", "content").mtime(1_000, 0);
    env.hard_link("src/b", "src/a");
    for option in ["--overwrite=older", "--overwrite=never"] {
        // One of the two exists and is newer. The other one gets the source's content.
        for (there, missing) in [("a", "b"), ("b", "a")] {
            let copy = format!("dst{option}-{there}");
            env.file(format!("{copy}/{there}"), "of another kind");
            env.pcopy([option, "src", &copy]).ok();
            assert_eq!(env.read(format!("{copy}/{there}")), b"of another kind");
            assert_eq!(env.read(format!("{copy}/{missing}")), b"content");
        }
        // Both exist.
        let copy = format!("dst{option}-both");
        env.file(format!("{copy}/a"), "one");
        env.file(format!("{copy}/b"), "the other");
        env.pcopy([option, "src", &copy]).ok().counts(0, 0, 0);
        assert_eq!(env.read(format!("{copy}/a")), b"one");
        assert_eq!(env.read(format!("{copy}/b")), b"the other");
    }
});

both_modes!(an_older_file_becomes_a_link, |env| {
    env.file("src/a", "content").mtime(2_000, 0);
    env.hard_link("src/b", "src/a");
    env.file("dst/a", "content").mtime(2_000, 0);
    env.file("dst/b", "other").mtime(1_000, 0);
    for options in [&["-n"][..], &[]] {
        let args = [options, &["--overwrite=older", "src", "dst"]].concat();
        env.pcopy(args).ok();
    }
    assert_eq!(env.stat("dst/a").ino(), env.stat("dst/b").ino());
    assert_eq!(env.read("dst/b"), b"content");
    // A newer one is left alone, and -n knows that too.
    env.file("dst/a", "mine").mtime(3_000, 0);
    for options in [&["-n"][..], &[]] {
        let args = [options, &["--overwrite=older", "src", "dst"]].concat();
        let run = env.pcopy(args).ok();
        assert_eq!(run.summary().copied, 0, "{run}");
    }
    assert_eq!(env.read("dst/b"), b"mine");
});

// ---- symbolic links -------------------------------------------------------------------------

both_modes!(links_in_the_tree_are_copied_as_links, |env| {
    env.file("outside/file", "outside");
    env.symlink("src/to-directory", "../outside");
    env.symlink("src/to-file", "../outside/file");
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("src", "dst");
    assert!(env.stat("dst/to-directory").is_symlink());
});

both_modes!(dereference_copies_the_targets_of_links, |env| {
    env.file("outside/file", "outside").mode(0o640).mtime(5, 5);
    env.file("outside/directory/inside", "inside").mtime(6, 6);
    env.symlink("src/file", "../outside/file");
    env.symlink("src/directory", "../outside/directory");
    env.file("src/plain", "plain");
    env.pcopy(["-L", "src", "dst"]).ok();
    env.assert_same("outside/file", "dst/file");
    env.assert_same("outside/directory", "dst/directory");
    env.assert_same("src/plain", "dst/plain");
    let before = env.snapshot("dst");
    let run = env.pcopy(["--dereference", "src", "dst"]).ok();
    assert_eq!(run.summary().copied, 0, "{run}");
    before.assert_untouched();
});

both_modes!(dereference_reports_dangling_links_and_loops, |env| {
    env.symlink("src/dangling", "nowhere");
    env.symlink("src/directory/up", "..");
    env.symlink("src/self", "self");
    env.file("src/directory/file", "x");
    env.pcopy(["-L", "src", "dst"]).exits(1).fails_only(&[
        ("src/dangling", "symbolic link to nothing"),
        (
            "src/directory/up",
            "symbolic links lead back to a parent directory",
        ),
        ("src/self", "Too many levels of symbolic links"),
    ]);
    env.assert_same("src/directory/file", "dst/directory/file");
});
