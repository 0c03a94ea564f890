//! The calls of MPI, through `shim.c`. The only unsafe code besides `fs/sys.rs`.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn pcopy_mpi_start(rank: *mut c_int, size: *mut c_int) -> c_int;
    fn pcopy_mpi_send(bytes: *const c_void, length: c_int, to: c_int, tag: c_int) -> *mut c_void;
    fn pcopy_mpi_test(request: *mut c_void) -> c_int;
    fn pcopy_mpi_look(from: *mut c_int, tag: *mut c_int, length: *mut c_int) -> *mut c_void;
    fn pcopy_mpi_receive(message: *mut c_void, bytes: *mut c_void, length: c_int) -> c_int;
    fn pcopy_mpi_end();
}

/// Requests that are tested at a time.
const TESTED: usize = 64;

/// A message that is on its way.
struct Sending {
    bytes: Box<[u8]>,
    request: *mut c_void,
    to: u32,
}

/// A message that has arrived.
pub(super) struct Received {
    pub(super) from: u32,
    pub(super) tag: i32,
    pub(super) bytes: Vec<u8>,
}

/// The connection to the other ranks.
pub(super) struct Mpi {
    pub(super) rank: u32,
    pub(super) size: u32,
    sending: VecDeque<Sending>,
}

impl Mpi {
    /// Connects. Returns `None` if that fails.
    pub(super) fn start() -> Option<Self> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        let failed = unsafe { pcopy_mpi_start(&raw mut rank, &raw mut size) };
        (failed == 0).then_some(Self {
            rank: rank as u32,
            size: size as u32,
            sending: VecDeque::new(),
        })
    }

    /// Begins to send. Returns false if that fails.
    pub(super) fn send(&mut self, to: u32, tag: i32, bytes: Vec<u8>) -> bool {
        let bytes = bytes.into_boxed_slice();
        let Ok(length) = c_int::try_from(bytes.len()) else {
            return false;
        };
        // SAFETY: the bytes stay where they are until the request is done: `sending` owns them.
        let request = unsafe { pcopy_mpi_send(bytes.as_ptr().cast(), length, to as c_int, tag) };
        if request.is_null() {
            return false;
        }
        self.sending.push_back(Sending { bytes, request, to });
        true
    }

    /// Returns true if something is on its way.
    pub(super) fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// Forgets what was sent. Returns a rank to which it could not be.
    pub(super) fn finish_sends(&mut self) -> Option<u32> {
        for _ in 0..self.sending.len().min(TESTED) {
            let sending = self.sending.pop_front()?;
            // SAFETY: the request is not done yet, or it would not be in the list.
            match unsafe { pcopy_mpi_test(sending.request) } {
                0 => self.sending.push_back(sending),
                1 => {}
                _ => {
                    // MPI may still read the bytes.
                    std::mem::forget(sending.bytes);
                    return Some(sending.to);
                }
            }
        }
        None
    }

    /// Receives a message, if one has arrived.
    pub(super) fn receive(&mut self) -> Option<Received> {
        let (mut from, mut tag, mut length) = (0, 0, 0);
        // SAFETY: the three pointers are valid for the call.
        let message = unsafe { pcopy_mpi_look(&raw mut from, &raw mut tag, &raw mut length) };
        if message.is_null() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        // SAFETY: the message was found just now, and it is received once. The buffer is as long as
        // it.
        let failed = unsafe { pcopy_mpi_receive(message, bytes.as_mut_ptr().cast(), length) };
        let from = from as u32;
        (failed == 0).then_some(Received { from, tag, bytes })
    }

    /// Disconnects. All other ranks must do so too.
    pub(super) fn end(&mut self) {
        // SAFETY: MPI was started, and this is the last call of it.
        unsafe { pcopy_mpi_end() }
    }
}
