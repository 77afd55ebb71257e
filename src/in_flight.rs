//! What the kernel was asked for, until its final completion.
//!
//! A record is in flight from the moment its entry is in the submission queue, whatever
//! io_uring_enter answers later, and ends at the operation's own last completion only: the
//! completion of a cancel is not that one (io_uring_cancelation(7)), and neither is one that
//! says more will follow (IORING_CQE_F_MORE).

use std::os::fd::RawFd;

use io_uring::cqueue;

use crate::by_descriptor::ByDescriptor;
use crate::lines::Job;
use crate::multishot::{Arrivals, Multishot};
use crate::operation::{name_of, opens, Completion, Effect, OpKey, NO_DESCRIPTOR};
use crate::slab::Slab;
use crate::tasks::WaitId;

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
    Multishot(Box<Multishot>),
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
    /// What it is: the code of its entry.
    code: u8,
}

/// Who waits for an operation that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This wait ends with it.
    Wait(WaitId),
    /// It completes again and again, and this wait, if there is one, ends with the next time.
    Multishot(Option<WaitId>),
    /// Nobody waits for it.
    Nobody,
    /// Nobody does any more, and the kernel still has the memory of it.
    Lent,
}

/// What is known of an operation that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it is called.
    pub name: &'static str,
    /// Its descriptor, or a negative number.
    pub fd: RawFd,
    /// Who waits for it.
    pub whose: Whose,
}

/// The operations of one driver.
#[derive(Debug, Default)]
pub struct InFlight {
    slab: Slab<Record>,
    /// How many operations the kernel has on each descriptor.
    on: ByDescriptor<u32>,
    /// The results of operations that have completed but still have their memory (a zero-copy
    /// send).
    first: Vec<(OpKey, i32)>,
}

impl InFlight {
    fn open(&mut self, life: Lifecycle, fd: RawFd, code: u8) -> OpKey {
        if let Some(count) = self.on.of(fd) {
            *count += 1;
        }
        self.slab.insert(Record { life, fd, code })
    }

    /// The kernel has given an operation on this descriptor back.
    #[inline]
    fn gave_back(on: &mut ByDescriptor<u32>, fd: RawFd) {
        if let Some(count) = on.get_mut(fd) {
            *count = count.saturating_sub(1);
        }
    }

    /// Opens the record of an operation on `fd` whose completion ends `wait`, with the code of its entry.
    #[inline]
    pub fn start(&mut self, wait: WaitId, fd: RawFd, code: u8) -> OpKey {
        self.open(Lifecycle::InFlight(wait), fd, code)
    }

    /// Takes the descriptors that operations have opened and that nobody has been given.
    pub fn take_opened(&mut self) -> Vec<RawFd> {
        let mut opened = Vec::new();
        for record in self.slab.iter_mut() {
            if let Lifecycle::Done(completion) = &mut record.life {
                if opens(record.code) && completion.result >= 0 {
                    opened.push(completion.result);
                    completion.result = -libc::ECANCELED;
                }
            }
        }
        opened
    }

    /// Opens the record of an operation whose result nobody will want, with the memory it works
    /// on.
    pub fn start_orphan(&mut self, memory: Option<Box<[u8]>>, fd: RawFd, code: u8) -> OpKey {
        self.open(Lifecycle::Orphan(memory), fd, code)
    }

    /// Opens the record of an operation that completes again and again.
    pub fn start_multishot(&mut self, arrivals: Arrivals, fd: RawFd, code: u8) -> OpKey {
        let multishot = Multishot::new(arrivals);
        self.open(Lifecycle::Multishot(Box::new(multishot)), fd, code)
    }

