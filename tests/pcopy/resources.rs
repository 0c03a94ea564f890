//! Memory, descriptors, system calls and workers: what a run uses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::env::{Env, Mode};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::processes::processes;

// ---- memory and descriptors -----------------------------------------------------------------

/// Returns the private memory of a process and all its descendants, in KiB.
fn private_memory(root: i32) -> u64 {
    let all: Vec<_> = processes()
        .map(|process| (process.pid, process.parent))
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        family.extend(
            all.iter()
                .filter(|process| process.1 == parent)
                .map(|process| process.0),
        );
        next += 1;
    }
    family.iter().map(|pid| private_memory_of(*pid)).sum()
}

fn private_memory_of(pid: i32) -> u64 {
    // A process that has ended uses none.
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    rollup
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Runs pcopy and returns the most private memory that its processes used, in KiB.
fn peak_memory(env: &Env, args: &[&str]) -> u64 {
    let running = env.command(args).start();
    let pid = running.pid().as_raw_pid();
    let (mut peak, mut samples) = (0, 0);
    // Sampling without a pause would take a processor away from pcopy.
    while !running.ends_within(Duration::from_millis(15)) {
        peak = peak.max(private_memory(pid));
        samples += 1;
    }
    running.wait().ok();
    println!("{args:?}: {peak} KiB in {samples} samples");
    assert!(peak > 100, "only {peak} KiB in {samples} samples");
    peak
}

/// One test for both modes, because to create the files takes longest.
#[test]
fn a_directory_of_100_000_files_needs_less_than_32_mib_in_either_mode() {
    let mut env = Env::new(Mode::Thread);
    let dir = env.dir("src/flat");
    for i in 0..100_000 {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join(i.to_string()),
            rustix::fs::FileType::RegularFile,
            0o644.into(),
            0,
        )
        .unwrap();
    }
    for (mode, copy) in [(Mode::Thread, "dst-thread"), (Mode::Process, "dst-process")] {
        env.set_mode(mode);
        let first = peak_memory(&env, &["src", copy]);
        let count = fs::read_dir(env.path(copy).join("flat")).unwrap().count();
        assert_eq!(count, 100_000);
        // A run with nothing to do must not need more.
        let second = peak_memory(&env, &["src", copy]);
        assert!(
            first.max(second) < 32 * 1024,
            "{mode:?} mode took {first} and then {second} KiB"
        );
        fs::remove_dir_all(env.path(copy)).unwrap();
    }
}

both_modes!(a_deep_tree_and_a_wide_one_need_few_descriptors, |env| {
    // 300 levels deep, and 500 directories in one.
    let mut path = PathBuf::from("src/deep");
    for level in 0..300 {
        path.push(format!("{level}"));
        if level % 10 == 0 {
            env.file(path.join("file"), level.to_string());
        }
    }
    env.dir(&path);
    for i in 0..500 {
        env.file(format!("src/wide/{i}/file"), i.to_string());
        env.file(format!("src/wide/{i}/inner/file"), i.to_string());
    }
    env.file("src/large", pattern(20 * 1024 * 1024, 1));
    for options in [&[][..], &["-j", "8"]] {
        let copy = format!("dst-{}", options.len());
        env.command([options, &["src", &copy]].concat())
            .after("ulimit -n 64")
            .run()
            .ok();
        env.assert_same("src", &copy);
    }
});

both_modes!(more_sources_than_descriptors_are_copied, |env| {
    // A `*` can expand to as many, and 1024 is the usual limit.
    let mut args = vec!["-t".to_owned(), "dst".to_owned()];
    for i in 0..1_500 {
        let name = format!("source-{i}");
        env.file(Path::new(&name), i.to_string());
        args.push(name);
    }
    env.command(&args)
        .after("ulimit -n 1024")
        .run()
        .ok()
        .counts(1_500, 0, 0);
    assert_eq!(env.read("dst/source-1499"), b"1499");
});

// ---- system calls ---------------------------------------------------------------------------

both_modes!(a_small_file_takes_nine_system_calls, |env| {
    if env.skipped_without_strace() {
        return;
    }
    for i in 0..1_000 {
        env.file(format!("more/file-{i}"), "x");
        if i % 2 == 0 {
            env.file(format!("less/file-{i}"), "x");
        }
    }
    // Calls that only wait, such as futex(2), are left out: their number depends on the machine.
    let classes = "trace=%file,%desc,%network";
    let trace = ["strace", "-f", "-c", "-e", classes, "-o", "calls"];
    for jobs in ["1", "2"] {
        let calls = |source: &str| {
            let copy = format!("{source}-{jobs}");
            let args = ["-j", jobs, source, &copy];
            env.command(args).under(&trace).run().ok();
            let table = String::from_utf8(env.read("calls")).unwrap();
            println!("{table}");
            Calls::parse(&table)
        };
        let (more, less) = (calls("more"), calls("less"));
        assert!(less.for_files > 500.0, "strace counted nothing");
        let each = (more.for_files - less.for_files) / 500.0;
        assert!(each <= 9.1, "-j {jobs}: {each} system calls for each file");
        // How many reports a message holds depends on the time that the files take.
        let each = (more.for_messages - less.for_messages) / 500.0;
        assert!(
            each <= 0.5,
            "-j {jobs}: {each} calls for messages for each file"
        );
    }
});

