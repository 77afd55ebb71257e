//! Whether something is brief enough to be done at once, learned from how long it took before.

/// What takes longer than this, in nanoseconds, is not brief: others would have waited for it.
const LONG: u64 = 250_000;
/// How often what was long once is not done at once, before it is tried again; twice as often if it is long again.
const LEAST: u32 = 64;
const MOST: u32 = 1 << 16;

/// Trust in what has been brief so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// How often it is not done at once any more.
    withheld: u32,
    /// How often it would not be, if it were long now.
    next: u32,
}

impl Default for Trust {
    fn default() -> Self {
        Self::new()
    }
}

impl Trust {
    /// In what has not been done yet.
    pub const fn new() -> Self {
        Self {
            withheld: 0,
            next: LEAST,
        }
    }

    /// Whether it is to be done at once this time.
    pub fn is_given(&mut self) -> bool {
        let is_given = self.withheld == 0;
        self.withheld = self.withheld.saturating_sub(1);
        is_given
    }

    /// Notes how long it took, in nanoseconds.
    pub fn note(&mut self, duration: u64) {
        if duration > LONG {
            self.withheld = self.next;
            self.next = (self.next * 2).min(MOST);
        } else {
            self.next = (self.next - 1).max(LEAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is not done at once until it is again.
    fn withheld(trust: &mut Trust) -> u32 {
        (0..).find(|_| trust.is_given()).expect("it ends")
    }

    #[test]
    fn what_is_brief_is_done_at_once() {
        let mut trust = Trust::new();
        for _ in 0..1000 {
            assert!(trust.is_given());
            trust.note(LONG);
        }
    }

    #[test]
    fn what_is_long_is_tried_ever_more_rarely() {
        let mut trust = Trust::new();
        assert!(trust.is_given());
        for power in 0..12 {
            trust.note(LONG + 1);
            assert_eq!(withheld(&mut trust), (LEAST << power).min(MOST));
        }
    }

    #[test]
    fn what_is_brief_again_is_trusted_again_little_by_little() {
        let mut trust = Trust::new();
        trust.note(LONG + 1);
        trust.note(LONG + 1);
        assert_eq!(withheld(&mut trust), 2 * LEAST);
        (0..LEAST).for_each(|_| trust.note(1));
        trust.note(LONG + 1);
        assert_eq!(withheld(&mut trust), 3 * LEAST);
        (0..1000).for_each(|_| trust.note(1));
        trust.note(LONG + 1);
        assert_eq!(withheld(&mut trust), LEAST);
    }
}
