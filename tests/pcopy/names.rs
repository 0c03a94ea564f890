//! Names that the destination's file system refuses.

use crate::env::{Env, bytes_path};
use crate::mounts::{EXFAT, FAT};

/// Copies names that the file system refuses, beside one that it accepts.
fn refused_names(env: &Env, file_system: &str) {
    env.file("src/fine", "fine");
    env.file("src/12:30.txt", "x");
    env.file("src/dir?/inside", "x");
    env.file("src/tab\there", "x");
    for options in [&[][..], &["--overwrite=older"]] {
        env.pcopy([options, &["-q", "--no-preserve=all", "src", "mnt/dst"]].concat())
            .exits(1)
            .fails_only(&[
                (
                    "mnt/dst/12:30.txt",
                    &format!("{file_system} allows no : in names"),
                ),
                (
                    "mnt/dst/dir?",
                    &format!("{file_system} allows no ? in names"),
                ),
                (
                    "$'mnt/dst/tab\\there'",
                    &format!("{file_system} allows no control characters in names"),
                ),
            ]);
        assert_eq!(env.read("mnt/dst/fine"), b"fine");
        assert_eq!(env.sh("ls -A mnt/dst"), "fine\n", "nothing is left behind");
    }
    // A directory of the command line too.
    env.file("a:b/file", "x");
    env.pcopy(["a:b", "mnt/"])
        .exits(2)
        .stderr_has("cannot create the destination mnt/a:b: ");
}

both_modes!(exfat_refuses_a_name, |env| {
    if let Some(env) = env.mounted(EXFAT) {
        refused_names(&env, "exfat");
        env.file(bytes_path(b"bytes/caf\xe9"), "x");
        env.pcopy(["-q", "bytes", "mnt/bytes"])
            .exits(1)
            .stderr_has("exfat allows only UTF-8 in names");
    }
});

both_modes!(fat_refuses_a_name, |env| {
    if let Some(env) = env.mounted(FAT) {
        refused_names(&env, "fat");
    }
});

both_modes!(a_name_is_not_blamed_for_other_refusals, |env| {
    let script = "mkdir mnt; mount -t tmpfs tmpfs mnt; mkdir mnt/dst; touch mnt/dst/probe
        chattr +i mnt/dst 2>/dev/null || mount -o remount,ro mnt";
    let Some(env) = env.mounted(script) else {
        return;
    };
    env.file("src/a:b", "x");
    let run = env.pcopy(["-q", "src", "mnt/dst"]).exits(1);
    assert!(!run.stderr.contains("in names"), "{run}");
});
