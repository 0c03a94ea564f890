//! A run on many machines: `--mode mpi`.
//!
//! mpirun or srun starts one process on each machine. Each of them forks before it calls MPI. The
//! first process becomes the *relay*, which alone calls MPI and never touches a file
//! ([`relay`]). The other one is pcopy, which knows nothing of MPI: it has a socket to its relay,
//! and sends and receives frames. The pcopy of rank 0 is the *lead*. It has the scheduler, and forks
//! a *node* for its own machine. The pcopy of every other rank is a node ([`node`]).

#[cfg(feature = "mpi")]
mod ffi;
mod held;
mod node;
#[cfg(feature = "mpi")]
mod relay;
mod start;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::getpid;

use crate::config::{Config, Mode};
use crate::context::{Context, Identity};
use crate::engine::become_child;
use crate::engine::mpi::{MOST_NODES, Nodes, rows};
use crate::filter::read_rule_files;
use crate::fs::sys::{self, Fork};
use crate::lock::Lock;
use crate::protocol::frames::{LONGEST_FROM_LEAD, LONGEST_FROM_NODE, Link, RELAY};
use crate::protocol::nodes::{FromRelay, Start};
use crate::protocol::wire::decode;
use crate::run_number::RunNumber;
use crate::scheduler::autoscale::WorkerLimit;
use crate::scheduler::{JOBS_PER_WORKER, Scheduler};
use crate::scoreboard::Scoreboard;
use crate::signals::{self, Signals};
use crate::targets::Targets;
use crate::ui::{Manifest, Outputs};

/// The number of a descriptor that is the socket to the relay. Without it pcopy looks for MPI. The
/// tests have a relay of their own.
const RELAY_VARIABLE: &str = "PCOPY_RELAY_FD";
/// Seconds without a word after which a node is lost. Only the tests shorten it.
const TIMEOUT_VARIABLE: &str = "PCOPY_NODE_TIMEOUT";
/// The same without that variable.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a relay may take to say which rank this is: as long as MPI takes to connect.
const HELLO_TIMEOUT: Duration = Duration::from_secs(300);
/// The most workers of one node, for the size of the table of claims.
const CLAIMS_OF_NODE: usize = 64 * JOBS_PER_WORKER;

/// Where a process stands.
enum Connection {
    /// No launcher has started it: it copies alone.
    #[cfg_attr(
        not(feature = "mpi"),
        allow(dead_code, reason = "only MPI knows a launcher")
    )]
    Alone,
    /// It has a relay.
    Behind(OwnedFd),
    /// It was a relay, and its pcopy has ended with this status.
    #[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "only MPI has relays"))]
    Relayed(i32),
}

/// How this process's part of a run has ended.
pub(crate) enum Ended {
    /// No other machine takes part: the run has these settings, and has not begun.
    Alone(Box<Config>),
    /// It is over, and this is the exit status.
    Status(i32),
}

/// Runs pcopy on the machines on which mpirun or srun has started it.
///
/// # Errors
/// If the run cannot start.
pub(crate) fn run(config: Config) -> Result<Ended> {
    let socket = match connect()? {
        Connection::Alone => return Ok(alone(config)),
        Connection::Relayed(status) => return Ok(Ended::Status(status)),
        Connection::Behind(socket) => socket,
    };
    let mut link = Link::new(socket, LONGEST_FROM_LEAD);
    match wait_for_hello(&mut link)? {
        (_, 1) => Ok(alone(config)),
        (0, size) => lead(config, link, size).map(Ended::Status),
        (rank, _) => {
            become_node(rank);
            // What went wrong is the lead's to say.
            let _ = node::serve(link, rank, config);
            sys::exit_now(0)
        }
    }
}

fn alone(config: Config) -> Ended {
    Ended::Alone(Box::new(Config {
        mode: Mode::Process,
        ..config
    }))
}

/// Refuses options that need one machine.
fn refuse_options(config: &Config) -> Result<()> {
    if config.contents.partial {
        bail!(
            "--partial does not go with several hosts: their marks would lie in one page of a \
             file, and hosts that write to one page can undo each other's writes"
        );
    }
    Ok(())
}

fn connect() -> Result<Connection> {
    if let Some(number) = std::env::var_os(RELAY_VARIABLE) {
        let number = number.to_str().and_then(|text| text.parse().ok());
        let socket = number.and_then(sys::adopt_descriptor);
        return match socket {
            Some(socket) => Ok(Connection::Behind(socket)),
            None => bail!("{RELAY_VARIABLE} is not the number of an open descriptor"),
        };
    }
    #[cfg(feature = "mpi")]
    return relay::connect();
    #[cfg(not(feature = "mpi"))]
    bail!("--mode mpi: this pcopy was built without MPI (cargo build --features mpi)");
}