    /// Opens the record of an operation of work that nobody waits for. The close of the descriptor does not
    /// end it.
    pub fn start_job(&mut self, job: Box<Job>, code: u8) -> OpKey {
        self.open(Lifecycle::Work(job), NO_DESCRIPTOR, code)
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

    /// Whether an operation is one on a descriptor.
    pub fn is_on(&self, op: OpKey, fd: RawFd) -> bool {
        self.slab.get(op).is_some_and(|record| record.fd == fd)
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
                        Lifecycle::Multishot(multishot) => multishot.ended.is_none(),
                        _ => false,
                    }
            })
            .map(|(op, _)| op)
            .collect()
    }

    /// A multishot, until it is removed.
    #[inline]
    pub fn multishot(&mut self, op: OpKey) -> Option<&mut Multishot> {
        match &mut self.slab.get_mut(op)?.life {
            Lifecycle::Multishot(multishot) => Some(multishot),
            _ => None,
        }
    }

    /// Gives a multishot up: what it still brings is thrown away, descriptors closed. Says whether
    /// the kernel still has it, so that it must be cancelled.
    pub fn discard_multishot(&mut self, op: OpKey) -> bool {
        let Some(multishot) = self.multishot(op) else {
            return false;
        };
        multishot.discard();
        let running = multishot.ended.is_none();
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
            Lifecycle::Multishot(multishot) => {
                let effect = multishot.arrive(completion, more, bytes);
                if multishot.is_discarded() && multishot.ended.is_some() {
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

    /// Takes the result of an operation whose memory the kernel still has: see [`InFlight::is_over`].
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
    pub fn count(&self) -> usize {
        self.slab
            .iter()
            .filter(|(_, record)| match &record.life {
                Lifecycle::Done(_) => false,
                Lifecycle::Multishot(multishot) => multishot.ended.is_none(),
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

    /// Whether the kernel has operations on memory that is not the driver's.
    pub fn any_on_others_memory(&self) -> bool {
        self.slab
            .iter()
            .any(|(_, record)| matches!(record.life, Lifecycle::InFlight(_) | Lifecycle::Lent))
    }

    /// What an operation is called, and its descriptor, or a negative number.
    pub fn named(&self, op: OpKey) -> Option<(&'static str, RawFd)> {
        let record = self.slab.get(op)?;
        Some((name_of(record.code), record.fd))
    }

    /// The result of an operation that is over, and stays to be taken.
    pub fn result(&self, op: OpKey) -> Option<i32> {
        match self.slab.get(op)?.life {
            Lifecycle::Done(completion) => Some(completion.result),
            _ => None,
        }
    }

    /// The operations that the kernel has.
    pub fn known(&self) -> impl Iterator<Item = Known> + '_ {
        self.slab.iter().filter_map(|(_, record)| {
            let mut fd = record.fd;
            let whose = match &record.life {
                Lifecycle::InFlight(wait) => Whose::Wait(*wait),
                Lifecycle::Multishot(multishot) if multishot.ended.is_none() => {
                    Whose::Multishot(multishot.wait)
                }
                Lifecycle::Orphan(_) => Whose::Nobody,
                Lifecycle::Work(job) => {
                    fd = job.fd;
                    Whose::Nobody
                }
                Lifecycle::Lent => Whose::Lent,
                Lifecycle::Done(_) | Lifecycle::Multishot(_) => return None,
            };
            let name = name_of(record.code);
            Some(Known { name, fd, whose })
        })
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
    use crate::slab::Key;

    const DONE: Completion = Completion {
        result: 5,
        flags: 0,
    };

    const RECV: u8 = io_uring::opcode::Recv::CODE;

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
        let mut in_flight = InFlight::default();
        let op = in_flight.start(wait(), 3, RECV);
        assert_eq!(in_flight.take(op), None);
        assert_eq!(in_flight.complete(op, DONE, &[]), Effect::Wakes(wait()));
        assert_eq!(in_flight.take(op), Some(DONE));
        assert_eq!(in_flight.take(op), None);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn an_orphan_ends_at_its_completion_and_wakes_nobody() {
        let mut in_flight = InFlight::default();
        let op = in_flight.start(wait(), 3, RECV);
        assert!(in_flight.orphan(op));
        assert_eq!(in_flight.len(), 1);
        assert_eq!(in_flight.complete(op, DONE, &[]), Effect::None);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn giving_up_a_result_that_is_there_closes_the_record() {
        let mut in_flight = InFlight::default();
        let op = in_flight.start(wait(), 3, RECV);
        in_flight.complete(op, DONE, &[]);
        assert!(!in_flight.orphan(op));
        assert!(in_flight.is_empty());
    }

    #[test]
    fn a_late_completion_of_a_reused_place_is_nobodys() {
        let mut in_flight = InFlight::default();
        let old = in_flight.start(wait(), 3, RECV);
        in_flight.complete(old, DONE, &[]);
        in_flight.take(old);
        let new = in_flight.start(wait(), 3, RECV);
        assert_eq!(new.index, old.index);
        assert_eq!(in_flight.complete(old, DONE, &[]), Effect::None);
        assert_eq!(in_flight.take(new), None);
    }

    const MORE: u32 = 1 << 1;

    #[test]
    fn the_memory_of_a_zero_copy_send_is_busy_until_its_second_completion() {
        let mut in_flight = InFlight::default();
        let op = in_flight.start(wait(), 3, RECV);
        let sent = Completion {
            result: 42,
            flags: MORE,
        };
        assert_eq!(in_flight.complete(op, sent, &[]), Effect::None);
        assert!(!in_flight.is_over(op));
        let notified = Completion {
            result: 0,
            flags: 0,
        };
        assert_eq!(in_flight.complete(op, notified, &[]), Effect::Wakes(wait()));
        assert_eq!(in_flight.take(op).map(|done| done.result), Some(42));
        assert!(in_flight.first.is_empty());
    }

    #[test]
    fn a_result_that_is_taken_early_leaves_the_memory_with_the_kernel() {
        let mut in_flight = InFlight::default();
        let op = in_flight.start(wait(), 3, RECV);
        assert_eq!(in_flight.take_early(op), None);
        let sent = Completion {
            result: 42,
            flags: MORE,
        };
        in_flight.complete(op, sent, &[]);
        assert_eq!(in_flight.take_early(op).map(|done| done.result), Some(42));
        assert_eq!(in_flight.take_early(op), None);
        assert!(!in_flight.is_over(op) && in_flight.any_on_others_memory());
        assert_eq!(in_flight.complete(op, DONE, &[]), Effect::None);
        assert!(in_flight.is_over(op) && in_flight.is_empty() && in_flight.first.is_empty());
    }

    #[test]
    fn the_operations_on_a_descriptor_are_those_that_the_kernel_has() {
        let mut in_flight = InFlight::default();
        let (one, two) = (
            in_flight.start(wait(), 3, RECV),
            in_flight.start(wait(), 3, RECV),
        );
        let multishot = in_flight.start_multishot(Arrivals::bytes(1 << 20), 3, RECV);
        in_flight.start(wait(), 4, RECV);
        assert_eq!(in_flight.on(3), [one, two, multishot]);
        in_flight.complete(one, DONE, &[]);
        in_flight.complete(multishot, DONE, b"abcde");
        assert_eq!(in_flight.on(3), [two]);
        in_flight.forget(two);
        assert_eq!(in_flight.on.get(3), Some(&0));
        assert!(
            in_flight.on(3).is_empty() && in_flight.on(-1).is_empty() && in_flight.on(9).is_empty()
        );
    }

    #[test]
    fn what_was_opened_and_not_taken_is_handed_out_once() {
        let mut in_flight = InFlight::default();
        let accept = io_uring::opcode::Accept::CODE;
        let [given, left, plain, failed] =
            [accept, accept, RECV, accept].map(|code| in_flight.start(wait(), 3, code));
        for op in [given, left, plain] {
            in_flight.complete(op, DONE, &[]);
        }
        let refused = Completion {
            result: -libc::EMFILE,
            flags: 0,
        };
        in_flight.complete(failed, refused, &[]);
        assert_eq!(in_flight.take(given), Some(DONE));
        assert_eq!(in_flight.take_opened(), [DONE.result]);
        assert!(in_flight.take_opened().is_empty());
        assert_eq!(in_flight.take(plain), Some(DONE));
    }

    #[test]
    fn what_the_kernel_has_is_known_by_name() {
        let mut in_flight = InFlight::default();
        let op = in_flight.start(wait(), 3, RECV);
        in_flight.start_multishot(Arrivals::descriptors(), 4, RECV);
        in_flight.start_orphan(None, 5, RECV);
        let (name, whose) = (
            "recv",
            [Whose::Wait(wait()), Whose::Multishot(None), Whose::Nobody],
        );
        let expected = [3, 4, 5].iter().zip(whose);
        let expected: Vec<Known> = expected
            .map(|(&fd, whose)| Known { name, fd, whose })
            .collect();
        assert_eq!(in_flight.known().collect::<Vec<_>>(), expected);
        in_flight.complete(op, DONE, &[]);
        assert_eq!(in_flight.known().collect::<Vec<_>>(), expected[1..]);
    }

    #[test]
    fn a_discarded_multishot_ends_at_its_final_completion() {
        let mut in_flight = InFlight::default();
        let op = in_flight.start_multishot(Arrivals::bytes(1 << 20), 3, RECV);
        assert!(in_flight.discard_multishot(op));
        let some = Completion {
            result: 3,
            flags: MORE,
        };
        assert_eq!(in_flight.complete(op, some, b"abc"), Effect::None);
        assert_eq!(in_flight.len(), 1);
        assert_eq!(in_flight.complete(op, DONE, b"defgh"), Effect::None);
        assert!(in_flight.is_empty());
    }
}
