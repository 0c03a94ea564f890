//! Entries as they are shown: the path that the user gave, and what is below it.

use std::os::unix::ffi::OsStrExt;

use crate::context::Context;
use crate::fs::path::{Name, RelPath};
use crate::ui::quote::quote;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Below SRC.
    Source,
    /// Below DST.
    Destination,
}

/// Shows paths below the roots.
pub(crate) struct Paths {
    context: &'static Context,
}

impl Paths {
    /// For the roots of this run.
    pub(crate) fn new(context: &'static Context) -> Self {
        Self { context }
    }

    /// The path of an entry in a folder, or of the folder.
    pub(crate) fn show(
        &self,
        side: Side,
        root: u32,
        folder: &RelPath,
        name: Option<&Name>,
    ) -> String {
        let root = &self.context.roots.list[root as usize];
        let (base, name) = match (side, &root.single) {
            (Side::Source, _) => (&root.source_path, name.map(Name::as_bytes)),
            (Side::Destination, Some(single)) if name.is_some() => {
                (&root.destination_path, Some(single.to.as_bytes()))
            }
            (Side::Destination, _) => (&root.destination_path, name.map(Name::as_bytes)),
        };
        let mut path = base.as_os_str().as_bytes().to_vec();
        for part in [Some(folder.as_bytes()), name].into_iter().flatten() {
            if part.is_empty() {
                continue;
            }
            if !path.is_empty() && !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        quote(&path)
    }
}
