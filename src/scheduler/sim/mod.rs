//! A seeded simulation of whole runs: workers that claim, report, crash, stall and lose messages
//! over a made-up tree, in virtual time.
//!
//! `tree`, `extra` and `model` are the world and `check` what must hold in it; these know nothing
//! of the protocol. `engine` and `worker` speak it, and what a worker does is in `listing`,
//! `entry`, `chunks`, `deletion` and `reports`. This file sets runs up.

mod check;
mod chunks;
mod deletion;
mod engine;
mod entry;
mod env;
mod extra;
mod hosts;
mod listing;
mod model;
mod reports;
mod tree;
mod worker;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};

use self::engine::{Hung, SimEngine};
use self::env::{Env, Faults, SLOTS};
use self::extra::Extras;
use self::hosts::HostsEngine;
use self::model::{Broken, Outcome, Rule, World};
use self::tree::{Rng, Tree};
use super::Scheduler;
use super::autoscale::WorkerLimit;
use crate::cli::Cli;
use crate::config::Config;
use crate::context::{Context, Identity};
use crate::engine::Engine;
use crate::scoreboard::Scoreboard;
use crate::signals::Signals;
use crate::targets::Targets;
use crate::ui::Outputs;
use crate::ui::output::captured::{self, Stream};

/// Seeds beyond the first thousand that have found faults.
const KEPT_SEEDS: [u64; 4] = [5925, 7309, 7656, 8950];
/// The same for runs that delete.
const KEPT_DELETIONS: [u64; 2] = [1584, 7067];

/// How a run is set up.
#[derive(Debug)]
struct Setup {
    is_process: bool,
    /// Hosts, if there are several.
    hosts: usize,
    jobs: usize,
    stall_timeout: Option<u64>,
    root_existed: bool,
    is_durable: bool,
    retries: u32,
    has_passing_faults: bool,
    /// In milliseconds.
    stop_after: Option<usize>,
    /// With `--delete`.
    deletes: bool,
    /// With `--checksum`.
    compares: bool,
    faults: Faults,
}

impl Setup {
    fn random(seed: u64, rng: &mut Rng) -> Self {
        let is_process = rng.chance(0.75);
        let mut faults = Faults {
            starts: SLOTS,
            ..Faults::default()
        };
        let mut stall_timeout = None;
        if is_process {
            faults.crash = rng.pick(&[0.0, 0.0, 0.0, 0.002, 0.005, 0.02]);
            faults.send = rng.pick(&[0.0, 0.0, 0.0, 0.0, 0.02]);
            if rng.chance(0.05) {
                faults.starts = rng.range(1, 4);
            }
            stall_timeout = rng.pick(&[None, Some(2), Some(5)]);
        }
        faults.double = rng.pick(&[0.0, 0.0, 0.02]);
        if rng.chance(0.25) {
            faults.stall = rng.pick(&[0.002, 0.01]);
            faults.longest_stall = Duration::from_millis(rng.pick(&[1500, 4000, 20_000]));
            faults.unkillable = rng.chance(0.3);
        }
        if rng.chance(0.08) {
            faults.signal_at = Some(rng.range(1, 1000) as u64);
        }
        if rng.chance(0.08) {
            faults.full_at = Some(rng.range(1, 1000) as u64);
        }
        // Without a random number: the seeds that have found faults still make the same runs.
        let is_durable = seed % 4 == 3;
        if is_durable {
            faults.sync = rng.pick(&[0.0, 0.0, 0.0, 0.1]);
        }
        Self {
            is_durable,
            is_process,
            hosts: 0,
            jobs: rng.range(1, 4),
            stall_timeout,
            root_existed: rng.chance(0.5),
            retries: 0,
            has_passing_faults: false,
            stop_after: None,
            deletes: false,
            compares: false,
            faults,
        }
    }

    /// Adds what came later, from another generator: each seed still stands for the same tree.
    fn add_limits(&mut self, rng: &mut Rng) {
        self.has_passing_faults = rng.chance(0.4);
        if self.has_passing_faults {
            self.retries = rng.pick(&[0, 1, 2, 3]);
        }
        self.stop_after = rng.chance(0.08).then(|| rng.range(1, 40));
    }

    /// Adds what came after that.
    fn add_options(&mut self, seed: u64, rng: &mut Rng) {
        let is_new = !KEPT_SEEDS.contains(&seed);
        self.deletes = is_new && rng.chance(0.5);
        self.compares = is_new && rng.chance(0.3);
        if self.deletes && rng.chance(0.1) {
            // Perhaps just when everything is copied.
            self.stop_after = Some(rng.range(1, 150));
        }
        if self.deletes && self.is_process && rng.chance(0.2) {
            // Few removals follow each other, so that crashes between them are rare.
            self.faults.crash = 0.03;
        }
    }
}

