//! A run under a real mpirun, if pcopy was built with MPI: `cargo test --features mpi`.
//!
//! It is OpenMPI's, unless `PCOPY_TEST_MPIRUN` names another one: the one of the MPI that pcopy was
//! built with. On Debian, with both:
//!
//! ```sh
//! export MPICC=mpicc.mpich CARGO_TARGET_DIR=target/mpich PCOPY_TEST_MPIRUN=mpirun.mpich
//! cargo test --features mpi --test pcopy mpirun::
//! ```
//!
//! What depends on lead and nodes alone is tested without MPI (`mpi.rs`).

use std::path::PathBuf;

use rustix::process::Signal;

use crate::compare::{self, Properties};
use crate::env::{Env, Mode, eventually, skip};
use crate::processes::{Process, processes};
use crate::run::{Pcopy, Running};
use crate::trees::{slow_tree, small_tree};
use crate::zoo::Zoo;

/// mpirun does not start anything as root, unless it is asked twice.
const AS_ROOT: &str = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1";

/// Starts ranks: OpenMPI's, with more ranks than cores.
const MPIRUN: &str = "mpirun --oversubscribe --bind-to none";

/// The same of each MPI, as Debian names them.
const LAUNCHERS: [&str; 2] = [
    "mpirun.openmpi --oversubscribe --bind-to none",
    "mpirun.mpich",
];

/// Returns the command that starts ranks, with its options.
fn launcher() -> String {
    std::env::var("PCOPY_TEST_MPIRUN").unwrap_or_else(|_| MPIRUN.to_owned())
}

/// Returns the file that such a command runs.
fn file_of(launcher: &str) -> Option<PathBuf> {
    let name = launcher.split_whitespace().next()?;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|directory| directory.join(name).canonicalize().ok())
}

/// Prepares a run under mpirun. `None` if that is not possible.
#[track_caller]
fn with_mpi() -> Option<Env> {
    if !cfg!(feature = "mpi") {
        skip("needs cargo test --features mpi");
        return None;
    }
    if file_of(&launcher()).is_none() {
        skip(format_args!("needs {}", launcher()));
        return None;
    }
    Some(Env::new(Mode::Process))
}

fn mpirun<'a>(env: &'a Env, ranks: &str, args: &[&str]) -> Pcopy<'a> {
    under(env, &launcher(), ranks, args)
}

fn under<'a>(env: &'a Env, launcher: &str, ranks: &str, args: &[&str]) -> Pcopy<'a> {
    let args = [&["--mode", "mpi"], args].concat();
    let launcher = launcher.split_whitespace().chain(["-n", ranks]);
    env.command(args)
        .without_mode()
        .after(AS_ROOT)
        .under(&launcher.collect::<Vec<_>>())
}

/// Lists the living processes below this one, at any depth. mpirun's children are in groups of their
/// own.
fn family(root: i32) -> Vec<Process> {
    let mut all: Vec<Process> = processes().filter(Process::is_alive).collect();
    let mut known = vec![root];
    let mut found = Vec::new();
    loop {
        let (children, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|it| known.contains(&it.parent));
        if children.is_empty() {
            return found;
        }
        known.extend(children.iter().map(|it| it.pid));
        found.extend(children);
        all = rest;
    }
}

/// Waits until a run is in the middle of its work, and returns its processes.
fn start(env: &Env, args: &[&str]) -> (Running, Vec<Process>) {
    let running = mpirun(env, "3", &[&["-v", "-j2"], args].concat()).start();
    running.await_stdout("some entries", |text| text.lines().count() > 50);
    let family = family(running.pid().as_raw_pid());
    (running, family)
}

fn titled(family: &[Process], title: &str) -> i32 {
    let found = family.iter().find(|it| it.title().starts_with(title));
    found.unwrap_or_else(|| panic!("no {title}")).pid
}

#[track_caller]
fn assert_all_end(family: &[Process]) {
    let is_over =
        || processes().all(|it| !it.is_alive() || family.iter().all(|other| other.pid != it.pid));
    eventually("all processes have ended", is_over);
}

/// The second run completes what the first one has left.
#[track_caller]
fn assert_completed(env: &Env) {
    env.pcopy(["real", "dst"]).ok();
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
}

#[test]
fn mpirun_copies_the_zoo_and_then_nothing() {
    let Some(env) = with_mpi() else { return };
    Zoo::Full.build(&env, "src");
    let before = env.snapshot("src");
    let run = mpirun(&env, "3", &["src", "dst"]).run().exits(0);
    run.counts(before.leaves(), 0, 0).stderr_has("3 hosts");
    compare::assert_same(&before, &env.snapshot("dst"), Properties::KEPT);
    env.snapshot("dst").assert_no_temporaries();
    let run = mpirun(&env, "3", &["src", "dst"]).run().exits(0);
    run.counts(0, before.leaves(), 0);
}

