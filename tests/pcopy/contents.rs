//! Contents that are proven: `--checksum`, `--verify`, `--manifest`.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::compare::{self, Properties};
use crate::env::{Env, bytes_path};
use crate::faultfs::FaultFs;
use crate::noise::pattern;

/// The size of a file that is copied in chunks.
const LARGE: usize = 33 << 20;

/// Changes a byte of a file and leaves its size and time as they are.
fn change_quietly(env: &Env, path: &str, offset: u64) {
    let stat = env.stat(path);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(env.path(path))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).unwrap();
    file.set_modified(stat.modified().unwrap()).unwrap();
}

// ---- --checksum -----------------------------------------------------------------------------

/// A tree with all kinds of entries, and files of interesting sizes.
fn make_tree(env: &Env) {
    for (number, size) in [0, 1, 4096, (512 << 10) - 1, (512 << 10) + 1, 3 << 20]
        .into_iter()
        .enumerate()
    {
        let number = number as u64;
        env.file(format!("src/{}/{size}", number % 3), pattern(size, number))
            .mtime(1_000 + number.cast_signed(), 5);
    }
    env.file("src/large", pattern(LARGE, 1)).mtime(2_000, 1);
    env.sparse("src/sparse", 8 << 20, &[(5 << 20, b"data")]);
    env.hard_link("src/1/twin", "src/0/0");
    env.hard_link("src/1/large-twin", "src/large");
    env.symlink("src/link", "large").mtime(3_000, 1);
    env.fifo("src/fifo");
}

both_modes!(the_same_contents_only_get_other_metadata, |env| {
    make_tree(env);
    env.pcopy(["src", "dst"]).ok();
    env.sh("find dst -exec touch -h -d @77 {} +");
    env.at("dst/2/4096").mode(0o604);
    let inode = |path: &str| env.stat(path).ino();
    let before = ["dst/large", "dst/2/4096", "dst/sparse", "dst/link"].map(inode);
    let run = env.pcopy(["-c", "src", "dst"]).ok();
    assert!(!run.stderr.contains("iB"), "nothing is copied: {run}");
    env.assert_same("src", "dst");
    let after = ["dst/large", "dst/2/4096", "dst/sparse", "dst/link"].map(inode);
    assert_eq!(before, after, "{run}");
    let run = env.pcopy(["-c", "--exit-code", "-n", "src", "dst"]).ok();
    assert_eq!(run.stdout(), "", "{run}");
});

all_modes!(a_byte_that_differs_is_found_whatever_the_time_says, |env| {
    make_tree(env);
    env.pcopy(["src", "dst"]).ok();
    let changed = [
        ("2/4096", 4095),
        ("1/524289", 524_288),
        ("large", LARGE as u64 - 1),
        ("sparse", 7 << 20),
    ];
    for (name, offset) in changed {
        change_quietly(env, &format!("dst/{name}"), offset);
    }
    env.pcopy(["src", "dst"]).ok();
    assert!(env.read("dst/large") != env.read("src/large"));
    let run = env.pcopy(["-n", "-c", "src", "dst"]).ok();
    let mut plan: Vec<String> = run.stdout().lines().map(str::to_owned).collect();
    // One of two names leads, the one that is found first.
    plan.retain(|line| !line.starts_with("link "));
    for line in &mut plan {
        *line = line.replace("1/large-twin", "large");
    }
    plan.sort_unstable();
    let mut expected = changed.map(|(name, _)| format!("replace src/{name} (contents differ)"));
    expected.sort_unstable();
    assert_eq!(plan, expected, "{run}");
    env.pcopy(["-n", "-c", "--exit-code", "src", "dst"])
        .exits(4);
    let run = env.pcopy(["-c", "src", "dst"]).ok();
    env.assert_same("src", "dst");
    assert!(run.stderr.contains("iB"), "{run}");
    env.pcopy(["-nc", "--exit-code", "src", "dst"]).ok();
});

both_modes!(checksum_agrees_with_rsync, |env| {
    if env.skipped_without("rsync") {
        return;
    }
    make_tree(env);
    // Within one second, rsync takes the times of directories and FIFOs for the same.
    env.sh("find src '(' -type d -o -type p ')' -exec touch -d @4000 {} +");
    for copy in ["dst", "rsync"] {
        env.sh(&format!("rsync -aHAX src/ {copy}/"));
        change_quietly(env, &format!("{copy}/1/1"), 0);
        env.sh(&format!("touch -d @5 {copy}/large {copy}/2/4096"));
        env.sh(&format!("touch -d @9 {copy}/1/1"));
    }
    env.sh("rsync -aHAXc src/ rsync/");
    env.pcopy(["-c", "src", "dst"]).ok();
    let (theirs, ours) = (env.snapshot("rsync"), env.snapshot("dst"));
    let found = compare::differences(&theirs, &ours, Properties::KEPT);
    assert!(found.is_empty(), "{}", found.join("\n"));
});

