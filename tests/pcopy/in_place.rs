//! `--inplace`, and destinations that cannot rename.

use std::os::unix::fs::MetadataExt;

use crate::noise::pattern;

const NO_RENAME: &str = "renameat,renameat2,rename:error=ENOSYS";

both_modes!(without_rename_files_are_written_in_place, |env| {
    if env.skipped_without_strace() {
        return;
    }
    env.file("src/file", "new contents").mode(0o640);
    env.file("src/same", "same");
    env.symlink("src/link", "new");
    env.file("src/kind", "a file now");
    env.file("src/large", pattern(33 << 20, 1));
    env.file("dst/file", "old").mode(0o666).mtime(1_000, 0);
    env.symlink("dst/link", "old");
    env.symlink("dst/kind", "file");
    env.file("dst/large", "old");
    let inode = env.stat("dst/file").ino();

    let run = env
        .command(["src", "dst"])
        .injecting(NO_RENAME)
        .run()
        .exits(1);
    let reason = "destination cannot rename; use --inplace";
    run.fails_only(&["dst/file", "dst/kind", "dst/large", "dst/link"].map(|path| (path, reason)));
    assert_eq!(env.read("dst/file"), b"old");

    env.command(["--inplace", "src", "dst"])
        .injecting(NO_RENAME)
        .run()
        .ok();
    env.assert_same("src", "dst");
    assert_eq!(env.stat("dst/file").ino(), inode);
    env.pcopy(["--inplace", "src", "dst"]).ok().counts(0, 5, 0);
});

both_modes!(hard_links_replace_files_in_place, |env| {
    env.file("src/a", "new");
    env.hard_link("src/b", "src/a");
    // As large as the new one, and written at the same time if the clock is coarse.
    env.file("dst/a", "old").mtime(1_000, 0);
    env.file("dst/b", "old too");
    env.pcopy(["--inplace", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

once!(a_source_is_not_written_to, |env| {
    env.file("src/file", "one");
    env.file("dst/x", "x");
    env.hard_link("dst/file", "src/file");
    env.pcopy(["--inplace", "--overwrite=always", "src", "dst"])
        .ok();
    assert_eq!(env.read("src/file"), b"one");
    env.pcopy(["--inplace", "--overwrite=never", "src", "dst"])
        .exits(2);
});