fn wait_for_hello(link: &mut Link) -> Result<(u32, u32)> {
    let deadline = Instant::now() + HELLO_TIMEOUT;
    while Instant::now() < deadline {
        match link.receive() {
            Ok(Some((RELAY, bytes))) => match decode(&bytes) {
                Ok(FromRelay::Hello { rank, size }) if rank < size && size <= MOST_NODES => {
                    return Ok((rank, size));
                }
                Ok(FromRelay::Hello { size, .. }) => {
                    bail!("{size} ranks are too many: pcopy needs one on each host")
                }
                _ => bail!("a damaged message from the relay"),
            },
            Ok(Some(_)) | Err(_) => bail!("the relay has ended"),
            Ok(None) => link.wait(Duration::from_secs(1)),
        }
    }
    bail!("the relay says nothing");
}

fn become_node(rank: u32) {
    if let Some(parent) = rustix::process::getppid() {
        become_child("pcopy-node", &format!("pcopy: node {rank}"), parent);
    }
}

/// Runs the scheduler, and a node for this machine as a child.
fn lead(config: Config, relay: Link, size: u32) -> Result<i32> {
    let mut outputs = Outputs::open(&config.report)?;
    let Led {
        lock,
        context,
        nodes,
        manifest,
    } = prepare_lead(config, relay, size, &outputs)
        .inspect_err(|error| outputs.log_fatal(error))?;
    let bound = nodes.bound.join(", ");
    let limit = WorkerLimit::new(Some(nodes.workers().max(1)));
    let signals = Signals::take_over()?;
    let scheduler = Scheduler::new(context, Box::new(nodes), limit, signals, outputs);
    if !bound.is_empty() {
        scheduler.warn(&format!(
            "warning: one core of several on {bound}; mpirun --bind-to none lets pcopy use all"
        ));
    }
    let status = scheduler.with_manifest(manifest).run();
    if let Some(lock) = lock {
        lock.release();
    }
    Ok(status)
}

/// What the lead needs before the run begins.
struct Led {
    lock: Option<Lock>,
    context: &'static Context,
    nodes: Nodes,
    manifest: Option<Manifest>,
}

/// Takes the lock, opens sources and destinations, and starts all nodes.
fn prepare_lead(mut config: Config, relay: Link, size: u32, outputs: &Outputs) -> Result<Led> {
    refuse_options(&config)?;
    let lock = config.limits.lock.as_deref().map(Lock::take).transpose()?;
    let identity = Identity::read();
    let user = start::user()?;
    config.filter.rule_files = read_rule_files(&config.filter)?;
    let targets = Targets::open(&config, identity.umask)?;
    let described = targets
        .places()
        .and_then(|places| Ok((places, targets.places_beside()?)));
    let (places, beside) = described.inspect_err(|_| targets.remove_created())?;
    let (here, there) = Link::pair().context("cannot make a socket")?;
    let lead = getpid();
    // Before any thread exists.
    let child = match signals::fork().context("cannot fork")? {
        Fork::Parent(child) => child,
        Fork::Child => {
            drop((targets, relay, here));
            for fd in outputs.descriptors() {
                sys::close_inherited(fd);
            }
            become_child("pcopy-node", "pcopy: node 0", lead);
            let _ = node::serve(Link::new(there, LONGEST_FROM_LEAD), 0, config);
            sys::exit_now(0)
        }
    };
    drop(there);
    Identity::clear_umask(&config);
    let claims = size as usize * CLAIMS_OF_NODE;
    let scoreboard = Scoreboard::new(rows(size), claims, 1).context("cannot share memory")?;
    let run = scoreboard.run_number(|| RunNumber::of_process(lead).bits());
    let timeout = timeout();
    let start = Start {
        version: start::VERSION.to_owned(),
        settings: start::hash_of(&config),
        user,
        umask: identity.umask,
        decided: config.decided(),
        nodes: size,
        run,
        claims: claims as u32,
        timeout: timeout.as_millis() as u64,
        places,
        beside,
    };
    let list = config.contents.manifest.clone();
    let context: &'static Context = Box::leak(Box::new(Context {
        config,
        identity,
        targets,
        scoreboard,
    }));
    let local = Link::new(here, LONGEST_FROM_NODE);
    let mut nodes = Nodes::new(
        context,
        local,
        child,
        relay.with_longest(LONGEST_FROM_NODE),
        size,
        timeout,
    );
    let started = nodes
        .start(&start)
        .and_then(|()| list.map(|list| Manifest::begin(context, &list)).transpose());
    let manifest = started.inspect_err(|_| context.targets.remove_created())?;
    Ok(Led {
        lock,
        context,
        nodes,
        manifest,
    })
}

fn timeout() -> Duration {
    let seconds = std::env::var(TIMEOUT_VARIABLE).ok();
    let seconds: Option<f64> = seconds.and_then(|text| text.parse().ok());
    let seconds = seconds.filter(|seconds| (0.1..1e6).contains(seconds));
    seconds.map_or(TIMEOUT, Duration::from_secs_f64)
}
