//! Sources that vanish or change while they are copied, and roots that go away.

use std::fs;

use rustix::process::Signal;

use crate::env::{Env, Mode, eventually};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::trees::fine_files;

// ---- vanished, changed, grown -----------------------------------------------------------------

both_modes!(a_real_failure_outweighs_a_vanished_file, |env| {
    fine_files(env);
    env.file("real/1/gone", "x");
    env.file("real/bad", pattern(100_000, 1));
    let faults = ["--fault", "vanish:gone", "--fault", "eio:bad:0"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    env.pcopy(["src", "dst"])
        .exits(1)
        .counts(30, 0, 2)
        .stderr_has("pcopy: 2 failed, 1 of them vanished or changed meanwhile (named above); ");
});

both_modes!(a_dangling_link_has_not_vanished, |env| {
    env.file("src/file", "x");
    env.symlink("src/link", "nowhere");
    env.pcopy(["-L", "src", "dst"])
        .exits(1)
        .fails_only(&[("src/link", "stat: symbolic link to nothing")]);
});

/// Copies a log that grows at each attempt. The next run brings the rest.
fn grows(env: &Env, options: &[&str], size: usize, kept: usize) {
    fine_files(env);
    env.file("real/log", pattern(size, 1)).mtime(1_000, 1);
    let content = env.read("real/log");
    let faulty = FaultFs::mount(env, "real", "src", &["--fault", "log:log:5000"]);
    let Some(faulty) = faulty else {
        return;
    };
    let message = format!("read: file grew while being copied; kept its first {kept} bytes");
    env.pcopy([options, &["src", "dst"]].concat())
        .exits(3)
        .counts(30, 0, 1)
        .fails_only(&[("src/log", &message)]);
    let copy = env.read("dst/log");
    assert_eq!(copy.len(), kept);
    assert!(copy[..size] == content && copy[size..].iter().all(|&b| b == 0));
    env.snapshot("dst").assert_no_temporaries();
    drop(faulty);
    // Even if it is as long as its copy by then, and as old as when it was opened first.
    let opened = env.stat("real/log").modified().unwrap();
    fs::File::options()
        .write(true)
        .open(env.path("real/log"))
        .and_then(|file| {
            file.set_len(kept as u64)?;
            file.set_modified(opened)
        })
        .unwrap();
    let run = env.pcopy([options, &["real", "dst"]].concat()).ok();
    assert_eq!(run.summary().copied, 1, "{run}");
    assert_eq!(env.read("real/log"), env.read("dst/log"));
}

both_modes!(a_file_that_only_grows_is_kept_as_it_was, |env| {
    // The first attempt makes it longer for the second one.
    grows(env, &[], 100_000, 105_000);
});

both_modes!(a_growing_file_is_older_than_its_source, |env| {
    grows(env, &["--overwrite=older"], 100_000, 105_000);
});

both_modes!(a_growing_file_is_kept_without_times_too, |env| {
    grows(
        env,
        &["--no-preserve=timestamps", "--overwrite=older"],
        100_000,
        105_000,
    );
});

both_modes!(the_names_of_a_growing_file_stay_links, |env| {
    env.file("real/log", pattern(100_000, 1));
    env.hard_link("real/other", "real/log");
    let faults = ["--fault", "log:log:5000", "--fault", "log:other:5000"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    env.pcopy(["src", "dst"]).exits(3);
    env.sh("test dst/log -ef dst/other");
});

both_modes!(a_growing_large_file_is_kept_as_it_was, |env| {
    let size = 40 << 20;
    env.file("real/log", pattern(size, 1));
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &["--fault", "log:log:5000"]) else {
        return;
    };
    // Each chunk opens it once more.
    env.pcopy(["-j4", "src", "dst"])
        .exits(3)
        .stderr_has("pcopy: src/log: read: file grew while being copied");
    let (source, copy) = (env.read("real/log"), env.read("dst/log"));
    assert!(copy.len() > size && copy.len() < source.len());
    assert!(source[..copy.len()] == copy[..]);
    env.snapshot("dst").assert_no_temporaries();
    env.pcopy(["real", "dst"]).ok().counts(1, 0, 0);
});

// ---- roots that go away -----------------------------------------------------------------------

/// Takes the file system of `src` or `dst` away in the middle of a run.
fn root_goes_away(env: &Env, mounted: &str, side: &str) {
    for i in 0..3_000 {
        env.file(format!("real/{}/file-{i}", i % 60), "x");
    }
    env.dir("backing");
    let backing = if mounted == "src" { "real" } else { "backing" };
    let Some(faulty) = FaultFs::mount(env, backing, mounted, &["--delay-ms", "2"]) else {
        return;
    };
    let source = if mounted == "src" { "src" } else { "real" };
    let destination = if mounted == "src" { "dst" } else { "mnt" };
    let running = env.command(["-v", "-j4", source, destination]).start();
    running.await_stdout("some files", |text| text.lines().count() > 30);
    faulty.signal(Signal::KILL);
    let run = running.wait().exits(1);
    let lines = run.complaints();
    assert_eq!(lines.len(), 1, "{run}");
    let start = format!("pcopy: {mounted}: {side} is gone: ");
    assert!(
        lines[0].starts_with(&start) && lines[0].ends_with("; stopped"),
        "{run}"
    );
    run.summary_ends_with(&format!("; stopped: {side} is gone"));
}

both_modes!(a_source_that_goes_away_stops_the_run, |env| {
    root_goes_away(env, "src", "source");
});

both_modes!(a_destination_that_goes_away_stops_the_run, |env| {
    root_goes_away(env, "mnt", "destination");
});

both_modes!(a_destination_that_is_removed_stops_the_run, |env| {
    for i in 0..3_000 {
        env.file(format!("real/file-{i}"), "x");
    }
    let Some(_slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "2"]) else {
        return;
    };
    let running = env.command(["-v", "src", "dst"]).start();
    running.await_stdout("some files", |text| text.lines().count() > 30);
    eventually("it is removed", || {
        fs::remove_dir_all(env.path("dst")).is_ok() || !env.exists("dst")
    });
    running.wait().exits(1).fails_only(&[(
        "dst",
        "destination is gone: No such file or directory; stopped",
    )]);
});

