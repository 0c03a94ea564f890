//! Names that the destination takes for one: the second fails, and the first stays at every run.

use crate::env::Env;
use crate::faultfs::FaultFs;
use crate::mounts::{EXFAT, FAT};
use crate::noise::pattern;
use crate::outcome::Run;

/// ext4 with a directory that ignores case.
const CASEFOLD: &str = "mkdir mnt; truncate -s 200M image
mkfs.ext4 -q -O casefold -E encoding=utf8 image; mount -o loop image mnt
chattr +F mnt || { echo 'no casefold here' >&2; exit 1; }";

/// Returns the errors of a run, without the warnings about metadata.
fn errors(run: &Run) -> Vec<&str> {
    let lines = run.complaints().into_iter();
    lines.filter(|line| !line.contains("warning: ")).collect()
}

fn for_each_folding(env: &Env, test: impl Fn(&Env)) {
    for script in [EXFAT, FAT, CASEFOLD] {
        if let Some(env) = env.mounted(script) {
            test(&env);
        }
    }
}

/// Makes twins of each kind. They have the same size and time, so only their names tell them apart.
fn make_twins(env: &Env) {
    for name in ["README", "readme"] {
        env.file(format!("src/{name}"), format!("{name}!"))
            .mtime(1_000_000_000, 0);
        env.file(format!("src/dir-{name}/file"), name)
            .mtime(1_000_000_000, 0);
    }
    env.file("src/Film", pattern(33 << 20, 1));
    env.file("src/film", pattern(33 << 20, 2));
    env.file("src/other", "other");
}

both_modes!(one_of_two_twins_stays_at_every_run, |env| {
    for_each_folding(env, |env| {
        make_twins(env);
        for (copy, jobs) in [("mnt/new", "1"), ("mnt/several", "8"), ("mnt/merged", "8")] {
            if copy == "mnt/merged" {
                env.dir(copy);
            }
            let listing = || env.sh(&format!("cd {copy}; find . -type f | sort | xargs cksum"));
            env.pcopy(["-j", jobs, "src", copy]).exits(1);
            let first = listing();
            for options in [&["-q"][..], &["-q", "-n"], &["-q", "--overwrite=always"]] {
                let args = [options, &["-j", jobs, "src", copy]].concat();
                let run = env.pcopy(args).exits(1);
                assert_eq!(errors(&run).len(), 3, "{run}");
                for line in errors(&run) {
                    assert!(line.contains(": same name as "), "{run}");
                }
                assert_eq!(listing(), first, "{run}");
            }
        }
    });
});

both_modes!(a_dry_run_foresees_twins, |env| {
    for_each_folding(env, |env| {
        make_twins(env);
        // A name with letters, which shows how the file system compares names.
        env.file("mnt/Any", "");
        env.dir("mnt/empty");
        for copy in ["mnt/new", "mnt/empty", "mnt/not/there/yet"] {
            for jobs in ["1", "8"] {
                let run = env
                    .pcopy(["-n", "-q", "--mkpath", "-j", jobs, "src", copy])
                    .exits(1);
                run.fails_only(&[
                    (&format!("{copy}/readme"), "same name as README at"),
                    (&format!("{copy}/dir-readme"), "same name as dir-README at"),
                    (&format!("{copy}/film"), "same name as Film at"),
                ]);
            }
        }
    });
    // Elsewhere they are two.
    make_twins(env);
    env.pcopy(["-n", "src", "dst"]).ok().counts(7, 0, 0);
});

both_modes!(files_of_the_command_line_can_be_twins, |env| {
    for_each_folding(env, |env| {
        env.file("a/README", "one");
        env.file("b/readme", "other");
        env.file("a/Dir/f", "one");
        env.file("b/dIR/f", "other");
        env.file("mnt/Any", "");
        for options in [&["-n"][..], &[], &[], &["-n"]] {
            let args = [options, &["-t", "mnt/dst", "a/README", "b/readme"]].concat();
            let run = env.pcopy(args).exits(1);
            assert_eq!(errors(&run).len(), 1, "{run}");
        }
        env.pcopy(["-t", "mnt/dirs", "a/Dir", "b/dIR"]).exits(2);
    });
});

