//! How many jobs one lead can deal with: made-up nodes that answer at once, in a thread of this
//! process.
//!
//! ```sh
//! cargo test --release --lib many_nodes -- --ignored --nocapture
//! ```
//!
//! `benches/README.md` has the results.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::getpid;
use rustix::time::{ClockId, clock_gettime};

use super::Scheduler;
use super::autoscale::WorkerLimit;
use crate::cli::Cli;
use crate::config::Config;
use crate::context::{Context, Identity};
use crate::engine::mpi::{Nodes, rows};
use crate::fs::path::{Kind, Names};
use crate::fs::stat::FileStat;
use crate::protocol::frames::{LONGEST_FROM_LEAD, LONGEST_FROM_NODE, Link, Numbers, wait_for};
use crate::protocol::nodes::{FromNode, PlacesBeside, Room, Start, ToNode, User};
use crate::protocol::{Job, JobKind, JobUpdate, Report};
use crate::scoreboard::Scoreboard;
use crate::signals::Signals;
use crate::targets::Targets;
use crate::ui::Outputs;

/// Subdirectories of each directory.
const FAN_OUT: u8 = 10;
/// How deep they are: 11,111,111 directories.
const DEPTH: usize = 7;

/// All nodes: each says at once that its jobs are done.
struct MadeUp {
    links: [Link; 2],
    numbers: HashMap<u32, Numbers>,
    names: Names,
    stat: FileStat,
    depth: usize,
    jobs: u64,
}

impl MadeUp {
    /// Runs until the lead says that it is over, or is gone. Returns how many jobs there were.
    fn run(mut self) -> u64 {
        loop {
            let mut is_idle = true;
            for at in 0..2 {
                if self.links[at].flush().is_err() {
                    return self.jobs;
                }
                for _ in 0..256 {
                    match self.links[at].receive() {
                        Ok(Some((rank, bytes))) => {
                            is_idle = false;
                            if !self.answer(at, rank, &bytes) {
                                return self.jobs;
                            }
                        }
                        Ok(None) => break,
                        Err(_) => return self.jobs,
                    }
                }
            }
            if is_idle {
                let [local, relay] = &self.links;
                wait_for(&[local, relay], Duration::from_millis(100));
            }
        }
    }

    fn answer(&mut self, at: usize, rank: u32, bytes: &[u8]) -> bool {
        let numbers = self.numbers.entry(rank).or_default();
        let answer = match numbers.read::<ToNode>(bytes).unwrap() {
            Some(ToNode::Start(_)) => FromNode::Ready {
                host: format!("host-{rank}"),
                room: Room {
                    workers: 16,
                    batches: 96,
                    can_kill: false,
                },
                is_bound: false,
            },
            Some(ToNode::Jobs(jobs)) => {
                self.jobs += jobs.len() as u64;
                let updates = jobs.iter().map(|job| self.done(job)).collect();
                let report = Report {
                    updates,
                    is_batch_done: true,
                    ..Report::default()
                };
                FromNode::Report { worker: 0, report }
            }
            Some(ToNode::Quit) => return false,
            _ => FromNode::Rows(Vec::new()),
        };
        let answer = self.numbers.entry(rank).or_default().number(answer);
        let to = if at == 0 { 0 } else { rank };
        self.links[at].send(to, &answer).is_ok()
    }

    fn done(&self, job: &Job) -> JobUpdate {
        let mut update = JobUpdate {
            job: job.id,
            is_done: true,
            ..JobUpdate::default()
        };
        let path = job.path.as_bytes();
        let depth = if path.is_empty() {
            0
        } else {
            1 + path.iter().filter(|&&b| b == b'/').count()
        };
        if matches!(job.kind, JobKind::Directory { .. }) && depth < self.depth {
            update.subdirs.new = self.names.clone();
            update.stat_to_finish = Some(Box::new(self.stat));
        }
        update
    }
}

/// Returns jobs, seconds, and the lead's processor time in seconds of a run with so many nodes over a
/// tree of this depth.
fn run(nodes: u32, depth: usize) -> (u64, f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    let args = ["pcopy", "-q", "--mode=mpi"].map(OsString::from);
    let paths = ["src", "dst"].map(|name| dir.path().join(name).into_os_string());
    let cli = Cli::try_parse_from(args.into_iter().chain(paths)).unwrap();
    let config = Config::new(cli).unwrap();
    let identity = Identity::read();
    let claims = nodes as usize * 8192;
    let context: &'static Context = Box::leak(Box::new(Context {
        targets: Targets::open(&config, identity.umask).unwrap(),
        scoreboard: Scoreboard::new(rows(nodes), claims, 1).unwrap(),
        identity,
        config,
    }));
    let mut names = Names::default();
    for number in 0..FAN_OUT {
        names.push(Kind::Directory, &[b'0' + number]);
    }
    let (local, local_there) = Link::pair().unwrap();
    let (relay, relay_there) = Link::pair().unwrap();
    let made_up = MadeUp {
        links: [local_there, relay_there].map(|end| Link::new(end, LONGEST_FROM_LEAD)),
        numbers: HashMap::new(),
        names,
        stat: FileStat::of(&rustix::fs::stat(dir.path()).unwrap()),
        depth,
        jobs: 0,
    };
    let thread = std::thread::Builder::new().name("made-up nodes".to_owned());
    let thread = thread.spawn(|| made_up.run()).unwrap();
    let [local, relay] = [local, relay].map(|end| Link::new(end, LONGEST_FROM_NODE));
    // This process is no child of itself, so there is none to wait for.
    let timeout = Duration::from_secs(600);
    let mut engine = Nodes::new(context, local, getpid(), relay, nodes, timeout);
    let start = Start {
        version: String::new(),
        settings: 0,
        user: User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        },
        umask: 0,
        run: 1,
        decided: context.config.decided(),
        nodes,
        claims: claims as u32,
        timeout: 1,
        places: Vec::new(),
        beside: PlacesBeside::default(),
    };
    engine.start(&start).unwrap();
    let limit = WorkerLimit::new(Some(engine.workers()));
    let signals = Signals::simulated(Arc::new(AtomicUsize::new(0)));
    let (started, used) = (Instant::now(), processor_time());
    let mut scheduler = Scheduler::new(
        context,
        Box::new(engine),
        limit,
        signals,
        Outputs::default(),
    );
    scheduler.run_jobs();
    let (seconds, used) = (started.elapsed(), processor_time() - used);
    drop(scheduler);
    let jobs = thread.join().unwrap();
    (jobs, seconds.as_secs_f64(), used.as_secs_f64())
}

/// Returns the processor time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The most memory of this process so far, in MiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[test]
fn each_directory_is_one_job_and_each_that_has_others_two() {
    for nodes in [1, 3, 40] {
        let (jobs, ..) = run(nodes, 3);
        assert_eq!(jobs, 1111 + 111);
    }
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn one_lead_keeps_a_thousand_nodes_busy() {
    // PCOPY_NODES=10 is one of these runs, to look at it with perf(1).
    let only: Option<u32> = std::env::var("PCOPY_NODES")
        .ok()
        .and_then(|it| it.parse().ok());
    for nodes in only.map_or(vec![1, 10, 100, 1000], |nodes| vec![nodes]) {
        let (jobs, seconds, used) = run(nodes, DEPTH);
        let rate = jobs as f64 / seconds;
        println!(
            "{nodes} nodes: {jobs} jobs in {seconds:.1} s: {rate:.0} jobs/s, {:.2} µs of the lead's \
             processor for each, {} MiB",
            used * 1e6 / jobs as f64,
            peak_memory()
        );
    }
}
