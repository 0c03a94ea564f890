//! What a run may take: memory, descriptors, time; and that it uses what it is given.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::env::{Env, Mode, Random, pattern};
use crate::faultfs::FaultFs;
use crate::run::processes;

/// The private memory of a process and all its descendants, in KiB, as of now.
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
    // A process that has ended takes none.
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    rollup
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Runs pcopy and looks at the memory of all its processes again and again.
fn peak_memory(env: &Env, args: &[&str]) -> u64 {
    let running = env.command(args).start();
    let pid = running.pid().as_raw_pid();
    let (mut peak, mut looks) = (0, 0);
    // Looking all the time would take a processor away from what is looked at.
    while !running.ends_within(Duration::from_millis(15)) {
        peak = peak.max(private_memory(pid));
        looks += 1;
    }
    let run = running.wait().ok();
    println!("{args:?}: {peak} KiB in {looks} looks, {:?}", run.took);
    assert!(
        looks > 3 && peak > 100,
        "memory was not measured: {looks} looks, {peak} KiB"
    );
    peak
}

/// One test for both modes, since making the files takes longest.
#[test]
fn a_folder_of_200_000_files_takes_less_than_64_mib_in_either_mode() {
    let mut env = Env::in_memory(Mode::Thread);
    let folder = env.folder("src/flat");
    for i in 0..200_000 {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join(i.to_string()),
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
        assert_eq!(count, 200_000);
        // Nothing to do must not take more either.
        let second = peak_memory(&env, &["src", copy]);
        assert!(
            first.max(second) < 64 * 1024,
            "{mode:?} mode took {first} and then {second} KiB"
        );
        fs::remove_dir_all(env.path(copy)).unwrap();
    }
}

