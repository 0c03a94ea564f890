//! A run on several nodes: nodes that are lost, messages that are, and nodes that must not start.
//!
//! The nodes are processes on this machine, joined by a relay of the tests (tests/relay).

use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use crate::compare::{self, Properties, Property};
use crate::env::{Env, Mode, eventually, skipped_without_root};
use crate::faultfs::FaultFs;
use crate::noise::pattern;
use crate::outcome::Run;
use crate::processes::{Process, has_group_ended};
use crate::relay;
use crate::run::Running;
use crate::trees::{slow_tree, small_files, tree};
use crate::zoo::Zoo;

/// Shortens the time after which a silent node is lost, for tests that wait for that. On a busy
/// machine a node may be silent for a while, so not too much.
const IMPATIENT: &str = "export PCOPY_NODE_TIMEOUT=6";

/// Prepares three nodes. `None` if the relay is missing.
fn nodes() -> Option<Env> {
    (!relay::is_missing()).then(|| Env::new(Mode::Mpi))
}

/// Returns the process of a node.
#[track_caller]
fn node(running: &Running, rank: usize) -> Process {
    let title = format!("pcopy: node {rank}");
    let mut found = Vec::new();
    eventually("the node is there", || {
        found = running.titled(&title);
        !found.is_empty()
    });
    found.remove(0)
}

/// Fails unless a run lost so many nodes, and nothing else happened.
#[track_caller]
fn survived(env: &Env, run: Run, lost: usize) -> Run {
    let run = run.exits(0);
    let complaints = run.complaints();
    assert!(
        complaints.len() == lost && complaints.iter().all(|line| line.contains(": lost: ")),
        "not {lost} lost nodes:\n{run}"
    );
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
    // What a lost node has copied and not reported is found unchanged, if the directory was there.
    let (all, counts) = (env.snapshot("real").leaves(), run.summary());
    let sum = counts.copied + counts.unchanged;
    assert_eq!((sum, counts.failed), (all, 0), "{run}");
    run
}

/// Loses a node in the middle of a copy that also replaces files, which takes temporary names.
fn lose_a_node(rank: usize, workers: &str, signal: Signal) {
    let Some(env) = nodes() else { return };
    tree(&env, 1_500);
    for i in 0..1_500 {
        env.file(format!("dst/{}/file-{i}", i % 40), "older")
            .mtime(1_000, 1);
    }
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let mut command = env.command(["-v", "-j2", workers, "src", "dst"]);
    if signal == Signal::STOP {
        command = command.after(IMPATIENT);
    }
    let running = command.start();
    running.await_stdout("some entries", |text| text.lines().count() > 100);
    node(&running, rank).signal(signal);
    let group = running.pid();
    survived(&env, running.wait(), 1);
    eventually("all its processes have ended", || has_group_ended(group));
}

#[test]
fn a_node_that_is_killed_costs_nothing() {
    lose_a_node(1, "--mpi-workers=thread", Signal::KILL);
}

#[test]
fn a_node_of_processes_that_is_killed_costs_nothing() {
    lose_a_node(2, "--mpi-workers=process", Signal::KILL);
}

#[test]
fn the_leads_own_node_may_be_killed() {
    lose_a_node(0, "--mpi-workers=thread", Signal::KILL);
}

#[test]
fn a_node_that_is_stopped_is_given_up() {
    lose_a_node(1, "--mpi-workers=process", Signal::STOP);
}

#[test]
fn all_nodes_but_one_may_be_lost() {
    let Some(env) = nodes() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j2", "src", "dst"]);
    for rank in [2, 0] {
        node(&running, rank).signal(Signal::KILL);
    }
    survived(&env, running.wait(), 2);
}

