//! How long waits have lasted, at the least. Nobody looks at the clock when a wait begins: waits are numbered, and whoever
//! looks at the machine notes the number of the last one, and when that was.

use uringmachine_runtime::clock;

/// The number of the wait that had begun last, at some times.
#[derive(Default)]
pub struct Ages(Vec<(u64, u64)>);

/// With more notes than this every other one goes: the older they are the fewer there are.
const MOST: usize = 256;

impl Ages {
    /// Notes that this wait is the last one that has begun.
    pub fn note(&mut self, serial: u64) {
        self.note_at(serial, clock::now());
    }

    /// How many nanoseconds ago a wait had begun already, if that is known.
    pub fn at_least(&self, serial: u64) -> Option<u64> {
        self.since(serial)
            .map(|time| clock::now().saturating_sub(time))
    }

    fn note_at(&mut self, serial: u64, now: u64) {
        if self.0.last().is_some_and(|(last, _)| *last == serial) {
            return;
        }
        if self.0.len() == MOST {
            let mut place = 0;
            self.0.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
        self.0.push((serial, now));
    }

    /// The first time that it is known to have begun by.
    fn since(&self, serial: u64) -> Option<u64> {
        let place = self.0.partition_point(|(noted, _)| *noted < serial);
        self.0.get(place).map(|(_, time)| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_had_begun_when_its_number_was_noted() {
        let mut ages = Ages::default();
        assert_eq!(ages.since(1), None);
        ages.note_at(3, 10);
        ages.note_at(3, 20);
        ages.note_at(5, 30);
        let since: Vec<_> = (2..=6).map(|serial| ages.since(serial)).collect();
        assert_eq!(since, [Some(10), Some(10), Some(30), Some(30), None]);
    }

    #[test]
    fn notes_do_not_pile_up_and_the_first_is_kept() {
        let mut ages = Ages::default();
        for number in 0..10_000 {
            ages.note_at(number, number);
        }
        assert!(ages.0.len() <= MOST);
        assert_eq!(ages.since(0), Some(0));
        assert_eq!(ages.since(9_999), Some(9_999));
    }
}
