//! What the kernel was asked for, until its final completion.
//!
//! A record is in flight from the moment its entry is in the submission queue, whatever
//! io_uring_enter answers later, and ends at the operation's own last completion only: the
//! completion of a cancel is not that one (io_uring_cancelation(7)), and neither is one that
//! says more will follow (IORING_CQE_F_MORE).

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode};

use crate::by_descriptor::ByDescriptor;
use crate::lines::Job;
use crate::slab::{Key, Slab};
use crate::stream::{Arrivals, Stream};
use crate::tasks::WaitId;

/// Names one operation; its bits are the `user_data` of its entry.
pub type OpKey = Key;

/// The result of an operation: what its completion carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The count or descriptor, or -errno.
    pub result: i32,
    /// The completion's IORING_CQE_F_* flags.
    pub flags: u32,
}

#[derive(Debug)]
enum Lifecycle {
    /// The kernel has it, and somebody waits for it.
    InFlight(WaitId),
    /// It is over; its result waits to be taken.
    Done(Completion),
    /// The kernel has it, and nobody wants the result. The memory it works on, if any, is kept
    /// here until the kernel is done with it.
    Orphan(#[allow(dead_code)] Option<Box<[u8]>>),
    /// It completes again and again.
    Stream(Box<Stream>),
    /// It is a part of work that nobody waits for.
    Work(Box<Job>),
    /// Its result was taken, and the kernel still has its memory (a zero-copy send).
    Lent,
}

#[derive(Debug)]
struct Record {
    life: Lifecycle,
    /// The descriptor that the kernel uses for it, or a negative number.
    fd: RawFd,
    /// Its result is a new descriptor.
    opens: bool,
}

/// No descriptor.
const NONE: RawFd = -1;

/// What a completion led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nobody waits for it.
    None,
    /// It ends this wait.
    Wakes(WaitId),
    /// It ends an operation of work that nobody waits for: see [`Ops::take_job`].
    Works,
    /// It ends this wait, if there is one, and the stream has more than it wants: it is to be
    /// cancelled.
    Floods(Option<WaitId>),
}

/// The descriptor that an operation reads, writes, polls or changes the file of, so that the close of the one ends the
/// other; a negative number if there is none. (Others have a directory there, or nothing, or are about the descriptor
/// itself.)
#[inline]
pub fn descriptor_of(entry: &Entry) -> RawFd {
    const DESCRIPTOR: usize = 4;
    if ON_A_FILE >> code_of(entry) & 1 == 0 {
        return NONE;
    }
    // SAFETY: an Entry is a struct io_uring_sqe, with the 32-bit `fd` at byte 4 (linux/io_uring.h).
    unsafe {
        let bytes = std::ptr::from_ref(entry).cast::<u8>();
        bytes.add(DESCRIPTOR).cast::<RawFd>().read()
    }
}

/// Whether the result of an operation is a new descriptor.
#[inline]
pub fn opens(entry: &Entry) -> bool {
    const OPENERS: u128 = 1 << opcode::Accept::CODE
        | 1 << opcode::OpenAt::CODE
        | 1 << opcode::OpenAt2::CODE
        | 1 << opcode::Socket::CODE;
    OPENERS >> code_of(entry) & 1 == 1
}

#[inline]
fn code_of(entry: &Entry) -> u8 {
    // SAFETY: a struct io_uring_sqe begins with the 8-bit `opcode`.
    unsafe { *std::ptr::from_ref(entry).cast::<u8>() }
}

/// The operations of [`descriptor_of`], a bit each.
const ON_A_FILE: u128 = {
    let codes = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::ReadMulti::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendZc::CODE,
        opcode::RecvMsg::CODE,
        opcode::SendMsg::CODE,
        opcode::Accept::CODE,
        opcode::Connect::CODE,
        opcode::PollAdd::CODE,
        opcode::Fsync::CODE,
        opcode::Splice::CODE,
        opcode::Tee::CODE,
        opcode::Shutdown::CODE,
        opcode::Fallocate::CODE,
        opcode::Fadvise::CODE,
        opcode::Ftruncate::CODE,
    ];
    let mut bits = 0;
    let mut place = 0;
    while place < codes.len() {
        bits |= 1 << codes[place];
        place += 1;
    }
    bits
};

/// The operations of one machine.
#[derive(Debug, Default)]
pub struct Ops {
    slab: Slab<Record>,
    /// How many operations the kernel has on each descriptor.
    on: ByDescriptor<u32>,
    /// The results of operations that have completed but still have their memory (a zero-copy
    /// send).
    first: Vec<(OpKey, i32)>,
}

impl Ops {
    fn open(&mut self, life: Lifecycle, fd: RawFd) -> OpKey {
        if let Some(count) = self.on.of(fd) {
            *count += 1;
        }
        self.slab.insert(Record {
            life,
            fd,
            opens: false,
        })
    }

