//! The promises of pcopy, each tested on the real program in both modes.
//!
//! - `cargo test` runs everything, `cargo test --test pcopy safety::` one module.
//!   A test whose name ends in `::thread`, `::process` or `::mpi` runs pcopy in that mode.
//! - A test that needs root, a mount or a program that is missing prints
//!   `skipped: TEST: REASON` and passes. With `PCOPY_TEST_NO_SKIP` set it fails instead.
//! - `PCOPY_TEST_DIR` names the directory in which the tests create their temporary
//!   directories, on any file system. The default is `TMPDIR`. If that is not set, it is memory
//!   (/dev/shm) with 4 GiB free, and the system's temporary directory otherwise.
//! - `PCOPY_TEST_PROGRAM` names another pcopy to test, such as an installed one.
//! - `PCOPY_TEST_RSYNC` is the number of random trees that rsync and pcopy copy with rules.
//! - `PCOPY_TEST_SEED` is the seed of the randomised tests, which print it. It has a default.
//! - `PCOPY_TEST_MPIRUN` is the command that starts ranks, with its options, such as `mpirun.mpich`.
//!   It is for a pcopy that was built with another MPI than OpenMPI (`mpirun.rs`).
//! - `PCOPY_TEST_CASES` is the number of random trees that are compared with those of rsync.
//!
//! No test measures time: a busy machine only makes them slower. What must be fast is
//! measured in `benches/`.

/// Defines a test with this body for each mode.
macro_rules! in_modes {
    ($name:ident, |$env:ident| $body:block, $($test:ident: $mode:ident),+) => {
        mod $name {
            #[allow(unused_imports, reason = "not every body needs its module's imports")]
            use super::*;

            fn body($env: &crate::env::Env) {
                $body
            }

            $(
                #[test]
                fn $test() {
                    let mode = crate::env::Mode::$mode;
                    if mode == crate::env::Mode::Mpi && crate::relay::is_missing() {
                        return;
                    }
                    body(&crate::env::Env::new(mode));
                }
            )+
        }
    };
}

/// Defines two tests with one body: threads and processes keep the same promise.
///
/// Each test gets an environment of its own; `env.mode()` returns its mode.
macro_rules! both_modes {
    ($name:ident, |$env:ident| $body:block) => {
        in_modes!($name, |$env| $body, thread: Thread, process: Process);
    };
}

/// Defines three tests with one body: the third runs pcopy as three nodes, joined by a relay of the
/// tests. For what depends on the engine.
macro_rules! all_modes {
    ($name:ident, |$env:ident| $body:block) => {
        in_modes!($name, |$env| $body, thread: Thread, process: Process, mpi: Mpi);
    };
}

/// Defines one test, for what is decided before any worker starts.
macro_rules! once {
    ($name:ident, |$env:ident| $body:block) => {
        #[test]
        fn $name() {
            let $env = &crate::env::Env::new(crate::env::Mode::Thread);
            $body
        }
    };
}

// What the tests are built from.
mod acl;
mod capture;
mod compare;
mod created;
mod env;
mod faultfs;
mod mounts;
mod noise;
mod outcome;
mod processes;
mod relay;
mod run;
mod snapshot;
mod terminal;
mod trees;
mod zoo;

// The promises.
mod backups;
mod bar;
mod changes;
mod cli;
mod contents;
mod crash_reports;
mod crashes;
mod disk_full;
mod duplicate;
mod faults;
mod fidelity;
mod files_from;
mod filesystems;
mod filters;
mod flags;
mod fsync;
mod gate;
mod hosts;
mod in_place;
mod injection;
mod json;
mod lesser;
mod limits;
mod links;
mod logs;
mod metadata;
mod mirror;
mod moving;
mod mpi;
mod mpirun;
mod names;
mod output;
mod overlap;
mod overwrite;
mod parents;
mod partial;
mod preserve;
mod random;
mod recipes;
mod resources;
mod resume;
mod retries;
mod rsync;
mod safety;
mod signals;
mod snapshots;
mod stalls;
mod streams;
mod targets;
mod twins;
mod two_runs;
mod usage;
