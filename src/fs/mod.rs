//! Files and directories on Linux. Independent of the rest of pcopy.

pub(crate) mod devices;
pub(crate) mod errno;
pub(crate) mod file_system;
pub(crate) mod granularity;
pub(crate) mod list;
pub(crate) mod names;
pub(crate) mod open;
pub(crate) mod path;
pub(crate) mod proc;
pub(crate) mod spelling;
pub(crate) mod stat;
pub(crate) mod sys;
pub(crate) mod xattr;