#[test]
fn without_nodes_the_run_ends_with_an_error() {
    let Some(env) = nodes() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let running = env.start_and_await_entries(&["-j2", "src", "dst"]);
    for rank in 0..3 {
        node(&running, rank).signal(Signal::KILL);
    }
    running
        .wait()
        .exits(1)
        .stderr_has("all workers died and none can be started; run pcopy again to resume");
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

#[test]
fn workers_of_a_node_that_are_killed_are_replaced() {
    let Some(env) = nodes() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let args = ["-j2", "--mpi-workers=process", "src", "dst"];
    let running = env.start_and_await_entries(&args);
    let victims = running.workers();
    victims[0].signal(Signal::KILL);
    victims[victims.len() - 1].signal(Signal::KILL);
    let run = running.wait().ok();
    assert_eq!(run.replaced_workers(), 2, "{run}");
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

#[test]
fn a_stuck_worker_of_a_node_is_killed_for_its_timeout() {
    let Some(env) = nodes() else { return };
    small_files(&env, 200);
    env.file("real/3/stuck", pattern(100_000, 1));
    let fault = ["--fault", "hang-read:stuck"];
    let Some(_faulty) = FaultFs::mount(&env, "real", "src", &fault) else {
        return;
    };
    let run = env.pcopy(["-j2", "--stall-timeout", "2", "src", "dst"]);
    let reason = "no progress for 2 s (2 attempts)";
    run.exits(1).fails_only(&[("src/3/stuck", reason)]);
    env.snapshot("dst").assert_no_temporaries();
}

#[test]
fn nodes_end_if_the_lead_is_killed_or_stopped() {
    let Some(env) = nodes() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    for signal in [Signal::KILL, Signal::STOP] {
        let running = env
            .command(["-v", "-j2", "src", "dst"])
            .after(IMPATIENT)
            .start();
        running.await_stdout("some entries", |text| text.lines().count() > 20);
        running.signal(signal);
        let group = running.pid();
        eventually("the other nodes have ended", || {
            running.titled("pcopy: node 1").is_empty() && running.titled("pcopy: node 2").is_empty()
        });
        drop(running);
        eventually("all its processes have ended", || has_group_ended(group));
    }
    env.pcopy(["src", "dst"]).ok();
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

// ---- what is lost on the way ----------------------------------------------------------------

/// Copies a tree while something happens to a frame of a node. Returns the run.
fn with_fault(fault: &str) -> Option<(Env, Run)> {
    let env = nodes()?;
    let slow = slow_tree(&env, 1_500)?;
    let running = env.command(["-v", "-j2", "src", "dst"]);
    let run = running.after(IMPATIENT).relayed(&["--fault", fault]).run();
    drop(slow);
    Some((env, run))
}

#[test]
fn a_message_that_arrives_twice_is_taken_once() {
    if let Some((env, run)) = with_fault("double:1:20") {
        survived(&env, run, 0);
    }
}

#[test]
fn a_node_whose_message_is_lost_is_given_up() {
    if let Some((env, run)) = with_fault("drop:1:20") {
        survived(&env, run.stderr_has("a damaged or lost message"), 1);
    }
}

#[test]
fn a_node_that_says_garbage_is_given_up() {
    if let Some((env, run)) = with_fault("garble:2:20") {
        survived(&env, run.stderr_has("a damaged or lost message"), 1);
    }
}

#[test]
fn a_node_that_cannot_be_reached_is_given_up() {
    if let Some((env, run)) = with_fault("cut:2:20") {
        survived(&env, run.stderr_has("silent for 6 s"), 1);
    }
}

#[test]
fn a_node_that_loses_a_message_of_the_lead_ends() {
    if let Some((env, run)) = with_fault("drop:0:30") {
        survived(&env, run.stderr_has("its pcopy has ended"), 1);
    }
}

// ---- nodes that must not start --------------------------------------------------------------

/// Fails unless a node that a script has prepared is refused for this reason.
#[track_caller]
fn refused(env: &Env, script: &str, reason: &str) {
    let run = env
        .command(["src", "dst"])
        .relayed(&["--script", script])
        .run()
        .exits(2);
    let host = env.sh("uname -n");
    let host = host.trim();
    let is_named = run.stderr.contains(&format!("node 1 on {host}: "))
        || run.stderr.contains(&format!("node 2 on {host}: "));
    assert!(is_named, "no host is named:\n{run}");
    assert_eq!(run.complaints().len(), 1, "{run}");
    run.stderr_has(reason).stdout_is_empty();
    assert!(!env.exists("dst"), "it has begun");
}

#[test]
fn a_node_without_the_mount_is_refused() {
    let Some(env) = nodes() else { return };
    if skipped_without_root() {
        return;
    }
    env.file("disk/src/file", "x");
    env.symlink("src", "disk/src");
    let script = "mount -t tmpfs tmpfs disk";
    refused(&env, script, "No such file or directory");
}

#[test]
fn a_node_that_sees_another_directory_is_refused() {
    let Some(env) = nodes() else { return };
    if skipped_without_root() {
        return;
    }
    env.file("src/file", "x");
    env.file("other/file", "y");
    let script = "mount --bind other src";
    refused(&env, script, "not the directory that the lead has");
}

#[test]
fn a_node_of_another_user_is_refused() {
    let Some(env) = nodes() else { return };
    if skipped_without_root() {
        return;
    }
    env.file("src/file", "x");
    let script = "exec setpriv --reuid 65534 --clear-groups -- \"$@\"";
    refused(&env, script, "runs as user 65534");
}

#[test]
fn going_on_with_parts_of_files_is_refused() {
    let Some(env) = nodes() else { return };
    env.file("src/file", "x");
    let run = env.pcopy(["--partial", "src", "dst"]).exits(2);
    run.stderr_has("--partial does not go with several hosts");
    assert!(!env.exists("dst"));
}

#[test]
fn a_pipe_is_refused() {
    let Some(env) = nodes() else { return };
    let run = env
        .command(["/dev/stdin", "dst"])
        .under(&["sh", "-c", "echo text | \"$@\"", "sh"])
        .run();
    run.exits(2)
        .stderr_has("--mode mpi cannot copy from a pipe");
}

// ---- other device and inode numbers ---------------------------------------------------------

/// Copies the zoo while each node but the first sees it through mounts of its own.
fn zoo_through_mounts(options: &[&str]) -> Option<(Env, Run)> {
    let env = nodes()?;
    Zoo::User.build(&env, "real");
    env.file("real/9/large", pattern(100 << 20, 3));
    env.dir("back");
    let mut mounts = Vec::new();
    for (source, at) in [("real", "src"), ("back", "to")] {
        for name in [at.to_owned(), format!("{at}-1"), format!("{at}-2")] {
            mounts.push(FaultFs::mount(&env, source, &name, options)?);
        }
    }
    let script = "mount --bind src-$RANK src; mount --bind to-$RANK to";
    let run = env
        .command(["-v", "-j2", "src", "to/dst"])
        .relayed(&["--script", script])
        .run();
    Some((env, run))
}

#[test]
fn other_device_numbers_do_not_show() {
    let Some((env, run)) = zoo_through_mounts(&[]) else {
        return;
    };
    let all = env.snapshot("real");
    run.ok().counts(all.leaves(), 0, 0);
    let copy = env.snapshot("back/dst");
    compare::assert_same(&all, &copy, Properties::KEPT);
    copy.assert_no_temporaries();
}

/// Hard links cannot be recognised then, but nothing is mistaken for something else.
#[test]
fn other_inode_numbers_mix_nothing_up() {
    let Some((env, run)) = zoo_through_mounts(&["--volatile-inodes"]) else {
        return;
    };
    run.exits(0);
    let copy = env.snapshot("back/dst");
    let properties = Properties::KEPT.without(Property::HardLinks);
    compare::assert_same(&env.snapshot("real"), &copy, properties);
    copy.assert_no_temporaries();
}

// ---- options that depend on the machine -----------------------------------------------------

/// Nodes start in another directory, with another environment and umask, and without stdin.
const ELSEWHERE: &str = "export VERSION_CONTROL=numbered SIMPLE_BACKUP_SUFFIX=.other PCOPY_JOBS=1
umask 077
cd /";

#[test]
fn nodes_use_the_settings_of_the_lead() {
    let Some(env) = nodes() else { return };
    tree(&env, 600);
    for i in 0..600 {
        env.file(format!("dst/{}/file-{i}", i % 40), "older")
            .mtime(1_000, 1);
    }
    env.file("real/3/a.skip", "x");
    env.file("real/old", "x").mtime(1_000, 1);
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "0.5"]) else {
        return;
    };
    let options = ["-b", "--chmod=+x", "--newer-than=2h", "--exclude-from=-"];
    let run = env
        .command([&options[..], &["src", "dst"]].concat())
        .after("export VERSION_CONTROL=simple SIMPLE_BACKUP_SUFFIX=.kept")
        .under(&["sh", "-c", "echo '*.skip' | \"$@\"", "sh"])
        .relayed(&["--script", ELSEWHERE])
        .run()
        .exits(0);
    let count = |what: &str| env.sh(&format!("find dst -type f {what} | wc -l"));
    assert_eq!(count("-name '*.kept'").trim(), "600", "{run}");
    assert_eq!(count("! -name '*.kept' ! -perm 755").trim(), "0", "{run}");
    assert_eq!(count("-name '*.other' -o -name '*~'").trim(), "0", "{run}");
    assert!(
        !env.exists("dst/3/a.skip") && !env.exists("dst/old"),
        "{run}"
    );
}

#[test]
fn nodes_that_start_elsewhere_find_everything() {
    let Some(env) = nodes() else { return };
    tree(&env, 300);
    env.file("list", "1\n2/file-2\n");
    env.pcopy(["real", "before"]).ok();
    for options in [
        &["-r", "--files-from=list", "real", "listed"][..],
        &["--parents", "real/3", "real/4/file-4", "parents"],
        &["--link-dest=../before", "real", "linked"],
        &["-b", "--backup-dir=../backups", "real", "kept"],
        &["real/1/file-1", "real/2/file-2", "files"],
    ] {
        let (options, to) = options.split_at(options.len() - 1);
        env.dir(to[0]);
        let run = env
            .command([options, to].concat())
            .relayed(&["--script", ELSEWHERE])
            .run()
            .exits(0);
        assert!(run.complaints().is_empty(), "{run}");
    }
    env.assert_same("real/1", "listed/1");
    env.assert_same("real/3", "parents/real/3");
    env.assert_same("real", "linked");
    env.assert_same("real", "kept");
    assert!(env.exists("listed/2/file-2") && env.exists("files/file-2"));
    assert!(!env.exists("listed/3") && !env.exists("parents/real/5"));
    let inode = |path: &str| env.stat(path).ino();
    assert_eq!(inode("linked/7/file-7"), inode("before/7/file-7"));
}

/// Another node knows nothing of what the lost one has deleted.
#[test]
fn no_more_is_deleted_than_allowed_if_a_node_is_lost() {
    let Some(env) = nodes() else { return };
    tree(&env, 40);
    for i in 0..400 {
        env.file(format!("dst/{}/extra-{i}", i % 40), "x");
    }
    let Some(_slow) = FaultFs::mount(&env, "real", "src", &["--delay-ms", "2"]) else {
        return;
    };
    let args = ["-v", "-j1", "--delete", "--max-delete=300", "src", "dst"];
    let running = env.command(args).start();
    let victim = node(&running, 0);
    running.await_stdout("some deletions", |text| {
        text.matches("delete ").count() > 20
    });
    victim.signal(Signal::KILL);
    let run = running
        .wait()
        .exits(1)
        .stderr_has("--max-delete=300 is reached");
    let left = env.sh("find dst -name 'extra-*' | wc -l");
    let left: usize = left.trim().parse().unwrap();
    assert!(left >= 100, "{left} are left:\n{run}");
    assert!(left < 400, "nothing was deleted:\n{run}");
}

// ---- usage ----------------------------------------------------------------------------------

once!(without_a_launcher_or_mpi_it_says_so, |env| {
    env.file("src/file", "x");
    let run = env
        .command(["--mode", "mpi", "src", "dst"])
        .without_mode()
        .run();
    if run.status.code() == Some(0) {
        // Built with MPI: it copies alone.
        env.assert_same("src", "dst");
    } else {
        run.exits(2).stderr_has("built without MPI");
        assert!(!env.exists("dst"));
    }
});

#[test]
fn progress_lines_come_without_a_terminal() {
    let Some(env) = nodes() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let running = env
        .command(["-j1", "--progress=always", "src", "dst"])
        .start();
    running.await_stderr("a line of progress", |text| text.contains(" files, "));
    let run = running.wait().exits(0);
    assert!(run.stderr.contains("3 hosts"), "{run}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let Some(env) = nodes() else { return };
    tree(&env, 200);
    let run = env.pcopy(["-n", "real", "dst"]).ok();
    assert!(run.summary().copied >= 200, "{run}");
    assert!(!env.exists("dst"));
}
