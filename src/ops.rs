//! What the kernel was asked for, until its final completion.
//!
//! A record is in flight from the moment its entry is in the submission queue, whatever
//! io_uring_enter answers later, and ends at the operation's own last completion only: the
//! completion of a cancel is not that one (io_uring_cancelation(7)).

use crate::slab::{Key, Slab};
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
    /// The kernel has it, and nobody wants the result: only for operations on no memory.
    Orphan,
}

/// The operations of one machine.
#[derive(Debug, Default)]
pub struct Ops {
    slab: Slab<Lifecycle>,
}

impl Ops {
    /// Opens the record of an operation whose completion ends `wait`.
    #[inline]
    pub fn start(&mut self, wait: WaitId) -> OpKey {
        self.slab.insert(Lifecycle::InFlight(wait))
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
        if let Some(record @ Lifecycle::InFlight(_)) = self.slab.get_mut(op) {
            *record = Lifecycle::InFlight(wait);
        }
    }

    /// Enters a final completion; returns the wait it ends. Completions of unknown keys (a cancel,
    /// say) are nobody's.
    #[inline]
    pub fn complete(&mut self, op: OpKey, completion: Completion) -> Option<WaitId> {
        let record = self.slab.get_mut(op)?;
        match *record {
            Lifecycle::InFlight(wait) => {
                *record = Lifecycle::Done(completion);
                Some(wait)
            }
            Lifecycle::Orphan => {
                self.slab.remove(op);
                None
            }
            Lifecycle::Done(_) => None,
        }
    }

    /// Takes the result, which closes the record; `None` while the kernel has the operation.
    #[inline]
    pub fn take(&mut self, op: OpKey) -> Option<Completion> {
        match self.slab.get(op)? {
            Lifecycle::Done(completion) => {
                let completion = *completion;
                self.slab.remove(op);
                Some(completion)
            }
            _ => None,
        }
    }

    /// Whether the kernel has given the operation back.
    pub fn is_over(&self, op: OpKey) -> bool {
        !matches!(
            self.slab.get(op),
            Some(Lifecycle::InFlight(_) | Lifecycle::Orphan)
        )
    }

    /// How many operations the kernel has.
    pub fn in_flight(&self) -> usize {
        self.slab
            .iter()
            .filter(|(_, record)| !matches!(record, Lifecycle::Done(_)))
            .count()
    }

    /// Gives up the result of an operation on no memory. Says whether the kernel still has it.
    pub fn orphan(&mut self, op: OpKey) -> bool {
        match self.slab.get_mut(op) {
            Some(record @ Lifecycle::InFlight(_)) => {
                *record = Lifecycle::Orphan;
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
        let op = ops.start(wait());
        assert_eq!(ops.take(op), None);
        assert_eq!(ops.complete(op, DONE), Some(wait()));
        assert_eq!(ops.take(op), Some(DONE));
        assert_eq!(ops.take(op), None);
        assert!(ops.is_empty());
    }

    #[test]
    fn an_orphan_ends_at_its_completion_and_wakes_nobody() {
        let mut ops = Ops::default();
        let op = ops.start(wait());
        assert!(ops.orphan(op));
        assert_eq!(ops.len(), 1);
        assert_eq!(ops.complete(op, DONE), None);
        assert!(ops.is_empty());
    }

    #[test]
    fn giving_up_a_result_that_is_there_closes_the_record() {
        let mut ops = Ops::default();
        let op = ops.start(wait());
        ops.complete(op, DONE);
        assert!(!ops.orphan(op));
        assert!(ops.is_empty());
    }

    #[test]
    fn a_late_completion_of_a_reused_place_is_nobodys() {
        let mut ops = Ops::default();
        let old = ops.start(wait());
        ops.complete(old, DONE);
        ops.take(old);
        let new = ops.start(wait());
        assert_eq!(new.index, old.index);
        assert_eq!(ops.complete(old, DONE), None);
        assert_eq!(ops.take(new), None);
    }
}