    /// The kernel has given an operation on this descriptor back.
    #[inline]
    fn gave_back(on: &mut ByDescriptor<u32>, fd: RawFd) {
        if let Some(count) = on.get_mut(fd) {
            *count = count.saturating_sub(1);
        }
    }

    /// Opens the record of an operation on `fd` whose completion ends `wait`.
    #[inline]
    pub fn start(&mut self, wait: WaitId, fd: RawFd) -> OpKey {
        self.open(Lifecycle::InFlight(wait), fd)
    }

    /// Notes that the result of an operation is a new descriptor.
    pub fn note_opening(&mut self, op: OpKey) {
        if let Some(record) = self.slab.get_mut(op) {
            record.opens = true;
        }
    }

    /// Takes the descriptors that operations have opened and that nobody has been given.
    pub fn take_opened(&mut self) -> Vec<RawFd> {
        let mut opened = Vec::new();
        for record in self.slab.iter_mut() {
            if let Lifecycle::Done(completion) = &mut record.life {
                if std::mem::take(&mut record.opens) && completion.result >= 0 {
                    opened.push(completion.result);
                    completion.result = -libc::ECANCELED;
                }
            }
        }
        opened
    }

    /// Opens the record of an operation whose result nobody will want, with the memory it works
    /// on.
    pub fn start_orphan(&mut self, memory: Option<Box<[u8]>>, fd: RawFd) -> OpKey {
        self.open(Lifecycle::Orphan(memory), fd)
    }

    /// Opens the record of an operation that completes again and again.
    pub fn start_stream(&mut self, arrivals: Arrivals, fd: RawFd) -> OpKey {
        self.open(Lifecycle::Stream(Box::new(Stream::new(arrivals))), fd)
    }

    /// Opens the record of an operation of work that nobody waits for. The close of the descriptor does not
    /// end it.
    pub fn start_job(&mut self, job: Box<Job>) -> OpKey {
        self.open(Lifecycle::Work(job), NONE)
    }

    /// The work that is under way.
    pub fn jobs_mut(&mut self) -> impl Iterator<Item = &mut Job> {
        (self.slab.iter_mut()).filter_map(|record| match &mut record.life {
            Lifecycle::Work(job) => Some(&mut **job),
            _ => None,
        })
    }

    /// Closes the record of an operation of work, and returns the work.
    pub fn take_job(&mut self, op: OpKey) -> Option<Box<Job>> {
        if !matches!(self.slab.get(op)?.life, Lifecycle::Work(_)) {
            return None;
        }
        match self.slab.remove(op)?.life {
            Lifecycle::Work(job) => Some(job),
            _ => None,
        }
    }

    /// Whether the kernel has operations on a descriptor.
    pub fn any_on(&self, fd: RawFd) -> bool {
        self.on.get(fd).is_some_and(|count| *count > 0)
    }

    /// The operations on a descriptor that the kernel has, those that nobody can be told of aside.
    pub fn on(&self, fd: RawFd) -> Vec<OpKey> {
        if !self.any_on(fd) {
            return Vec::new();
        }
        (self.slab.iter())
            .filter(|(_, record)| {
                record.fd == fd
                    && match &record.life {
                        Lifecycle::InFlight(_) => true,
                        Lifecycle::Stream(stream) => stream.ended.is_none(),
                        _ => false,
                    }
            })
            .map(|(op, _)| op)
            .collect()
    }

