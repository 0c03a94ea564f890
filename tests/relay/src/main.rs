//! Joins several pcopies on one machine, as MPI joins those on many, and damages what they say.
//!
//! `relay 3 PCOPY --mode mpi SRC DST` becomes the pcopy of rank 0. Before that it starts a process
//! that starts the others and passes frames on. A frame is a rank and a length, each of 32 bits, and
//! a message that the relay does not understand.

mod faults;
mod peers;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Parser;
use rustix::io::{FdFlags, fcntl_setfd};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use faults::Fault;
use peers::Peers;

/// pcopy finds its socket by this variable.
const VARIABLE: &str = "PCOPY_RELAY_FD";

/// Joins several pcopies on one machine.
#[derive(Parser)]
struct Cli {
    /// Damage what a rank says: drop, double, garble or cut, its rank, and which of its frames
    #[arg(long, value_name = "WHAT:RANK:FRAME", value_parser = Fault::parse)]
    fault: Vec<Fault>,
    /// A shell script that runs first in each process but that of rank 0, in a mount namespace of
    /// its own; $RANK is the rank
    #[arg(long, value_name = "SCRIPT")]
    script: Option<String>,
    /// Serve: stdin leads to rank 0
    #[arg(long, hide = true)]
    serve: bool,
    /// How many ranks
    ranks: usize,
    /// pcopy and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<std::ffi::OsString>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    // Without a handler, a SIGCONT right after a SIGSTOP may not reach a process that is being
    // forked, and it would stay stopped.
    flag::register(SIGCONT, Arc::default())?;
    if cli.serve { serve(cli) } else { lead(&cli) }
}

/// Starts the process that serves, and becomes rank 0.
fn lead(cli: &Cli) -> Result<()> {
    let (here, there) = UnixStream::pair()?;
    Command::new(std::env::current_exe()?)
        .arg("--serve")
        .args(std::env::args_os().skip(1))
        .stdin(OwnedFd::from(there))
        .spawn()
        .context("cannot start the relay")?;
    keep_open(&here)?;
    let error = Command::new(&cli.command[0])
        .args(&cli.command[1..])
        .env(VARIABLE, here.as_raw_fd().to_string())
        .exec();
    bail!("{}: {error}", cli.command[0].display());
}

/// Starts all ranks but the first, and passes frames on until all have ended.
fn serve(cli: Cli) -> Result<()> {
    // Ctrl-C reaches the whole group. As with MPI's relay, rank 0 decides what it means. The programs
    // that this one starts do not inherit a handler, as they would an ignored signal.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        flag::register(signal, Arc::default())?;
    }
    let lead = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Only this process has it.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let mut peers = Peers::new(lead, cli.fault);
    for rank in 1..cli.ranks {
        let (here, there) = UnixStream::pair()?;
        keep_open(&there)?;
        let mut command = match &cli.script {
            Some(script) => {
                let script = format!("{script}\nexec \"$@\"");
                let mut shell = Command::new("unshare");
                shell.args(["-m", "sh", "-ec", &script, "sh"]);
                shell.arg(&cli.command[0]);
                shell
            }
            None => Command::new(&cli.command[0]),
        };
        let child = command
            .args(&cli.command[1..])
            .env(VARIABLE, there.as_raw_fd().to_string())
            .env("RANK", rank.to_string())
            .spawn()
            .context("cannot start a rank")?;
        peers.add(here, child);
    }
    peers.run()
}

/// Keeps a socket open in the programs that this process starts or becomes.
fn keep_open(socket: &UnixStream) -> io::Result<()> {
    Ok(fcntl_setfd(socket, FdFlags::empty())?)
}