both_modes!(a_copy_that_cannot_be_read_is_not_the_same, |env| {
    env.file("src/file", pattern(300_000, 1));
    env.file("src/gone", "x");
    env.pcopy(["src", "real"]).ok();
    let Some(_faulty) = FaultFs::mount(env, "real", "dst", &["--fault", "eio:file:200000"]) else {
        return;
    };
    let run = env.pcopy(["-n", "-c", "src", "dst"]).ok();
    assert_eq!(
        run.stdout(),
        "replace src/file (contents differ)\n",
        "{run}"
    );
    env.pcopy(["-c", "src", "dst"]).ok().counts(1, 1, 0);
});

both_modes!(
    a_source_that_cannot_be_read_fails_and_changes_nothing,
    |env| {
        env.file("real/file", pattern(300_000, 1));
        env.file("real/large", pattern(LARGE, 2));
        env.pcopy(["real", "dst"]).ok();
        let faults = [
            "--fault",
            "eio:file:200000",
            "--fault",
            "eio:large:20000000",
        ];
        let Some(_faulty) = FaultFs::mount(env, "real", "mnt", &faults) else {
            return;
        };
        let run = env.pcopy(["-c", "mnt", "dst"]).exits(1);
        for name in ["file", "large"] {
            let line = format!("mnt/{name}: read: Input/output error");
            assert_eq!(run.stderr.matches(&line).count(), 1, "{run}");
        }
        env.assert_same("real", "dst");
    }
);

// ---- --verify -------------------------------------------------------------------------------

both_modes!(a_bit_that_was_flipped_once_is_repaired, |env| {
    env.file("src/new", pattern(700_000, 1));
    env.file("src/old", pattern(9_000, 2));
    env.sparse("src/sparse", 1 << 20, &[(600_000, b"data")]);
    env.file("real/old", "before").mtime(7, 7);
    let faults = [
        "--fault",
        "flip-once:new:600000",
        "--fault",
        "flip-once:.pcopy*:8000",
        "--fault",
        "flip-once:sparse:600001",
    ];
    let Some(_faulty) = FaultFs::mount(env, "real", "dst", &faults) else {
        return;
    };
    let run = env
        .pcopy(["--verify", "src", "dst"])
        .exits(0)
        .counts(3, 0, 0);
    for name in ["new", "old", "sparse"] {
        let line = format!("warning: dst/{name}: read back: contents differed");
        assert!(run.stderr.contains(&line), "{run}");
    }
    env.assert_same("src", "real");
});

all_modes!(what_is_always_wrong_fails_and_does_not_stay, |env| {
    env.file("src/new", pattern(700_000, 1));
    env.file("src/old", pattern(9_000, 2));
    env.file("src/good", pattern(9_000, 3));
    env.file("real/old", "before").mtime(7, 7);
    let faults = ["--fault", "flip:new:0", "--fault", "flip:.pcopy*:8999"];
    let Some(faulty) = FaultFs::mount(env, "real", "dst", &faults) else {
        return;
    };
    let run = env.pcopy(["--verify", "src", "dst"]).exits(1);
    for name in ["new", "old"] {
        let line = format!("dst/{name}: read back: contents differ from those of the source\n");
        assert_eq!(run.stderr.matches(&line).count(), 1, "{run}");
    }
    assert!(!env.exists("real/new"));
    assert_eq!(env.read("real/old"), b"before");
    assert_eq!(env.stat("real/old").mtime(), 7);
    env.snapshot("real").assert_no_temporaries();
    // Without the option, nobody notices. That is what it is for.
    env.pcopy(["src", "dst"]).ok();
    assert!(env.read("real/new") != env.read("src/new"));
    drop(faulty);
    env.pcopy(["-c", "--verify", "src", "real"]).ok();
    env.assert_same("src", "real");
});

both_modes!(everything_is_verified_on_every_way_to_copy, |env| {
    make_tree(env);
    for options in [
        &["--manifest=list"][..],
        &["-j1", "--sparse=always", "--fsync"],
        &["-j2", "--partial", "--manifest=list"],
    ] {
        env.pcopy([&["--verify", "src", "dst"], options].concat())
            .ok();
        env.assert_same("src", "dst");
        fs::remove_dir_all(env.path("dst")).unwrap();
    }
    env.pcopy(["--verify", "--sparse=never", "src", "dst"]).ok();
    env.sh("diff -r src dst --exclude=fifo && touch -d @7 dst/*/*");
    env.pcopy(["--verify", "--inplace", "src", "dst"]).ok();
    env.sh("diff -r src dst --exclude=fifo");
    let piped = env
        .command(["--verify", "--manifest=list", "/dev/stdin", "piped"])
        .after("exec <src/2/3145728")
        .run()
        .ok();
    assert_eq!(env.read("piped"), env.read("src/2/3145728"), "{piped}");
    env.sh("sha256sum -c list");
});

