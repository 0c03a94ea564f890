//! A run on many machines: `--mode mpi`.
//!
//! mpirun or srun starts one process on each machine. Each of them forks before it calls MPI. The
//! first process becomes the *relay*, which alone calls MPI and never touches a file
//! ([`relay`]). The other one is pcopy, which knows nothing of MPI: it has a socket to its relay,
//! and sends and receives frames. The pcopy of rank 0 is the *lead*. It has the scheduler, and forks
//! a *node* for its own machine. The pcopy of every other rank is a node ([`node`]).

#[cfg(feature = "mpi")]
mod ffi;
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
use crate::fs::sys::{self, Fork};
use crate::protocol::frames::{LONGEST_FROM_LEAD, LONGEST_FROM_NODE, Link, RELAY};
use crate::protocol::nodes::{FromRelay, Start};
use crate::protocol::wire::decode;
use crate::run_number::RunNumber;
use crate::scheduler::autoscale::WorkerLimit;
use crate::scheduler::{JOBS_PER_WORKER, Scheduler};
use crate::scoreboard::Scoreboard;
use crate::signals::Signals;
use crate::targets::Targets;

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

/// Runs pcopy on the machines on which mpirun or srun has started it. Returns the exit status.
///
/// # Errors
/// If the run cannot start.
pub(crate) fn run(config: Config) -> Result<i32> {
    let socket = match connect()? {
        Connection::Alone => return run_alone(config),
        Connection::Relayed(status) => return Ok(status),
        Connection::Behind(socket) => socket,
    };
    let mut link = Link::new(socket, LONGEST_FROM_LEAD);
    match wait_for_hello(&mut link)? {
        (_, 1) => run_alone(config),
        (0, size) => lead(config, link, size),
        (rank, _) => {
            become_node(rank);
            // What went wrong is the lead's to say.
            let _ = node::serve(link, rank, config);
            sys::exit_now(0)
        }
    }
}

fn run_alone(config: Config) -> Result<i32> {
    crate::run_here(Config {
        mode: Mode::Process,
        ..config
    })
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
        become_child("pcopy: node", &format!("pcopy: node {rank}"), parent);
    }
}

/// Runs the scheduler, and a node for this machine as a child.
fn lead(config: Config, relay: Link, size: u32) -> Result<i32> {
    let identity = Identity::read();
    let user = start::user()?;
    let targets = Targets::open(&config, identity.umask)?;
    let places = targets.places()?;
    let (here, there) = Link::pair().context("cannot make a socket")?;
    let lead = getpid();
    // Before any thread exists.
    let child = match sys::fork().context("cannot fork")? {
        Fork::Parent(child) => child,
        Fork::Child => {
            drop((targets, relay, here));
            become_child("pcopy: node", "pcopy: node 0", lead);
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
        run,
        jobs: config.jobs.map(|jobs| jobs as u32),
        claims: claims as u32,
        timeout: timeout.as_millis() as u64,
        places,
    };
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
    if let Err(error) = nodes.start(&start) {
        context.targets.remove_created();
        return Err(error);
    }
    if !nodes.bound.is_empty() {
        crate::ui::output::print_message(&format!(
            "warning: one core of several on {}; mpirun --bind-to none lets pcopy use all",
            nodes.bound.join(", ")
        ));
    }
    let limit = WorkerLimit::new(Some(nodes.workers().max(1)));
    let signals = Signals::take_over()?;
    Ok(Scheduler::new(context, Box::new(nodes), limit, signals).run())
}

fn timeout() -> Duration {
    let seconds = std::env::var(TIMEOUT_VARIABLE).ok();
    let seconds: Option<f64> = seconds.and_then(|text| text.parse().ok());
    let seconds = seconds.filter(|seconds| (0.1..1e6).contains(seconds));
    seconds.map_or(TIMEOUT, Duration::from_secs_f64)
}
