//! Deadlines in user space.
//!
//! A four-ary heap ordered by deadline, then by age, beside a slab of what is to happen. Cancelling
//! takes the slab's entry away in O(1) and leaves the heap's node to be dropped when it surfaces;
//! when more than half of the nodes are such remains the heap is rebuilt without them.

use crate::slab::{Key, Slab};

/// Names one armed timer.
pub type TimerKey = Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    deadline: u64,
    age: u64,
    index: u32,
    generation: u32,
}

impl Node {
    fn key(self) -> TimerKey {
        Key {
            index: self.index,
            generation: self.generation,
        }
    }
}

/// Timers that carry a `T` each.
#[derive(Debug)]
pub struct Timers<T> {
    heap: Vec<Node>,
    armed: Slab<T>,
    age: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            heap: Vec::new(),
            armed: Slab::default(),
            age: 0,
        }
    }
}

const ARITY: usize = 4;

impl<T> Timers<T> {
    /// How many timers are armed.
    #[inline]
    pub fn len(&self) -> usize {
        self.armed.len()
    }

    /// Whether no timer is armed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.armed.is_empty()
    }

    /// What the armed timers carry.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.armed.iter().map(|(_, target)| target)
    }

    /// The armed timers: their deadlines, and what they carry.
    pub fn deadlines(&self) -> impl Iterator<Item = (u64, &T)> {
        let nodes = self.heap.iter();
        nodes.filter_map(|node| Some((node.deadline, self.armed.get(node.key())?)))
    }

    /// Arms a timer for `deadline`, in nanoseconds of [`crate::clock::now`].
    pub fn arm(&mut self, deadline: u64, target: T) -> TimerKey {
        let key = self.armed.insert(target);
        let node = Node {
            deadline,
            age: self.age,
            index: key.index,
            generation: key.generation,
        };
        self.age += 1;
        self.heap.push(node);
        self.rise(self.heap.len() - 1);
        key
    }

    /// Disarms a timer and returns what it carried; `None` if it has fired or was cancelled.
    #[inline]
    pub fn cancel(&mut self, key: TimerKey) -> Option<T> {
        let target = self.armed.remove(key)?;
        if self.heap.len() > 64 && self.heap.len() > 2 * self.armed.len() {
            self.compact();
        }
        Some(target)
    }

    /// The earliest deadline, if any timer is armed.
    pub fn next_deadline(&mut self) -> Option<u64> {
        self.drop_remains();
        self.heap.first().map(|node| node.deadline)
    }

    /// Takes out one timer whose deadline is not after `now`, the earliest first.
    pub fn expire(&mut self, now: u64) -> Option<T> {
        self.drop_remains();
        let node = *self.heap.first()?;
        if node.deadline > now {
            return None;
        }
        self.pop();
        self.armed.remove(node.key())
    }

    fn drop_remains(&mut self) {
        while let Some(node) = self.heap.first() {
            if self.armed.get(node.key()).is_some() {
                break;
            }
            self.pop();
        }
    }

    fn compact(&mut self) {
        let armed = &self.armed;
        self.heap.retain(|node| armed.get(node.key()).is_some());
        // A sorted vector is a heap.
        self.heap.sort_unstable();
    }

    fn pop(&mut self) {
        let last = self.heap.len() - 1;
        self.heap.swap(0, last);
        self.heap.truncate(last);
        self.sink();
    }

    fn rise(&mut self, mut place: usize) {
        let node = self.heap[place];
        while place > 0 {
            let parent = (place - 1) / ARITY;
            if self.heap[parent] <= node {
                break;
            }
            self.heap[place] = self.heap[parent];
            place = parent;
        }
        self.heap[place] = node;
    }

    fn sink(&mut self) {
        let length = self.heap.len();
        if length < 2 {
            return;
        }
        let node = self.heap[0];
        let mut place = 0;
        loop {
            let first = place * ARITY + 1;
            if first >= length {
                break;
            }
            let mut least = first;
            for child in first + 1..(first + ARITY).min(length) {
                if self.heap[child] < self.heap[least] {
                    least = child;
                }
            }
            if node <= self.heap[least] {
                break;
            }
            self.heap[place] = self.heap[least];
            place = least;
        }
        self.heap[place] = node;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_deadlines_fire_in_the_order_they_were_armed() {
        let mut timers = Timers::default();
        for name in ["a", "b", "c"] {
            timers.arm(5, name);
        }
        let fired: Vec<_> = std::iter::from_fn(|| timers.expire(5)).collect();
        assert_eq!(fired, ["a", "b", "c"]);
    }

    #[test]
    fn a_cancelled_timer_does_not_fire_and_does_not_hold_the_deadline() {
        let mut timers = Timers::default();
        let early = timers.arm(1, "early");
        timers.arm(9, "late");
        assert_eq!(timers.cancel(early), Some("early"));
        assert_eq!(timers.cancel(early), None);
        assert_eq!(timers.next_deadline(), Some(9));
        assert_eq!(timers.expire(8), None);
    }

    #[test]
    fn the_deadlines_are_those_of_armed_timers() {
        let mut timers = Timers::default();
        let early = timers.arm(1, "early");
        timers.arm(9, "late");
        timers.cancel(early);
        assert_eq!(timers.deadlines().collect::<Vec<_>>(), [(9, &"late")]);
    }

    #[test]
    fn cancelled_timers_do_not_pile_up() {
        let mut timers = Timers::default();
        for _ in 0..100_000 {
            let key = timers.arm(u64::MAX, ());
            timers.cancel(key);
        }
        assert!(timers.heap.len() <= 65, "{} nodes", timers.heap.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u64),
        Cancel(prop::sample::Index),
        Expire(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..50).prop_map(Step::Arm),
            2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            2 => (0u64..50).prop_map(Step::Expire),
        ]
    }

    proptest! {
        #[test]
        fn fires_what_a_sorted_list_would(steps in prop::collection::vec(step(), 1..300)) {
            let mut timers = Timers::default();
            let mut model: Vec<(u64, usize, TimerKey)> = Vec::new();
            for (age, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Arm(deadline) => {
                        let key = timers.arm(deadline, age);
                        model.push((deadline, age, key));
                    }
                    Step::Cancel(choice) if !model.is_empty() => {
                        let (_, age, key) = model.remove(choice.index(model.len()));
                        prop_assert_eq!(timers.cancel(key), Some(age));
                    }
                    Step::Cancel(_) => {}
                    Step::Expire(now) => {
                        model.sort_unstable_by_key(|(deadline, age, _)| (*deadline, *age));
                        let due = model.partition_point(|(deadline, ..)| *deadline <= now);
                        for (_, age, _) in model.drain(..due) {
                            prop_assert_eq!(timers.expire(now), Some(age));
                        }
                        prop_assert_eq!(timers.expire(now), None);
                    }
                }
                prop_assert_eq!(timers.next_deadline(), model.iter().map(|(deadline, ..)| *deadline).min());
                prop_assert_eq!(timers.len(), model.len());
            }
        }
    }
}
