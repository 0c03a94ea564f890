//! Notes metadata that could not be kept, and changes that were granted.
//!
//! Each step is tried, even if others fail. A failed step is noted as a failure of the entry or as
//! a refusal. The parent judges refusals (`scheduler/refusals.rs`), by comparing them with grants.
//! Each grant is noted once, so most entries add nothing.

use std::ffi::CStr;

use rustix::io::Errno;

use super::Copier;
use super::handle::Subject;
use crate::config::Keep;
use crate::protocol::error::{Reason, Step};
use crate::protocol::metadata::{
    Attribute, AttributeClass, Cause, Grant, MetadataError, Property, Refusal,
};

/// The maximum number of failures, and of refusals, that are noted for one entry.
const MOST: usize = 16;

/// Metadata of an entry that could not be kept.
#[derive(Debug, Default)]
pub(crate) struct Issues {
    pub(crate) failures: Vec<MetadataError>,
    pub(crate) refusals: Vec<Refusal>,
}

/// A step that could not be done.
pub(super) struct Problem {
    pub(super) keep: Keep,
    pub(super) property: Property,
    pub(super) step: Step,
    pub(super) attribute: Option<Attribute>,
}

impl Problem {
    pub(super) fn new(keep: Keep, property: Property, step: Step) -> Self {
        Self {
            keep,
            property,
            step,
            attribute: None,
        }
    }

    /// Makes the problem of one attribute, whose value has `size` bytes.
    pub(super) fn of_attribute(keep: Keep, step: Step, name: &CStr, size: Option<usize>) -> Self {
        Self {
            keep,
            property: Property::Attribute(AttributeClass::of(name.to_bytes())),
            step,
            attribute: Some(Attribute {
                name: name.to_bytes().to_vec(),
                size: size.map(|size| size as u32),
            }),
        }
    }

    fn into_error(self, reason: Reason) -> MetadataError {
        MetadataError {
            step: self.step,
            attribute: self.attribute,
            reason,
        }
    }
}

impl Copier {
    /// Notes that metadata could not be set.
    ///
    /// It is a failure if `--preserve` names the property, or if the errno says nothing about the
    /// file system (EIO, ENOSPC). An owner that a normal user may not set is not noted.
    pub(super) fn refuse(&mut self, subject: &Subject<'_>, problem: Problem, errno: Errno) {
        let cause = match errno {
            Errno::PERM | Errno::ACCESS => Some(Cause::Denied),
            Errno::OPNOTSUPP | Errno::NOSYS => Some(Cause::Unsupported),
            Errno::INVAL | Errno::OVERFLOW => Some(Cause::Value),
            // An attribute that is too large also fails with this one.
            Errno::RANGE if problem.property == Property::Timestamps => Some(Cause::Value),
            _ => None,
        };
        match cause {
            Some(cause) if problem.keep != Keep::Required => {
                let is_denied = cause == Cause::Denied;
                let is_owner = problem.property == Property::Ownership;
                if is_denied && is_owner && !self.context.identity.is_root {
                    return;
                }
                let is_at_destination = problem.step.is_at_destination();
                if is_denied && is_at_destination && subject.handle.is_immutable() {
                    self.fail(problem, errno.into());
                } else {
                    self.add_refusal(subject, problem, cause, errno.into());
                }
            }
            _ => self.fail(problem, errno.into()),
        }
    }

    /// Notes that metadata was accepted but not stored.
    pub(super) fn note_ineffective(&mut self, subject: &Subject<'_>, problem: Problem) {
        if problem.keep == Keep::Required {
            self.fail(problem, Reason::Ineffective);
        } else {
            self.add_refusal(subject, problem, Cause::Value, Reason::Ineffective);
        }
    }

    /// Notes a failure of the entry.
    pub(super) fn fail(&mut self, problem: Problem, reason: Reason) {
        let error = problem.into_error(reason);
        let failures = &mut self.issues.failures;
        if failures.len() < MOST && !failures.contains(&error) {
            failures.push(error);
        }
    }

    fn add_refusal(
        &mut self,
        subject: &Subject<'_>,
        problem: Problem,
        cause: Cause,
        reason: Reason,
    ) {
        let refusal = Refusal {
            grant: Grant {
                device: subject.device,
                kind: subject.kind,
                property: problem.property,
            },
            cause,
            error: problem.into_error(reason),
        };
        let refusals = &mut self.issues.refusals;
        if refusals.len() < MOST && !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    }

    /// Notes that a change was granted, and had an effect.
    pub(super) fn grant(&mut self, subject: &Subject<'_>, property: Property) {
        let grant = Grant {
            device: subject.device,
            kind: subject.kind,
            property,
        };
        if !self.granted.contains(&grant) {
            self.granted.push(grant);
            self.newly_granted.push(grant);
        }
    }

    /// Takes the issues of the last entry.
    pub(crate) fn take_issues(&mut self) -> Issues {
        std::mem::take(&mut self.issues)
    }

    /// Takes the grants that were new since the last report.
    pub(crate) fn take_grants(&mut self) -> Vec<Grant> {
        std::mem::take(&mut self.newly_granted)
    }
}