both_modes!(a_deep_tree_and_a_wide_one_need_few_descriptors, |env| {
    // 300 levels deep, and 500 folders in one.
    let mut path = PathBuf::from("src/deep");
    for level in 0..300 {
        path.push(format!("{level}"));
        if level % 10 == 0 {
            env.file(path.join("file"), level.to_string());
        }
    }
    env.folder(&path);
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

both_modes!(four_workers_share_the_work_that_there_is, |env| {
    for i in 0..1_000 {
        env.file(format!("real/{}/file-{i}", i % 50), pattern(2_000, i));
    }
    // Each call takes a while, as on a network: whoever is idle gets something to do.
    let Some(_slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let run = env.command(["-v", "-j", "4", "src", "dst"]).run().ok();
    let workers: BTreeSet<String> = run
        .stdout()
        .lines()
        .filter_map(|line| Some(line.split_once(']')?.0.to_owned()))
        .collect();
    assert_eq!(workers.len(), 4, "{workers:?}");
    env.assert_same("real", "dst");
});

both_modes!(one_flat_folder_is_shared_among_the_workers, |env| {
    for i in 0..2_000 {
        env.file(format!("real/file-{i}"), pattern(2_000, i));
    }
    let Some(_slow) = FaultFs::mount(env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let run = env.command(["-v", "-j", "4", "src", "dst"]).run().ok();
    let mut shares = std::collections::BTreeMap::new();
    for line in run.stdout().lines().filter(|line| line.contains("/file-")) {
        *shares
            .entry(line.split_once(']').unwrap().0.to_owned())
            .or_insert(0) += 1;
    }
    assert_eq!(shares.len(), 4, "{shares:?}");
    assert!(
        shares.values().all(|share| *share >= 100),
        "somebody did almost nothing: {shares:?}"
    );
});

both_modes!(a_small_file_takes_nine_system_calls, |env| {
    if env.skipped_without("strace") {
        return;
    }
    for i in 0..2_000 {
        env.file(format!("more/file-{i}"), "x");
        if i % 2 == 0 {
            env.file(format!("less/file-{i}"), "x");
        }
    }
    // What a worker or the parent waits with is left out: how often depends on the machine.
    let trace = "set -- strace -f -c -e trace=%file,%desc,%network -o calls \"$@\"";
    for (jobs, most) in [("1", 9.1), ("2", 10.0)] {
        let calls = |source: &str| -> f64 {
            let copy = format!("{source}-{jobs}");
            let args = ["-j", jobs, source, &copy];
            env.command(args).after(trace).run().ok();
            let table = String::from_utf8(env.read("calls")).unwrap();
            let count = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                // Debug builds look whether a descriptor is open before they close it.
                let counted = !matches!(words.last(), Some(&("total" | "fcntl")));
                words.get(3).filter(|_| counted)?.parse::<f64>().ok()
            };
            let sum = table.lines().filter_map(count).sum();
            println!("{table}");
            assert!(sum > 1_000.0, "strace counted nothing");
            sum
        };
        let each = (calls("more") - calls("less")) / 1_000.0;
        assert!(each <= most, "-j {jobs}: {each} system calls for each file");
    }
});

both_modes!(no_more_workers_than_asked_for, |env| {
    for i in 0..500 {
        env.file(format!("src/{}/file-{i}", i % 50), pattern(2_000, i));
    }
    for jobs in [1, 2, 3] {
        let copy = format!("dst-{jobs}");
        let run = env
            .pcopy(["-v", "-j", &jobs.to_string(), "src", &copy])
            .ok();
        let workers: BTreeSet<String> = run
            .stdout()
            .lines()
            .filter_map(|line| Some(line.split_once(']')?.0.to_owned()))
            .collect();
        assert!(
            (1..=jobs).contains(&workers.len()),
            "-j {jobs}: {workers:?}"
        );
    }
});

both_modes!(a_large_file_is_copied_right_by_many_workers, |env| {
    env.file("src/large", pattern(70 * 1024 * 1024 + 321, 1))
        .mode(0o4710)
        .mtime(1_000, 1);
    for i in 0..100 {
        env.file(format!("src/small-{i}"), "x");
    }
    env.pcopy(["-j", "6", "src", "dst"]).ok().counts(101, 0, 0);
    env.assert_same("src", "dst");
    // Over one that exists, too.
    env.file("dst/large", "old");
    env.pcopy(["-j", "6", "src", "dst"]).ok().counts(1, 100, 0);
    env.assert_same("src", "dst");
});

both_modes!(large_files_are_replaced_beside_others, |env| {
    // Each is in use under a temporary name while its worker goes on to the next entry.
    for i in 0..3 {
        env.file(format!("src/large-{i}"), pattern(40 * 1024 * 1024, i));
    }
    for i in 0..20 {
        env.file(format!("src/small-{i}"), pattern(1_000, i));
    }
    env.sh("mkdir old; for name in $(ls src); do head -c 40M /dev/zero > old/$name; done");
    for overwrite in ["changed", "always", "older"] {
        env.sh("rm -rf dst; cp -r old dst; touch -d @1 dst/*");
        env.pcopy(["-j4", "--overwrite", overwrite, "src", "dst"])
            .ok()
            .counts(23, 0, 0);
        env.assert_same("src", "dst");
    }
    // These write under temporary names even where nothing is.
    for overwrite in ["older", "never"] {
        env.sh("rm -rf dst");
        env.pcopy(["-j4", "--overwrite", overwrite, "src", "dst"])
            .ok()
            .counts(23, 0, 0);
        env.assert_same("src", "dst");
    }
    env.snapshot("dst").assert_no_temporaries();
});

both_modes!(large_files_change_nothing_for_holes, |env| {
    const MIB: u64 = 1024 * 1024;
    let data = pattern(MIB as usize, 3);
    let mut random = Random::new(5);
    let pieces: Vec<(u64, &[u8])> = (0..40)
        .map(|_| (random.below(250) * MIB, &data[..random.below(MIB) as usize]))
        .collect();
    env.sparse("src/holes", 256 * MIB + 17, &pieces);
    env.pcopy(["-j", "6", "src", "dst"]).ok();
    env.assert_same("src", "dst");
});

both_modes!(a_reader_of_stdout_that_goes_away_is_survived, |env| {
    for i in 0..3_000 {
        env.file(format!("src/{}/file-with-a-long-name-{i}", i % 30), "x");
    }
    // head(1) ends after one line; /dev/full takes none; and a closed one is not even there.
    for (name, script) in [
        ("head", "{ \"$0\" \"$@\" || test $? -le 1; } | head -n 1"),
        ("full", "\"$0\" \"$@\" > /dev/full || test $? -le 1"),
        ("closed", "\"$0\" \"$@\" >&- || test $? -le 1"),
    ] {
        let copy = format!("dst-{name}");
        let program = env.program(false);
        env.sh(&format!(
            "timeout 60 sh -ec '{script}' {} --mode {} -v src {copy} 2>stderr",
            program.display(),
            env.mode().name()
        ));
        let stderr = String::from_utf8(env.read("stderr")).unwrap();
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        // What was copied until then is right, and a further run makes it whole.
        env.pcopy(["src", &copy]).ok();
        env.assert_same("src", &copy);
    }
});

both_modes!(
    messages_that_cannot_be_written_change_no_exit_status,
    |env| {
        env.file("src/file", "x");
        let program = env.program(false);
        let (program, mode) = (program.display(), env.mode().name());
        env.sh(&format!(
            "{program} --mode {mode} --progress=always src dst 2>/dev/full
         {program} --mode {mode} missing dst 2>/dev/full || test $? = 2"
        ));
        env.assert_same("src", "dst");
    }
);

both_modes!(closed_standard_streams_do_not_end_up_in_the_copy, |env| {
    // A file opened as descriptor 1 or 2 would get the messages.
    env.file("src/a/file", "x");
    env.file("src/file", "x");
    env.file("dst/a", "in the way");
    for script in [
        "\"$0\" \"$@\" <&- >&- 2>&-",
        "\"$0\" \"$@\" 2>&-",
        "\"$0\" \"$@\" >&- 2>/dev/null",
    ] {
        let program = env.program(false);
        env.sh(&format!(
            "timeout 60 sh -c '{script}' {} --mode {} -v --overwrite always src dst || test $? -eq 1",
            program.display(),
            env.mode().name()
        ));
        env.assert_same("src/file", "dst/file");
        assert_eq!(env.read("dst/a"), b"in the way");
    }
});

both_modes!(more_arguments_than_descriptors_are_no_trouble, |env| {
    // As many as a `*` may give, under the limit that is usual.
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

both_modes!(a_stopped_run_goes_on, |env| {
    for i in 0..300 {
        env.file(format!("src/{}/file-{i}", i % 10), pattern(50_000, i));
    }
    // Most of the moments are those when workers are being started.
    for moment in 0..40 {
        let copy = format!("dst-{moment}");
        let running = env.command(["src", &copy]).start();
        std::thread::sleep(Duration::from_micros(500) * moment);
        running.signal_group(Signal::STOP);
        running.signal_group(Signal::CONT);
        running.wait().ok().counts(300, 0, 0);
        env.sh(&format!("rm -rf {copy}"));
    }
    let running = env.command(["-v", "src", "dst"]).start();
    running.await_stdout("a first line", |text| text.contains('\n'));
    running.signal_group(Signal::STOP);
    running.signal_group(Signal::CONT);
    running.wait().ok().counts(300, 0, 0);
    env.assert_same("src", "dst");
});

both_modes!(
    a_folder_with_a_file_for_each_worker_and_more_folders_than_files,
    |env| {
        for i in 0..400 {
            env.folder(format!("src/{}/{}/{i}", i % 7, i % 11));
        }
        env.file("src/6/10/file", "the only one");
        env.pcopy(["-j", "8", "src", "dst"]).ok().counts(1, 0, 0);
        env.assert_same("src", "dst");
        assert_eq!(env.stat("dst/6/10/file").len(), 12);
        assert_eq!(env.stat("dst").mode(), env.stat("src").mode());
    }
);

both_modes!(without_a_single_worker_nothing_is_started, |env| {
    env.file("src/file", "x");
    env.folder("parent").mode(0o777);
    let run = env
        .command(["src", "parent/dst"])
        .by_user()
        .after("ulimit -u 1")
        .within(Duration::from_secs(30))
        .run();
    run.exits(2);
});