    /// A stream, until it is removed.
    #[inline]
    pub fn stream(&mut self, op: OpKey) -> Option<&mut Stream> {
        match &mut self.slab.get_mut(op)?.life {
            Lifecycle::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    /// Gives a stream up: what it still brings is thrown away, descriptors closed. Says whether
    /// the kernel still has it, so that it must be cancelled.
    pub fn discard_stream(&mut self, op: OpKey) -> bool {
        let Some(stream) = self.stream(op) else {
            return false;
        };
        stream.discard();
        let running = stream.ended.is_none();
        if !running {
            self.slab.remove(op);
        }
        running
    }

    /// How many records there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether the kernel owes nothing and nobody owes a look.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Lets the completion end another wait: a drain waits anew for the same operation.
    pub fn retarget(&mut self, op: OpKey, wait: WaitId) {
        if let Some(Record {
            life: Lifecycle::InFlight(waiting),
            ..
        }) = self.slab.get_mut(op)
        {
            *waiting = wait;
        }
    }

    /// Enters a completion, with the bytes it brought in a provided buffer. Completions of unknown
    /// keys (a cancel, say) are nobody's.
    #[inline]
    pub fn complete(&mut self, op: OpKey, completion: Completion, bytes: &[u8]) -> Effect {
        let Some(record) = self.slab.get_mut(op) else {
            return Effect::None;
        };
        let more = cqueue::more(completion.flags);
        if !more {
            Self::gave_back(&mut self.on, record.fd);
        }
        match &mut record.life {
            // The first completion of a zero-copy send: its memory is busy until the second.
            Lifecycle::InFlight(_) | Lifecycle::Orphan(_) if more => {
                self.first.push((op, completion.result));
                Effect::None
            }
            Lifecycle::InFlight(wait) => {
                let wait = *wait;
                let completion = match self.first.iter().position(|(first, _)| *first == op) {
                    None => completion,
                    Some(place) => Completion {
                        result: self.first.swap_remove(place).1,
                        flags: completion.flags,
                    },
                };
                record.life = Lifecycle::Done(completion);
                Effect::Wakes(wait)
            }
            Lifecycle::Orphan(_) | Lifecycle::Lent => {
                self.first.retain(|(first, _)| *first != op);
                self.slab.remove(op);
                Effect::None
            }
            Lifecycle::Stream(stream) => {
                let effect = stream.arrive(completion, more, bytes);
                if stream.is_discarded() && stream.ended.is_some() {
                    self.slab.remove(op);
                }
                effect
            }
            Lifecycle::Work(_) => Effect::Works,
            Lifecycle::Done(_) => Effect::None,
        }
    }

    /// Takes the result, which closes the record; `None` while the kernel has the operation.
    #[inline]
    pub fn take(&mut self, op: OpKey) -> Option<Completion> {
        match self.slab.get(op)?.life {
            Lifecycle::Done(completion) => {
                self.slab.remove(op);
                Some(completion)
            }
            _ => None,
        }
    }

    /// Takes the result of an operation whose memory the kernel still has: see [`Ops::is_over`].
    pub fn take_early(&mut self, op: OpKey) -> Option<Completion> {
        let place = self.first.iter().position(|(first, _)| *first == op)?;
        let record = self.slab.get_mut(op)?;
        if !matches!(record.life, Lifecycle::InFlight(_)) {
            return None;
        }
        record.life = Lifecycle::Lent;
        let (_, result) = self.first.swap_remove(place);
        Some(Completion { result, flags: 0 })
    }

    /// Whether the kernel has given the operation back.
    pub fn is_over(&self, op: OpKey) -> bool {
        match self.slab.get(op) {
            Some(record) => matches!(record.life, Lifecycle::Done(_)),
            None => true,
        }
    }

    /// How many operations the kernel has.
    pub fn in_flight(&self) -> usize {
        self.slab
            .iter()
            .filter(|(_, record)| match &record.life {
                Lifecycle::Done(_) => false,
                Lifecycle::Stream(stream) => stream.ended.is_none(),
                _ => true,
            })
            .count()
    }

    /// How many operations have ended but for their memory, which the kernel still has.
    pub fn lent(&self) -> usize {
        self.slab
            .iter()
            .filter(|(_, record)| matches!(record.life, Lifecycle::Lent))
            .count()
    }

    /// Whether the kernel has operations on memory that is not the machine's.
    pub fn any_on_others_memory(&self) -> bool {
        self.slab
            .iter()
            .any(|(_, record)| matches!(record.life, Lifecycle::InFlight(_) | Lifecycle::Lent))
    }

    /// How many operations the kernel has that nobody waits for.
    pub fn orphans(&self) -> usize {
        self.slab
            .iter()
            .filter(|(_, record)| matches!(record.life, Lifecycle::Orphan(_) | Lifecycle::Work(_)))
            .count()
    }

    /// How many records can be opened without more memory.
    pub fn free(&self) -> usize {
        self.slab.free()
    }

    /// Closes the record of an operation that the kernel was never given.
    pub(crate) fn forget(&mut self, op: OpKey) -> Option<Box<Job>> {
        let record = self.slab.remove(op)?;
        Self::gave_back(&mut self.on, record.fd);
        match record.life {
            Lifecycle::Work(job) => Some(job),
            _ => None,
        }
    }

    /// Gives up the result of an operation on no memory. Says whether the kernel still has it.
    pub fn orphan(&mut self, op: OpKey) -> bool {
        match self.slab.get_mut(op) {
            Some(Record {
                life: life @ Lifecycle::InFlight(_),
                ..
            }) => {
                *life = Lifecycle::Orphan(None);
                true
            }
            Some(_) => {
                self.slab.remove(op);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Completion = Completion {
        result: 5,
        flags: 0,
    };

    fn wait() -> WaitId {
        WaitId {
            task: Key {
                index: 1,
                generation: 0,
            },
            serial: 9,
        }
    }

    #[test]
    fn a_result_waits_until_it_is_taken() {
        let mut ops = Ops::default();
        let op = ops.start(wait(), 3);
        assert_eq!(ops.take(op), None);
        assert_eq!(ops.complete(op, DONE, &[]), Effect::Wakes(wait()));
        assert_eq!(ops.take(op), Some(DONE));
        assert_eq!(ops.take(op), None);
        assert!(ops.is_empty());
    }

    #[test]
    fn an_orphan_ends_at_its_completion_and_wakes_nobody() {
        let mut ops = Ops::default();
        let op = ops.start(wait(), 3);
        assert!(ops.orphan(op));
        assert_eq!(ops.len(), 1);
        assert_eq!(ops.complete(op, DONE, &[]), Effect::None);
        assert!(ops.is_empty());
    }

    #[test]
    fn giving_up_a_result_that_is_there_closes_the_record() {
        let mut ops = Ops::default();
        let op = ops.start(wait(), 3);
        ops.complete(op, DONE, &[]);
        assert!(!ops.orphan(op));
        assert!(ops.is_empty());
    }

    #[test]
    fn a_late_completion_of_a_reused_place_is_nobodys() {
        let mut ops = Ops::default();
        let old = ops.start(wait(), 3);
        ops.complete(old, DONE, &[]);
        ops.take(old);
        let new = ops.start(wait(), 3);
        assert_eq!(new.index, old.index);
        assert_eq!(ops.complete(old, DONE, &[]), Effect::None);
        assert_eq!(ops.take(new), None);
    }

    const MORE: u32 = 1 << 1;

    #[test]
    fn the_memory_of_a_zero_copy_send_is_busy_until_its_second_completion() {
        let mut ops = Ops::default();
        let op = ops.start(wait(), 3);
        let sent = Completion {
            result: 42,
            flags: MORE,
        };
        assert_eq!(ops.complete(op, sent, &[]), Effect::None);
        assert!(!ops.is_over(op));
        let notified = Completion {
            result: 0,
            flags: 0,
        };
        assert_eq!(ops.complete(op, notified, &[]), Effect::Wakes(wait()));
        assert_eq!(ops.take(op).map(|done| done.result), Some(42));
        assert!(ops.first.is_empty());
    }

    #[test]
    fn a_result_that_is_taken_early_leaves_the_memory_with_the_kernel() {
        let mut ops = Ops::default();
        let op = ops.start(wait(), 3);
        assert_eq!(ops.take_early(op), None);
        let sent = Completion {
            result: 42,
            flags: MORE,
        };
        ops.complete(op, sent, &[]);
        assert_eq!(ops.take_early(op).map(|done| done.result), Some(42));
        assert_eq!(ops.take_early(op), None);
        assert!(!ops.is_over(op) && ops.any_on_others_memory());
        assert_eq!(ops.complete(op, DONE, &[]), Effect::None);
        assert!(ops.is_over(op) && ops.is_empty() && ops.first.is_empty());
    }

    #[test]
    fn the_operations_on_a_descriptor_are_those_that_the_kernel_has() {
        let mut ops = Ops::default();
        let (one, two) = (ops.start(wait(), 3), ops.start(wait(), 3));
        let stream = ops.start_stream(Arrivals::bytes(1 << 20), 3);
        ops.start(wait(), 4);
        assert_eq!(ops.on(3), [one, two, stream]);
        ops.complete(one, DONE, &[]);
        ops.complete(stream, DONE, b"abcde");
        assert_eq!(ops.on(3), [two]);
        ops.forget(two);
        assert_eq!(ops.on.get(3), Some(&0));
        assert!(ops.on(3).is_empty() && ops.on(-1).is_empty() && ops.on(9).is_empty());
    }

    #[test]
    fn what_was_opened_and_not_taken_is_handed_out_once() {
        let mut ops = Ops::default();
        let [given, left, plain, failed] = [3, 3, 3, 3].map(|fd| ops.start(wait(), fd));
        for op in [given, left, failed] {
            ops.note_opening(op);
        }
        for op in [given, left, plain] {
            ops.complete(op, DONE, &[]);
        }
        let refused = Completion {
            result: -libc::EMFILE,
            flags: 0,
        };
        ops.complete(failed, refused, &[]);
        assert_eq!(ops.take(given), Some(DONE));
        assert_eq!(ops.take_opened(), [DONE.result]);
        assert!(ops.take_opened().is_empty());
        assert_eq!(ops.take(plain), Some(DONE));
    }

    #[test]
    fn a_discarded_stream_ends_at_its_final_completion() {
        let mut ops = Ops::default();
        let op = ops.start_stream(Arrivals::bytes(1 << 20), 3);
        assert!(ops.discard_stream(op));
        let some = Completion {
            result: 3,
            flags: MORE,
        };
        assert_eq!(ops.complete(op, some, b"abc"), Effect::None);
        assert_eq!(ops.len(), 1);
        assert_eq!(ops.complete(op, DONE, b"defgh"), Effect::None);
        assert!(ops.is_empty());
    }
}