// ---- --manifest -----------------------------------------------------------------------------

both_modes!(sha256sum_checks_the_list, |env| {
    make_tree(env);
    for name in [
        &b"new\nline"[..],
        b"back\\slash",
        b"return\r",
        b"\xff latin",
        b"-dash",
    ] {
        env.file(bytes_path(&[b"src/odd/", name].concat()), name);
    }
    env.pcopy(["src", "dst"]).ok();
    env.file("dst/only-here", "x");
    env.file("src/0/more", "x");
    fs::remove_file(env.path("dst/odd/back\\slash")).unwrap();
    let mut checked_lines = Vec::new();
    for options in [
        &[][..],
        &["-c"],
        &["--partial", "-j2"],
        &["--overwrite=always"],
    ] {
        env.pcopy([&["--manifest=list", "src", "dst"], options].concat())
            .ok();
        let list = env.read("list");
        let mut lines: Vec<_> = list.split(|&byte| byte == b'\n').collect();
        lines.sort_unstable();
        if checked_lines.is_empty() {
            let checked = env.sh("cd dst && sha256sum -c --strict ../list | grep -c 'OK$'");
            // A newline in a name gives one line more to wc, and none to sha256sum.
            let found = env.sh("cd src && find . -type f | wc -l");
            let expected = found.trim().parse::<usize>().unwrap() - 1;
            assert_eq!(checked.trim(), expected.to_string());
            checked_lines = lines.iter().map(|line| line.to_vec()).collect();
        }
        // Every way to copy leads to the list that sha256sum has checked, and to the same copy.
        assert_eq!(lines, checked_lines, "{options:?}");
        let mut copy = env.snapshot("dst");
        copy.entries.remove(&b"only-here"[..]);
        compare::assert_same(&env.snapshot("src"), &copy, Properties::KEPT);
        assert_eq!(env.sh("ls -A | grep -c pcopy || true").trim(), "0");
    }
    // Several sources: below DST, each under its name.
    env.pcopy(["--manifest=list", "src/0", "src/large", "into"])
        .ok();
    env.sh("cd into && sha256sum -c --strict ../list && grep -q '  0/more$' ../list");
    env.pcopy([
        "--manifest=list",
        "--manifest-algorithm=blake3",
        "src/odd/-dash",
        "one",
    ])
    .ok();
    let list = String::from_utf8(env.read("list")).unwrap();
    assert!(
        list.len() == 64 + "  one\n".len() && list.ends_with("  one\n"),
        "{list}"
    );
    if !env.skipped_without("b3sum") {
        env.sh("b3sum -c list");
    }
});

all_modes!(a_list_has_only_what_arrived, |env| {
    env.file("real/good", "good");
    env.file("real/bad", pattern(9_000, 1));
    env.file("real/newer", "1").mtime(1, 1);
    env.file("dst/newer", "22").mtime(2, 2);
    env.file("list", "old");
    let Some(_faulty) = FaultFs::mount(env, "real", "mnt", &["--fault", "eio:bad:0"]) else {
        return;
    };
    let run = env.pcopy(["-u", "--manifest=list", "mnt", "dst"]).exits(1);
    let list = String::from_utf8(env.read("list")).unwrap();
    assert_eq!(list.lines().count(), 1, "{list}{run}");
    assert!(list.ends_with("  good\n"), "{list}");
    env.pcopy(["-n", "--manifest=other", "mnt", "dst"]).ok();
    assert!(!env.exists("other"));
});

once!(a_list_replaces_only_a_list, |env| {
    env.file("src/file", "x");
    env.dir("dir");
    env.symlink("link", "target");
    env.file("target", "old");
    for path in [
        "dir",
        "/dev/null",
        "/dev/stdout",
        "none/list",
        "src/list",
        "src/file",
    ] {
        let run = env.pcopy(["--manifest", path, "src", "dst"]).exits(2);
        assert!(run.stderr.contains("cannot write the list"), "{run}");
    }
    env.pcopy(["--manifest=link", "src", "dst"]).ok();
    assert!(env.stat("link").is_symlink());
    assert!(env.read("target").ends_with(b"  file\n"));
    // A list in DST, where SRC has a file of that name.
    let run = env.pcopy(["--manifest=dst/file", "src", "dst"]).exits(1);
    assert!(
        run.stderr
            .contains("dst/file: write list: a file of the source was copied to this path"),
        "{run}"
    );
    assert_eq!(env.read("dst/file"), b"x");
});