/// A destination whose server does not answer is named, and so is each file that is missing.
#[test]
fn a_destination_that_hangs_is_named() {
    let env = Env::new(Mode::Process);
    let names: Vec<String> = (0..300).map(|i| format!("file-{i}")).collect();
    for name in &names {
        env.file(format!("real/{name}"), "x");
    }
    env.dir("backing");
    let Some(server) = FaultFs::mount(&env, "backing", "mnt", &["--delay-ms", "5"]) else {
        return;
    };
    let options = ["-v", "-j2", "--stall-timeout", "1", "real", "mnt/dst"];
    let running = env.command(options).start();
    running.await_stdout("some files", |text| text.lines().count() > 10);
    server.signal(Signal::STOP);
    let run = running.wait().exits(1);
    server.signal(Signal::CONT);
    let printed: Vec<String> = run.finished_entries().into_iter().map(|it| it.1).collect();
    for line in run.complaints() {
        assert!(
            line.starts_with("pcopy: mnt/dst")
                && line.ends_with("no progress for 1 s (2 attempts)"),
            "{line}\n{run}"
        );
    }
    for name in &names {
        let start = format!("pcopy: mnt/dst/{name}: ");
        let named = run
            .complaints()
            .iter()
            .filter(|line| line.starts_with(&start))
            .count();
        let is_copied = printed.contains(&format!("real/{name}"));
        // The lister may have been lost before it had listed all of them.
        let is_listed = !run.stderr.contains("pcopy: mnt/dst: ");
        assert!(named <= 1 && !(is_copied && named == 1), "{name}\n{run}");
        assert!(
            is_copied || named == 1 || !is_listed,
            "{name} is missing\n{run}"
        );
    }
    env.pcopy(["real", "mnt/dst"]).ok();
    env.assert_same("real", "backing/dst");
}

// ---- file systems -----------------------------------------------------------------------------

both_modes!(holes_that_a_file_system_hides_are_found, |env| {
    env.sparse("real/sparse", 8 << 20, &[(1 << 20, b"in the middle")]);
    env.sparse("real/large", 200 << 20, &[(0, &pattern(40 << 20, 1)[..])]);
    let faults = ["--fault", "hide-holes:*"];
    let Some(_faulty) = FaultFs::mount(env, "real", "src", &faults) else {
        return;
    };
    env.pcopy(["src", "dst"]).ok();
    assert!(env.read("real/large") == env.read("dst/large"));
    assert!(env.read("real/sparse") == env.read("dst/sparse"));
    for (name, most) in [("sparse", 1 << 20), ("large", 42 << 20)] {
        use std::os::unix::fs::MetadataExt;
        let allocated = env.stat(format!("dst/{name}")).blocks() * 512;
        assert!(allocated <= most, "{name}: {allocated} bytes");
    }
    // Unless they are to be filled.
    env.pcopy(["--sparse=never", "src", "dst-2"]).ok();
    assert!(env.sh("du -k dst-2/sparse").starts_with("8192"));
});

both_modes!(zeros_at_the_end_become_a_hole, |env| {
    env.file("src/zeros", vec![0; 100]);
    env.file("src/mixed", [pattern(4096, 1), vec![0; 5_000]].concat());
    env.pcopy(["--sparse=always", "src", "dst"]).ok();
    assert!(env.read("dst/zeros") == env.read("src/zeros"));
    assert!(env.read("dst/mixed") == env.read("src/mixed"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(env.stat("dst/zeros").blocks(), 0);
});

once!(a_stale_destination_is_opened_for_real, |env| {
    if env.skipped_without_strace() {
        return;
    }
    env.file("src/file", "x");
    env.dir("dst");
    let path = env.path("dst").to_str().unwrap().to_owned();
    // The descriptor of O_PATH is stale; the directory can be opened all the same.
    env.command(["src", "dst"])
        .under(&[
            "strace",
            "-qq",
            "-o",
            "/dev/null",
            "-P",
            &path,
            "-e",
            "inject=fstat,newfstatat:error=ESTALE:when=1",
        ])
        .run()
        .ok();
    env.assert_same("src/file", "dst/file");
});
