//! Messages between the lead and the nodes of a run on many machines, and with their relays.
//!
//! The lead has the scheduler. Every node runs jobs with an engine of its own and passes on what
//! its workers report. Everything that arrives is checked, as on the wire of process mode.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::Death;
use super::{Job, JobId, Report};
use crate::config::Decided;
use crate::fs::path::{Kind, Name, RelPath};
use crate::fs::stat::FileId;

/// From a relay to its pcopy.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromRelay {
    /// The first message.
    Hello { rank: u32, size: u32 },
    /// The pcopy of that rank has ended, or its relay.
    Gone { rank: u32, why: String },
}

/// From a pcopy to its relay.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToRelay {
    /// Kill the pcopy of that rank.
    Kill { rank: u32 },
}

/// From the lead to a node.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToNode {
    /// Open the roots and get ready. The first message.
    Start(Box<Start>),
    Jobs(Vec<Arc<Job>>),
    /// Idle workers elsewhere would take so many more jobs.
    Wanted(u32),
    /// A file that this node has prepared to be copied in chunks is done with.
    ChunkedEnded,
    /// Kill this worker.
    Kill {
        worker: u32,
    },
    /// Give up this worker, which was killed and does not die.
    Abandon {
        worker: u32,
    },
    /// Begin no more entries, and complete what was begun.
    Finish,
    /// Stop what is not done.
    Stop,
    /// Remove nothing more. Another node has, and nobody knows how much.
    KeepRest,
    /// The lead lives.
    Heartbeat,
    /// The run is over.
    Quit,
}

/// How a node must start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) version: String,
    /// A hash of the settings, which each node reads from its own command line.
    pub(crate) settings: u64,
    pub(crate) user: User,
    pub(crate) umask: u32,
    /// The settings that are the lead's.
    pub(crate) decided: Decided,
    /// How many nodes there are.
    pub(crate) nodes: u32,
    /// The number of the run in temporary names.
    pub(crate) run: u64,
    /// Words in the table of claims.
    pub(crate) claims: u32,
    /// After so many milliseconds without a word, a node counts as lost.
    pub(crate) timeout: u64,
    pub(crate) places: Vec<Place>,
    pub(crate) beside: PlacesBeside,
}

/// A source and its destination, as the lead has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) source: Root,
    /// `None` in a dry run if it does not exist.
    pub(crate) destination: Option<Root>,
    /// The nearest directory above it then.
    pub(crate) above: Option<Root>,
    /// The paths for messages.
    pub(crate) source_path: Vec<u8>,
    pub(crate) destination_path: Vec<u8>,
    /// The path of the destination below the directory that the command line names as DST.
    pub(crate) below_named: RelPath,
    pub(crate) single: Option<SinglePlace>,
    pub(crate) selection: Option<ListedPaths>,
    /// The sources land in the destination, which is no copy itself.
    pub(crate) lands_in: bool,
    /// The lead has just made the destination.
    pub(crate) created: bool,
}

/// The paths below a source that are copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListedPaths {
    /// Each with a NUL at its end.
    #[serde(with = "serde_bytes")]
    pub(crate) list: Vec<u8>,
    /// Directories are copied with everything below them.
    pub(crate) is_recursive: bool,
}

/// The directories of `--backup-dir` and `--link-dest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlacesBeside {
    pub(crate) backup: Option<Root>,
    pub(crate) snapshots: Vec<Root>,
}

/// A single file: what it is, and its names on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinglePlace {
    pub(crate) kind: Kind,
    pub(crate) from: Name,
    /// The name by which the command line names it.
    pub(crate) named: Name,
    pub(crate) to: Name,
}

/// A directory that all nodes must see.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Root {
    /// Its absolute path, as the user wrote it and without links.
    pub(crate) paths: [Vec<u8>; 2],
    pub(crate) id: FileId,
    /// Its mode and its time of modification.
    pub(crate) looks: (u32, i64, i64),
    /// Some of its entries and their inode numbers, if these may differ between machines.
    pub(crate) sample: Option<Vec<(Name, u64)>>,
}

/// Who runs pcopy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Sorted.
    pub(crate) groups: Vec<u32>,
}

/// From a node to the lead.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromNode {
    /// The node cannot start.
    Refused {
        host: String,
        why: String,
    },
    /// The node can take jobs.
    Ready {
        host: String,
        room: Room,
        /// The launcher lets it use one core only, although there are more.
        is_bound: bool,
    },
    /// It can take more or fewer.
    Room(Room),
    Report {
        worker: u32,
        report: Report,
    },
    /// A worker has ended.
    Lost {
        row: Row,
        /// The jobs that it has claimed and not ended.
        claimed: Vec<JobId>,
        death: Death,
        is_left_behind: bool,
    },
    /// Jobs that no worker has claimed, and that none here will claim.
    Returned(Vec<JobId>),
    /// What workers show on the scoreboard, if that has changed. Shows that the node lives.
    Rows(Vec<Row>),
    /// The destination is full.
    Stopping,
    /// The last message. So many processes do not die.
    Bye {
        left_behind: u32,
    },
}

/// How many workers a node has, and how many batches it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Room {
    pub(crate) workers: u32,
    pub(crate) batches: u32,
    /// The workers are processes, which can be killed.
    pub(crate) can_kill: bool,
}

/// What a worker shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) worker: u32,
    pub(crate) has_work: bool,
    pub(crate) words: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::path::RelPath;
    use crate::protocol::JobKind;
    use crate::protocol::entry::DirOrigin;
    use crate::protocol::wire::decode;
    use proptest::prelude::*;

    fn jobs() -> ToNode {
        ToNode::Jobs(vec![Arc::new(Job {
            id: 7,
            claim: 3,
            target: 0,
            path: RelPath::default().join(b"a"),
            origin: DirOrigin::default(),
            kind: JobKind::RemoveTemps {
                workers: 1..9,
                keep: Vec::new(),
            },
            suspects: Vec::new(),
        })])
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = decode::<FromNode>(&bytes);
            let _ = decode::<ToNode>(&bytes);
            let _ = decode::<FromRelay>(&bytes);
            let _ = decode::<ToRelay>(&bytes);
        }

        #[test]
        fn damaged_jobs_stay_below_the_roots(at in 0_usize..100, to: u8) {
            let mut bytes = postcard::to_stdvec(&jobs()).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(ToNode::Jobs(jobs)) = decode::<ToNode>(&bytes) {
                for job in jobs {
                    let mut parts = job.path.as_bytes().split(|&b| b == b'/');
                    prop_assert!(parts.all(|part| part != b".."));
                }
            }
        }
    }
}