impl Setup {
    /// Makes it a run on several hosts, which can be lost.
    fn on_hosts(self, rng: &mut Rng) -> Self {
        Self {
            is_process: false,
            hosts: rng.range(2, 4),
            stall_timeout: None,
            is_durable: false,
            faults: Faults {
                host_loss: rng.pick(&[0.0, 0.001, 0.005, 0.02]),
                starts: SLOTS,
                signal_at: self.faults.signal_at,
                full_at: self.faults.full_at,
                ..Faults::default()
            },
            ..self
        }
    }

    /// Names the faults.
    fn kind(&self) -> String {
        let faults = &self.faults;
        let mut kind = String::from(if self.is_process { "process" } else { "thread" });
        for (is_set, name) in [
            (faults.crash > 0.0, " crash"),
            (faults.send > 0.0, " send"),
            (self.hosts > 0, " hosts"),
            (faults.host_loss > 0.0, " host-loss"),
            (faults.stall > 0.0, " stall"),
            (self.has_passing_faults, " passing"),
            (self.stop_after.is_some(), " time"),
            (faults.signal_at.is_some(), " signal"),
            (faults.full_at.is_some(), " full"),
            (self.is_durable, " fsync"),
            (faults.sync > 0.0, " sync-error"),
            (self.deletes, " delete"),
            (self.compares, " checksum"),
            (faults.starts < SLOTS, " starts"),
        ] {
            if is_set {
                kind.push_str(name);
            }
        }
        kind
    }
}

/// Simulates one run and returns the broken rules.
fn simulate(seed: u64, is_on_hosts: bool) -> (Setup, Vec<Broken>) {
    let mut rng = Rng::new(seed);
    let mut setup = Setup::random(seed, &mut rng);
    let mut later_rng = Rng::new(seed ^ 0x1f2e_3d4c);
    setup.add_limits(&mut later_rng);
    let mut last_rng = Rng::new(seed ^ 0x5a6b_7c8d);
    if is_on_hosts {
        setup = setup.on_hosts(&mut later_rng);
    } else {
        setup.add_options(seed, &mut last_rng);
    }
    let temporary = tempfile::tempdir().unwrap();
    let [source, destination] = ["src", "dst"].map(|name| temporary.path().join(name));
    std::fs::create_dir(&source).unwrap();
    if setup.root_existed {
        std::fs::create_dir(&destination).unwrap();
    }
    let mut args = vec![OsString::from("pcopy"), "-v".into()];
    args.push("--progress=never".into());
    if setup.is_process {
        args.push("--mode=process".into());
    }
    if setup.hosts > 0 {
        args.push("--mode=mpi".into());
    }
    if setup.is_durable {
        args.push("--fsync".into());
    }
    if setup.deletes {
        args.push("--delete".into());
    }
    if setup.compares {
        args.push("--checksum".into());
    }
    if let Some(seconds) = setup.stall_timeout {
        args.push(format!("--stall-timeout={seconds}").into());
    }
    if setup.retries > 0 {
        args.push(format!("--retries={}", setup.retries).into());
        args.push("--retry-wait=1.5".into());
    }
    if let Some(millis) = setup.stop_after {
        args.push(format!("--stop-after={:.6}", millis as f64 / 60_000.0).into());
    }
    args.extend([source.clone().into(), destination.clone().into()]);
    let config = Config::new(Cli::try_parse_from(args).unwrap()).unwrap();
    let identity = Identity::read();
    let targets = Targets::open(&config, identity.umask).unwrap();
    let is_durable = targets.list[0].batch.is_some();
    let context: &'static Context = Box::leak(Box::new(Context {
        targets,
        scoreboard: Scoreboard::new(SLOTS, 4 * super::JOBS_PER_WORKER, SLOTS).unwrap(),
        identity,
        config,
    }));
    let board = |_| Scoreboard::new(8, 4 * super::JOBS_PER_WORKER, 1).unwrap();
    let boards: Vec<Scoreboard> = (0..setup.hosts).map(board).collect();
    let crashes = setup.faults.crash > 0.0 && rng.chance(0.3);
    let mut tree = Tree::random(&mut rng, setup.root_existed, crashes);
    if setup.has_passing_faults {
        tree.add_passing_faults(&mut later_rng);
    }
    let mut world = World::new(tree, is_durable);
    if setup.deletes {
        world.extras = Extras::random(&world.tree, &mut last_rng);
    }
    let world = Rc::new(RefCell::new(world));
    let batch = rng.pick(&[8, 32, 256]);
    let env = Rc::new(RefCell::new(Env {
        rng,
        later: last_rng,
        // Ahead of the real time: a real wait until a virtual time is long enough.
        now: Instant::now() + Duration::from_secs(3600),
        steps: 0,
        world: Rc::clone(&world),
        context,
        faults: setup.faults.clone(),
        is_process: setup.is_process,
        batch,
        boards,
        sent: VecDeque::new(),
    }));
    let signal = Arc::new(AtomicUsize::new(0));
    let is_left_behind = Rc::new(RefCell::new(false));
    let engine: Box<dyn Engine> = match setup.hosts {
        0 => Box::new(SimEngine::new(&env, setup.jobs, &signal, &is_left_behind)),
        _ => Box::new(HostsEngine::new(&env, &signal)),
    };
    let limit = WorkerLimit::new(Some(setup.jobs));
    let signals = Signals::simulated(signal);
    captured::begin();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let mut scheduler = Scheduler::new(context, engine, limit, signals, Outputs::default());
        scheduler.run_jobs();
        scheduler.delete_extraneous();
        // What the bar would show at the end.
        let found = scheduler.summary.counts.found + scheduler.unreported().found;
        (scheduler.end(), found)
    }));
    let printed = captured::end();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for (stream, line) in printed {
        match stream {
            Stream::Out => out.push(line),
            Stream::Err => err.push(line),
        }
    }
    drop(env);
    let (status, found) = match ended {
        Ok(ended) => ended,
        Err(panic) => {
            let rule = if panic.is::<Hung>() {
                Rule::Ends
            } else {
                Rule::DoesNotPanic
            };
            let how = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            return (setup, vec![Broken { rule, how }]);
        }
    };
    let was_stopped = context.scoreboard.is_finishing();
    let free = (0..16).all(|_| context.scoreboard.begin_chunked());
    let outcome = Outcome {
        status,
        out,
        err,
        found,
        was_stopped,
        retries: setup.retries,
        is_left_behind: is_left_behind.take(),
        free_chunked_slots: free,
        roots: [source, destination]
            .map(|path| path.to_str().unwrap().to_owned())
            .into(),
    };
    let world = Rc::try_unwrap(world).ok().expect("the engine is gone");
    (setup, world.into_inner().check(&outcome))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Raises the limit of descriptors, because each context leaks two, or six with `--fsync`.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The same on several hosts.
