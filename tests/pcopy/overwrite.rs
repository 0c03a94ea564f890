//! Existing entries: which are replaced, which are kept, and which are in the way.

use std::os::unix::fs::MetadataExt;

use crate::noise::pattern;
use crate::trees::{SMALL_TREE_LEAVES, small_tree};

both_modes!(a_second_run_changes_nothing, |env| {
    small_tree(env);
    env.pcopy(["src", "dst"]).ok();
    let before = env.snapshot("dst");
    env.pcopy(["src", "dst"])
        .ok()
        .counts(0, SMALL_TREE_LEAVES, 0)
        .stderr_has("; nothing to do\n");
    before.assert_untouched();
});

both_modes!(only_entries_that_differ_are_replaced, |env| {
    env.file("src/same", "same");
    env.file("src/other-size", "new, and longer");
    env.file("src/other-time", "newer").mtime(2_000, 2);
    env.pcopy(["src", "dst"]).ok();
    env.file("dst/other-size", "old");
    env.file("dst/other-time", "older").mtime(2_000, 1);
    let before = env.snapshot("dst");
    env.pcopy(["src", "dst"]).ok().counts(2, 1, 0);
    env.assert_same("src", "dst");
    let inode = |path: &str| env.stat(path).ino();
    assert_eq!(inode("dst/same"), before.entry("same").inode.1, "kept");
    assert_ne!(
        inode("dst/other-size"),
        before.entry("other-size").inode.1,
        "replaced, not written into"
    );
    assert_ne!(
        inode("dst/other-time"),
        before.entry("other-time").inode.1,
        "replaced, not written into"
    );
});

both_modes!(a_file_replaces_a_file_that_differs, |env| {
    env.file("file", "new content");
    env.file("old", "old");
    env.pcopy(["file", "old"]).ok();
    env.assert_same("file", "old");
    env.pcopy(["file", "old"])
        .ok()
        .counts(0, 1, 0)
        .stderr_has("nothing to do");
});

both_modes!(files_links_and_fifos_replace_each_other, |env| {
    env.file("src/file-for-link", "file");
    env.file("src/file-for-fifo", "file");
    env.symlink("src/link-for-file", "file-for-link");
    env.symlink("src/link-for-link", "target");
    env.fifo("src/fifo-for-file");
    env.symlink("dst/file-for-link", "outside");
    env.fifo("dst/file-for-fifo");
    env.file("dst/link-for-file", "file");
    env.symlink("dst/link-for-link", "old");
    env.file("dst/fifo-for-file", "");
    env.pcopy(["src", "dst"]).ok().counts(5, 0, 0);
    env.assert_same("src", "dst");
});

both_modes!(a_name_of_255_bytes_can_be_replaced, |env| {
    let long = "n".repeat(255);
    env.file(format!("src/{long}"), "new");
    env.file(format!("dst/{long}"), "older");
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
});

both_modes!(an_unfinished_file_of_the_right_length_is_replaced, |env| {
    // A power cut may leave a file with its length, but without all of its content.
    env.file("src/file", pattern(100_000, 1)).mtime(1_000, 1);
    env.file("dst/file", vec![0; 100_000]);
    env.pcopy(["src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
});

// ---- in the way -----------------------------------------------------------------------------

both_modes!(a_directory_where_a_file_is_needed_fails_alone, |env| {
    small_tree(env);
    env.file("dst/a/b.txt/in-the-way", "x");
    env.pcopy(["src", "dst"])
        .exits(1)
        .fails_only(&[("dst/a/b.txt", "in the way")])
        .counts(SMALL_TREE_LEAVES - 1, 0, 1);
    assert_eq!(env.read("dst/a/b.txt/in-the-way"), b"x");
    env.assert_same("src/a/deeper", "dst/a/deeper");
});

both_modes!(a_file_where_a_directory_is_needed_fails_alone, |env| {
    small_tree(env);
    env.file("dst/a", "in the way").mtime(1, 1);
    let run = env
        .pcopy(["src", "dst"])
        .exits(1)
        .fails_only(&[("dst/a", "in the way")]);
    assert_eq!(run.summary().copied, SMALL_TREE_LEAVES - 2, "{run}");
    assert_eq!(env.read("dst/a"), b"in the way");
    env.assert_same("src/empty-file", "dst/empty-file");
});

// ---- --overwrite ----------------------------------------------------------------------------

both_modes!(overwrite_always_replaces_unchanged_files, |env| {
    small_tree(env);
    env.pcopy(["src", "dst"]).ok();
    let before = env.stat("dst/a/b.txt").ino();
    env.pcopy(["--overwrite", "always", "src", "dst"])
        .ok()
        .counts(SMALL_TREE_LEAVES, 0, 0);
    env.assert_same("src", "dst");
    assert_ne!(env.stat("dst/a/b.txt").ino(), before);
});

both_modes!(
    overwrite_never_keeps_existing_files_and_adds_missing_ones,
    |env| {
        env.file("src/there", "new");
        env.file("src/missing", "new");
        env.file("dst/there", "old, kept");
        let run = env.pcopy(["--overwrite", "never", "src", "dst"]).ok();
        assert_eq!(run.summary().copied, 1, "{run}");
        assert_eq!(env.read("dst/there"), b"old, kept");
        env.assert_same("src/missing", "dst/missing");
    }
);

both_modes!(overwrite_older_replaces_only_older_files, |env| {
    env.file("src/older", "new").mtime(1_000, 5);
    env.file("src/newer", "new").mtime(1_000, 5);
    env.file("src/missing", "new");
    env.file("dst/older", "old").mtime(1_000, 4);
    env.file("dst/newer", "keep").mtime(1_000, 6);
    let run = env.pcopy(["--overwrite", "older", "src", "dst"]).ok();
    assert_eq!(run.summary().copied, 2, "{run}");
    assert_eq!(env.read("dst/newer"), b"keep");
    env.assert_same("src/older", "dst/older");
    env.assert_same("src/missing", "dst/missing");
});

both_modes!(overwrite_older_replaces_what_is_of_another_kind, |env| {
    env.file("src/file", "new").mtime(1_000, 5);
    env.symlink("src/link", "file").mtime(1_000, 5);
    env.symlink("dst/file", "nowhere").mtime(2_000, 5);
    env.file("dst/link", "newer").mtime(2_000, 5);
    env.pcopy(["--overwrite=older", "src", "dst"])
        .ok()
        .counts(2, 0, 0);
    env.assert_same("src", "dst");
});

both_modes!(large_files_are_replaced_beside_others, |env| {
    // Each has a temporary name while its worker continues with the next entry.
    for i in 0..2 {
        env.file(format!("src/large-{i}"), pattern(33 * 1024 * 1024, i));
    }
    for i in 0..20 {
        env.file(format!("src/small-{i}"), pattern(1_000, i));
    }
    env.sh("mkdir old; for name in $(ls src); do truncate -s 33M old/$name; done");
    for overwrite in ["changed", "always", "older"] {
        env.sh("rm -rf dst; cp -r old dst; touch -d @1 dst/*");
        env.pcopy(["-j4", "--overwrite", overwrite, "src", "dst"])
            .ok()
            .counts(22, 0, 0);
        env.assert_same("src", "dst");
    }
    // These options use temporary names even if the entry does not exist yet.
    for overwrite in ["older", "never"] {
        env.sh("rm -rf dst");
        env.pcopy(["-j4", "--overwrite", overwrite, "src", "dst"])
            .ok()
            .counts(22, 0, 0);
        env.assert_same("src", "dst");
    }
    env.snapshot("dst").assert_no_temporaries();
});