both_modes!(another_spelling_without_a_twin_is_the_same_entry, |env| {
    for_each_folding(env, |env| {
        env.file("mnt/dst/IMG.JPG", "old").mtime(1_000, 0);
        env.file("mnt/dst/DIR/F.TXT", "old").mtime(1_000, 0);
        env.file("src/img.jpg", "new").mtime(1_000_000_000, 0);
        env.file("src/dir/f.txt", "new").mtime(1_000_000_000, 0);
        env.pcopy(["src", "mnt/dst"]).exits(0).counts(2, 0, 0);
        assert_eq!(env.read("mnt/dst/img.jpg"), b"new");
        // fusefat loses the time in the rename, so how much is copied again is not asked here.
        env.pcopy(["src", "mnt/dst"]).exits(0);
        assert_eq!(env.read("mnt/dst/img.jpg"), b"new");
    });
});

both_modes!(names_that_differ_are_kept_apart_elsewhere, |env| {
    make_twins(env);
    env.pcopy(["src", "dst"]).ok();
    env.pcopy(["src", "dst"]).ok().counts(0, 7, 0);
    env.assert_same("src", "dst");
});

// ---- hard links -----------------------------------------------------------------------------

both_modes!(hard_links_that_become_copies_are_reported_once, |env| {
    let Some(env) = env.mounted(EXFAT) else {
        return;
    };
    env.file("src/a", "data");
    env.hard_link("src/b", "src/a");
    env.hard_link("src/sub/c", "src/a");
    for _ in 0..2 {
        let run = env
            .pcopy(["-q", "--no-preserve=mode,ownership", "src", "mnt/dst"])
            .exits(0);
        let lines = run.complaints();
        let is_right = |line: &&&str| line.contains("hard links; 2 entries were copied instead");
        assert!(lines.iter().filter(is_right).count() == 1, "{run}");
    }
    for name in ["a", "b", "sub/c"] {
        assert_eq!(env.read(format!("mnt/dst/{name}")), b"data");
    }
    env.pcopy(["--preserve=links", "src", "mnt/must"]).exits(1);
});

both_modes!(beyond_the_limit_of_links_a_second_group_begins, |env| {
    if env.skipped_without_strace() {
        return;
    }
    for i in 0..200 {
        if i == 0 {
            env.file("src/0", "data");
        } else {
            env.hard_link(format!("src/{i}"), "src/0");
        }
    }
    // One link of the second worker's cannot be made.
    let run = env
        .command(["-j1", "src", "dst"])
        .injecting("linkat:error=EMLINK:when=100")
        .run()
        .exits(0);
    assert!(
        run.to_string().contains("hard links; 1 entry was copied"),
        "{run}"
    );
    let inodes =
        env.sh("stat -c %i dst/* | sort | uniq -c | awk '{print $1}' | sort -n | tr '\\n' ' '");
    assert_eq!(inodes.trim(), "100 100");
});

both_modes!(twins_that_no_lookup_finds_are_named, |env| {
    // FAT with iocharset=utf8 does that.
    env.dir("backing");
    let Some(_mounted) = FaultFs::mount(env, "backing", "mnt", &["--hide-twins"]) else {
        return;
    };
    for name in ["README", "readme"] {
        env.file(format!("src/{name}"), name).mtime(1_000, 0);
        env.file(format!("src/dir-{name}/file"), name);
    }
    let mut first = String::new();
    for run in 0..3 {
        let run_failed = env.pcopy(["src", "mnt/dst"]).exits(1);
        let complaints = run_failed.complaints();
        assert_eq!(complaints.len(), 2, "{run_failed}");
        for line in complaints {
            assert!(line.contains(": same name as "), "{run_failed}");
        }
        let found = env.sh("cd backing/dst; find . -type f | sort | xargs cksum");
        if run == 0 {
            first = found;
        } else {
            assert_eq!(found, first);
        }
    }
});
