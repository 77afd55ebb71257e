//! Operations that complete again and again (multishot), and what they have brought so far.
//!
//! Bytes are copied out of the provided buffer as soon as their completion is reaped, so a buffer
//! is back with the kernel at once, and cancelling never touches the memory of whoever reads. A
//! multishot that brings more than is consumed is stopped, and started again when it is wanted.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use crate::byte_queue::Bytes;
use crate::operation::{Completion, Effect};
use crate::tasks::WaitId;

/// What a multishot operation brings.
#[derive(Debug)]
pub enum Arrivals {
    /// New descriptors, of an accept.
    Descriptors(VecDeque<RawFd>),
    /// Bytes, of a read or a receive.
    Bytes {
        /// What has come and is not consumed.
        bytes: Bytes,
        /// How much may come before the multishot is stopped.
        limit: usize,
        /// Where each completion's bytes end, for whoever wants them one by one.
        chunks: VecDeque<usize>,
    },
}

impl Arrivals {
    /// Room for descriptors.
    pub fn descriptors() -> Self {
        Self::Descriptors(VecDeque::new())
    }

    /// Room for bytes; a multishot that brings more than `limit` is stopped.
    pub fn bytes(limit: usize) -> Self {
        Self::Bytes {
            bytes: Bytes::default(),
            limit,
            chunks: VecDeque::new(),
        }
    }
}

/// The state of a multishot operation.
#[derive(Debug)]
pub struct Multishot {
    /// The wait that the next arrival, or the end, ends.
    pub wait: Option<WaitId>,
    /// What has come.
    pub arrivals: Arrivals,
    /// The result of the final completion, once it has come: 0 is the end of the file, the rest
    /// is -errno.
    pub ended: Option<i32>,
    /// It was cancelled because it brought too much.
    pub stopped: bool,
    discarded: bool,
}

impl Multishot {
    pub(crate) fn new(arrivals: Arrivals) -> Self {
        Self {
            wait: None,
            arrivals,
            ended: None,
            stopped: false,
            discarded: false,
        }
    }

    /// Whether it ended for a reason that starting it again mends: the provided buffers were used
    /// up (ENOBUFS), it was stopped for bringing too much, or the kernel ended the multishot
    /// without an error.
    pub fn is_resumable(&self) -> bool {
        match self.ended {
            Some(result) => {
                result > 0
                    || result == -libc::ENOBUFS
                    || (self.stopped && result == -libc::ECANCELED)
            }
            None => false,
        }
    }

    pub(crate) fn is_discarded(&self) -> bool {
        self.discarded
    }

    pub(crate) fn discard(&mut self) {
        self.discarded = true;
        self.wait = None;
        match &mut self.arrivals {
            Arrivals::Descriptors(descriptors) => descriptors.drain(..).for_each(close),
            Arrivals::Bytes { bytes, chunks, .. } => {
                *bytes = Bytes::default();
                chunks.clear();
            }
        }
    }

    /// Enters a completion.
    pub(crate) fn arrive(&mut self, completion: Completion, more: bool, new: &[u8]) -> Effect {
        let result = completion.result;
        if !more {
            self.ended = Some(result);
        }
        let mut floods = false;
        match &mut self.arrivals {
            Arrivals::Descriptors(descriptors) if result >= 0 => {
                if self.discarded {
                    close(result);
                } else {
                    descriptors.push_back(result);
                }
            }
            Arrivals::Bytes {
                bytes,
                limit,
                chunks,
            } if result > 0 && !self.discarded => {
                bytes.push(new);
                chunks.push_back(new.len());
                floods = more && bytes.len() > *limit && !self.stopped;
            }
            _ => {}
        }
        let wait = self.wait.take();
        if floods {
            self.stopped = true;
            return Effect::Floods(wait);
        }
        match wait {
            Some(wait) => Effect::Wakes(wait),
            None => Effect::None,
        }
    }
}

impl Drop for Multishot {
    fn drop(&mut self) {
        // What nobody has taken nobody will close.
        self.discard();
    }
}

fn close(fd: RawFd) {
    // SAFETY: the kernel made the descriptor for this multishot, and nobody else has seen it.
    unsafe { libc::close(fd) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::slab::Key;

    fn wait() -> WaitId {
        WaitId {
            task: Key {
                index: 3,
                generation: 0,
            },
            serial: 1,
        }
    }

    fn completion(result: i32) -> Completion {
        Completion { result, flags: 0 }
    }

    #[test]
    fn an_arrival_ends_one_wait_and_the_next_arrival_none() {
        let mut multishot = Multishot::new(Arrivals::bytes(100));
        multishot.wait = Some(wait());
        assert_eq!(
            multishot.arrive(completion(2), true, b"ab"),
            Effect::Wakes(wait())
        );
        assert_eq!(multishot.arrive(completion(1), true, b"c"), Effect::None);
        let Arrivals::Bytes { bytes, chunks, .. } = &multishot.arrivals else {
            unreachable!()
        };
        assert_eq!(bytes.as_slice(), b"abc");
        assert_eq!(chunks, &[2, 1]);
    }

    #[test]
    fn a_multishot_that_floods_is_stopped_once_and_may_be_started_again() {
        let mut multishot = Multishot::new(Arrivals::bytes(3));
        assert_eq!(multishot.arrive(completion(3), true, b"abc"), Effect::None);
        assert_eq!(
            multishot.arrive(completion(1), true, b"d"),
            Effect::Floods(None)
        );
        assert_eq!(multishot.arrive(completion(1), true, b"e"), Effect::None);
        assert!(!multishot.is_resumable());
        multishot.arrive(completion(-libc::ECANCELED), false, b"");
        assert!(multishot.is_resumable());
    }

    /// A descriptor whose close its peer sees.
    fn connection() -> (RawFd, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        (ours.into_raw_fd(), peer)
    }

    #[test]
    fn descriptors_that_nobody_takes_are_closed() {
        let mut multishot = Multishot::new(Arrivals::descriptors());
        let (waiting, mut first) = connection();
        let (late, mut second) = connection();
        multishot.arrive(completion(waiting), true, b"");
        multishot.discard();
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
        multishot.arrive(completion(late), true, b"");
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_end_of_the_file_and_an_error_are_final() {
        for result in [0, -libc::ECONNRESET, -libc::ECANCELED] {
            let mut multishot = Multishot::new(Arrivals::bytes(3));
            multishot.arrive(completion(result), false, b"");
            assert_eq!(multishot.ended, Some(result));
            assert!(!multishot.is_resumable());
        }
    }
}
