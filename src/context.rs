//! What every worker has from the start: the choices, the roots, the board.

use crate::config::Config;
use crate::scoreboard::Scoreboard;
use crate::targets::Targets;

/// One for the run. Threads share it, forked workers inherit it.
pub(crate) struct Context {
    /// The choices.
    pub(crate) config: Config,
    /// Sources and destinations, open.
    pub(crate) roots: Targets,
    /// The shared memory.
    pub(crate) board: Scoreboard,
}
