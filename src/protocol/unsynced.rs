//! Files that wait to be synced (`--fsync`).

use serde::{Deserialize, Serialize};

use super::entry::Decision;
use super::metadata::{MetadataError, Refusal};
use crate::fs::path::Name;
use crate::fs::stat::{FileId, FileStat};

/// A file that is complete but for its times and its name, and perhaps not on disk yet. With
/// `--fsync` many of them are synced at once, and committed after that (`copy/batched.rs`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unsynced {
    /// The source's name.
    pub(crate) name: Name,
    /// The temporary name at the destination; `None` if it has its own name already.
    pub(crate) temp: Option<Name>,
    /// The ID of the file at the destination.
    pub(crate) id: FileId,
    /// The source's stat when it was opened. Boxed, because messages and jobs hold many of them.
    pub(crate) stat: Box<FileStat>,
    pub(crate) decision: Decision,
    /// Metadata that could not be kept, so far.
    pub(crate) failures: Vec<MetadataError>,
    pub(crate) refusals: Vec<Refusal>,
}
