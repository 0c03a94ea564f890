//! Finds out whether an entry failed because the destination refuses its name.

use std::ffi::CStr;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Copier;
use super::dir::DirPair;
use crate::fs::names::{Offence, RefusedName, Refuser, may_be_refusal};
use crate::protocol::error::{At, CopyError, Reason, Step};

impl Copier {
    /// Replaces the reason of an error by the name, if that is what the destination refuses.
    ///
    /// Errno alone does not say it. So the name must contain something that some file systems
    /// refuse, nothing may stand under it, and another name must be accepted at the same place.
    pub(crate) fn explain_name(
        &mut self,
        dir: &DirPair,
        name: &CStr,
        error: CopyError,
    ) -> CopyError {
        if self.context.config.dry_run {
            return error;
        }
        let is_possible = match (error.step, error.reason) {
            (
                Step::Create | Step::MakeDirectory | Step::Link | Step::Rename
                // Even a lookup may fail for such a name.
                | Step::LookAtDestination,
                Reason::System(errno),
            ) => may_be_refusal(Errno::from_raw_os_error(errno)),
            (Step::Rename, Reason::CannotRename) => true,
            _ => false,
        };
        let (true, Some(offence), Ok(destination)) = (
            is_possible,
            Offence::find(name.to_bytes()),
            dir.share_destination(),
        ) else {
            return error;
        };
        let is_there = fs::statat(&destination, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if is_there || !self.accepts_other_names(dir) {
            return error;
        }
        let by = Refuser::of(&destination);
        CopyError::new(error.step, Reason::Name(RefusedName { by, offence }))
    }

    fn accepts_other_names(&mut self, dir: &DirPair) -> bool {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target = self.next_temp();
        // Dropping the result removes the file.
        self.create(dir, c"", target, |dir, name| {
            fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).at(Step::Create)
        })
        .is_ok()
    }
}