#[test]
fn some_hundred_runs_on_many_hosts() {
    allow_descriptors();
    let only = number("PCOPY_SIM_SEED");
    let seeds = number("PCOPY_SIM_SEEDS").unwrap_or(400);
    let mut all = Vec::new();
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let (setup, broken) = simulate(seed, true);
        let kind = setup.kind();
        let broken = broken.into_iter();
        all.extend(broken.map(|it| format!("{seed}{kind} {:?}: {}", it.rule, it.how)));
    }
    assert!(all.is_empty(), "{all:#?}");
}

/// Runs a thousand seeds. PCOPY_SIM_SEED=7 runs that seed alone and prints the broken rules.
/// PCOPY_SIM_SEEDS=N runs N seeds. PCOPY_SIM_LIST=1 lists all that is broken, with the seed.
/// PCOPY_SIM_TRACE=1 prints what happens.
#[test]
fn a_thousand_runs() {
    allow_descriptors();
    if let Some(seed) = number("PCOPY_SIM_SEED") {
        let (setup, broken) = simulate(seed, false);
        println!("{setup:#?}");
        for broken in &broken {
            println!("{:?}: {}", broken.rule, broken.how);
        }
        assert!(broken.is_empty());
        return;
    }
    let mut seeds_of: BTreeMap<Rule, Vec<(usize, u64)>> = BTreeMap::new();
    // The ones with the fewest kinds of faults come first.
    let mut kinds_of: BTreeMap<Rule, BTreeMap<String, usize>> = BTreeMap::new();
    let seeds = 0..number("PCOPY_SIM_SEEDS").unwrap_or(1000);
    for seed in seeds.chain(KEPT_SEEDS).chain(KEPT_DELETIONS) {
        let (setup, mut broken) = simulate(seed, false);
        broken.sort_by_key(|broken| broken.rule);
        broken.dedup_by_key(|broken| broken.rule);
        for broken in broken {
            seeds_of
                .entry(broken.rule)
                .or_default()
                .push((setup.kind().len(), seed));
            if number("PCOPY_SIM_LIST").is_some() {
                println!("{seed} {:?} {}: {}", broken.rule, setup.kind(), broken.how);
            }
            let kinds = kinds_of.entry(broken.rule).or_default();
            *kinds.entry(setup.kind()).or_default() += 1;
        }
    }
    for (rule, seeds) in &mut seeds_of {
        seeds.sort_unstable();
        let first: Vec<u64> = seeds.iter().take(8).map(|(_, seed)| *seed).collect();
        println!("{rule:?}: {} seeds, the simplest {first:?}", seeds.len());
        println!("    {:?}", kinds_of[rule]);
    }
    assert!(seeds_of.is_empty());
}