#[test]
fn one_rank_and_none_copy_as_processes() {
    let Some(env) = with_mpi() else { return };
    small_tree(&env);
    let run = mpirun(&env, "1", &["-v", "src", "dst"]).run().exits(0);
    assert!(run.stdout().starts_with("[pid "), "{run}");
    env.assert_same("src", "dst");
    let alone = env
        .command(["--mode", "mpi", "-v", "src", "dst-2"])
        .without_mode();
    let run = alone.run().exits(0);
    assert!(run.stdout().starts_with("[pid "), "{run}");
    env.assert_same("src", "dst-2");
}

#[test]
fn the_mpirun_of_the_other_mpi_is_refused() {
    let Some(env) = with_mpi() else { return };
    let own = file_of(&launcher());
    let (ours, others): (Vec<_>, Vec<_>) = LAUNCHERS
        .into_iter()
        .filter(|launcher| file_of(launcher).is_some())
        .partition(|launcher| file_of(launcher) == own);
    let ([_], [other]) = (&ours[..], &others[..]) else {
        skip("needs OpenMPI and MPICH");
        return;
    };
    small_tree(&env);
    let run = under(&env, other, "2", &["src", "dst"]).run().exits(2);
    run.stderr_has("this pcopy's MPI sees only itself");
    assert!(!env.exists("dst"));
}

#[test]
fn a_launcher_whose_ranks_mpi_does_not_see_is_refused() {
    let Some(env) = with_mpi() else { return };
    small_tree(&env);
    let run = env
        .command(["--mode", "mpi", "src", "dst"])
        .without_mode()
        .after(&format!("{AS_ROOT} PMI_SIZE=2"))
        .run();
    run.exits(2).stderr_has("this pcopy's MPI sees only itself");
    assert!(!env.exists("dst"));
}

#[test]
fn the_exit_status_reaches_mpirun() {
    let Some(env) = with_mpi() else { return };
    small_tree(&env);
    // A directory is in the way of a file.
    env.file("dst/empty-file/x", "x");
    let run = mpirun(&env, "2", &["src", "dst"]).run();
    assert_eq!(run.status.code(), Some(1), "{run}");
    let run = mpirun(&env, "2", &["nothing", "dst"]).run();
    assert_eq!(run.status.code(), Some(2), "{run}");
}

#[test]
fn a_nodes_pcopy_may_be_killed_under_plain_mpirun() {
    let Some(env) = with_mpi() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let (running, family) = start(&env, &["src", "dst"]);
    let victim = titled(&family, "pcopy: node 1");
    let victim = family.iter().find(|it| it.pid == victim).unwrap();
    victim.signal(Signal::KILL);
    let run = running.wait().exits(0).stderr_has(": lost: ");
    let all = env.snapshot("real").leaves();
    run.counts(all, 0, 0);
    env.assert_same("real", "dst");
    env.snapshot("dst").assert_no_temporaries();
    assert_all_end(&family);
}

#[test]
fn a_killed_relay_ends_the_run_and_leaves_nothing_behind() {
    let Some(env) = with_mpi() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let (running, family) = start(&env, &["src", "dst"]);
    let node = titled(&family, "pcopy: node 1");
    let parent = family.iter().find(|it| it.pid == node).unwrap().parent;
    let relay = family.iter().find(|it| it.pid == parent).unwrap();
    // Slurm's proctrack/linuxproc does not see a process with a blank in its name.
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
    assert_eq!(name.trim_end(), "pcopy-relay");
    relay.signal(Signal::KILL);
    let run = running.wait();
    assert_ne!(run.status.code(), Some(0), "{run}");
    assert_all_end(&family);
    assert_completed(&env);
}

#[test]
fn a_killed_mpirun_leaves_nothing_behind() {
    let Some(env) = with_mpi() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let (running, family) = start(&env, &["src", "dst"]);
    running.signal(Signal::KILL);
    assert_all_end(&family);
    drop(running);
    assert_completed(&env);
}

#[test]
fn a_signal_to_mpirun_leaves_nothing_incomplete() {
    let Some(env) = with_mpi() else { return };
    let Some(_slow) = slow_tree(&env, 1_500) else {
        return;
    };
    let (running, family) = start(&env, &["src", "dst"]);
    running.signal(Signal::INT);
    let run = running.wait();
    assert_ne!(run.status.code(), Some(0), "{run}");
    assert_all_end(&family);
    assert_completed(&env);
}