both_modes!(
    only_files_beyond_the_readahead_are_announced_as_sequential,
    |env| {
        if env.skipped_without_strace() {
            return;
        }
        env.file("src/readahead", pattern(128 << 10, 1));
        env.file("src/longer", pattern((128 << 10) + 1, 2));
        // Copied in chunks: each worker opens it anew.
        env.file("src/large", pattern(33 << 20, 3));
        let args = ["-j2", "--reflink=never", "src", "dst"];
        let calls = env.command(args).traced("fadvise64");
        let of = |name: &str| {
            let path = format!("/src/{name}>");
            calls.iter().filter(|line| line.contains(&path)).count()
        };
        assert_eq!((of("readahead"), of("longer")), (0, 1), "{calls:#?}");
        assert!(of("large") >= 2, "{calls:#?}");
        assert!(
            calls.iter().all(|it| it.contains("POSIX_FADV_SEQUENTIAL")),
            "{calls:#?}"
        );
        env.assert_same("src", "dst");
    }
);

both_modes!(the_number_of_the_run_is_found_when_a_name_needs_it, |env| {
    if env.skipped_without_strace() {
        return;
    }
    env.file("src/file", "x");
    let found = |args: &[&str]| {
        let calls = env.command(args).traced("open,openat");
        calls.iter().filter(|line| line.contains("boot_id")).count()
    };
    // For ten small files, the start takes longer than the files.
    assert_eq!(found(&["src", "dst"]), 0);
    env.file("src/file", "another");
    assert_eq!(found(&["src", "dst"]), 1);
    env.assert_same("src", "dst");
});

/// The sums of a table by `strace -c`.
#[derive(Default)]
struct Calls {
    for_files: f64,
    for_messages: f64,
}

impl Calls {
    fn parse(table: &str) -> Calls {
        let mut calls = Calls::default();
        for line in table.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(count) = words.get(3).and_then(|word| word.parse::<f64>().ok()) else {
                continue;
            };
            match *words.last().unwrap() {
                // Debug builds check with fcntl(2) that a descriptor is open before they close it.
                "total" | "fcntl" => {}
                "sendto" | "recvfrom" | "sendmsg" | "recvmsg" | "poll" | "ppoll" => {
                    calls.for_messages += count;
                }
                _ => calls.for_files += count,
            }
        }
        calls
    }
}

// ---- workers --------------------------------------------------------------------------------

both_modes!(no_more_workers_than_asked_for, |env| {
    for i in 0..500 {
        env.file(format!("src/{}/file-{i}", i % 50), pattern(2_000, i));
    }
    for jobs in [1, 2, 3] {
        let copy = format!("dst-{jobs}");
        let run = env
            .pcopy(["-v", "-j", &jobs.to_string(), "src", &copy])
            .ok();
        let workers = run.entries_by_worker();
        assert!(
            (1..=jobs).contains(&workers.len()),
            "-j {jobs}: {workers:?}"
        );
    }
});

both_modes!(without_a_worker_nothing_is_started, |env| {
    env.file("src/file", "x");
    env.dir("parent").mode(0o777);
    env.command(["src", "parent/dst"])
        .unprivileged()
        .after("ulimit -u 1")
        .run()
        .exits(2);
});

both_modes!(four_workers_share_a_tree, |env| {
    for i in 0..1_000 {
        env.file(format!("real/{}/file-{i}", i % 50), pattern(2_000, i));
    }
    // Each call takes a while, as on a network, so that a single worker does not finish first.
    let Some(_slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let run = env.command(["-v", "-j", "4", "src", "dst"]).run().ok();
    let workers = run.entries_by_worker();
    assert_eq!(workers.len(), 4, "{workers:?}");
    env.assert_same("real", "dst");
});

both_modes!(four_workers_share_one_flat_directory, |env| {
    for i in 0..1_000 {
        env.file(format!("real/file-{i}"), pattern(2_000, i));
    }
    let Some(_slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let run = env.command(["-v", "-j", "4", "src", "dst"]).run().ok();
    let shares = run.entries_by_worker();
    assert_eq!(shares.len(), 4, "{shares:?}");
    assert!(
        shares.values().all(|share| *share >= 10),
        "a worker did almost nothing: {shares:?}"
    );
});

both_modes!(a_tree_of_many_directories_and_one_file_is_copied, |env| {
    for i in 0..400 {
        env.dir(format!("src/{}/{}/{i}", i % 7, i % 11));
    }
    env.file("src/6/10/file", "the only one");
    env.pcopy(["-j", "8", "src", "dst"]).ok().counts(1, 0, 0);
    env.assert_same("src", "dst");
    assert_eq!(env.stat("dst/6/10/file").len(), 12);
    assert_eq!(env.stat("dst").mode(), env.stat("src").mode());
});
