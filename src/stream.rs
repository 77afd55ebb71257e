//! Operations that complete again and again (multishot), and what they have brought so far.
//!
//! Bytes are copied out of the provided buffer as soon as their completion is reaped, so a buffer
//! is back with the kernel at once, and cancelling never touches the memory of whoever reads. A
//! stream that brings more than is consumed is stopped, and started again when it is wanted.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use crate::ops::{Completion, Effect};
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
        /// How much may come before the stream is stopped.
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

    /// Room for bytes; a stream that brings more than `limit` is stopped.
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
pub struct Stream {
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

impl Stream {
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

impl Drop for Stream {
    fn drop(&mut self) {
        // What nobody has taken nobody will close.
        self.discard();
    }
}

fn close(fd: RawFd) {
    // SAFETY: the kernel made the descriptor for this stream, and nobody else has seen it.
    unsafe { libc::close(fd) };
}

/// A queue of bytes in one piece.
#[derive(Debug, Default)]
pub struct Bytes {
    data: Vec<u8>,
    start: usize,
}

/// What an empty queue keeps of its memory, and how much consumed memory may lie before the bytes.
const KEPT: usize = 64 << 10;

impl Bytes {
    /// The bytes, the oldest first.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.data[self.start..]
    }

    /// How many bytes there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.data.len() - self.start
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
    }

    /// Room for `length` bytes at the end, whose first `count` count once they are written: see
    /// [`Bytes::commit`]. Nothing else may be done to the queue meanwhile.
    pub fn reserve(&mut self, length: usize) -> *mut u8 {
        self.data.reserve(length);
        // SAFETY: the end of the vector's bytes is within its capacity.
        unsafe { self.data.as_mut_ptr().add(self.data.len()) }
    }

    /// Takes over `count` bytes that were written where [`Bytes::reserve`] said.
    ///
    /// # Safety
    /// That many were reserved and written.
    pub unsafe fn commit(&mut self, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.data.set_len(self.data.len() + count) };
    }

    /// Takes the oldest bytes away.
    ///
    /// # Panics
    /// If there are not as many.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "consumed more than there is");
        self.start += count;
        if self.start == self.data.len() {
            self.data.clear();
            self.start = 0;
            if self.data.capacity() > KEPT {
                self.data.shrink_to(KEPT);
            }
        } else if self.start > KEPT && self.start > self.data.len() / 2 {
            self.data.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Key;
    use proptest::prelude::*;

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
        let mut stream = Stream::new(Arrivals::bytes(100));
        stream.wait = Some(wait());
        assert_eq!(
            stream.arrive(completion(2), true, b"ab"),
            Effect::Wakes(wait())
        );
        assert_eq!(stream.arrive(completion(1), true, b"c"), Effect::None);
        let Arrivals::Bytes { bytes, chunks, .. } = &stream.arrivals else {
            unreachable!()
        };
        assert_eq!(bytes.as_slice(), b"abc");
        assert_eq!(chunks, &[2, 1]);
    }

    #[test]
    fn a_stream_that_floods_is_stopped_once_and_may_be_started_again() {
        let mut stream = Stream::new(Arrivals::bytes(3));
        assert_eq!(stream.arrive(completion(3), true, b"abc"), Effect::None);
        assert_eq!(
            stream.arrive(completion(1), true, b"d"),
            Effect::Floods(None)
        );
        assert_eq!(stream.arrive(completion(1), true, b"e"), Effect::None);
        assert!(!stream.is_resumable());
        stream.arrive(completion(-libc::ECANCELED), false, b"");
        assert!(stream.is_resumable());
    }

    #[test]
    fn the_end_of_the_file_and_an_error_are_final() {
        for result in [0, -libc::ECONNRESET, -libc::ECANCELED] {
            let mut stream = Stream::new(Arrivals::bytes(3));
            stream.arrive(completion(result), false, b"");
            assert_eq!(stream.ended, Some(result));
            assert!(!stream.is_resumable());
        }
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec((0usize..50_000, 0usize..50_000), 1..40)) {
            let mut bytes = Bytes::default();
            let (mut next_in, mut next_out) = (0u8, 0u8);
            for (push, consume) in steps {
                let new: Vec<u8> = (0..push).map(|_| { next_in = next_in.wrapping_add(1); next_in }).collect();
                bytes.push(&new);
                let consume = consume.min(bytes.len());
                for byte in &bytes.as_slice()[..consume] {
                    next_out = next_out.wrapping_add(1);
                    prop_assert_eq!(*byte, next_out);
                }
                bytes.consume(consume);
            }
            prop_assert_eq!(next_in.wrapping_sub(next_out), bytes.len() as u8);
        }
    }
}
