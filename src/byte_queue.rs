//! A queue of bytes in one piece, for what arrives before it is asked for.

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

    /// Appends bytes that nobody else has: they are not copied if there are no others.
    pub fn append(&mut self, bytes: Vec<u8>) {
        if self.is_empty() {
            (self.data, self.start) = (bytes, 0);
        } else {
            self.push(&bytes);
        }
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
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Append(usize),
        Consume(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Mostly short, and now and then beyond what is kept.
        let length = prop_oneof![3 => 0usize..100, 1 => 0..3 * KEPT];
        prop_oneof![
            length.clone().prop_map(Step::Push),
            length.clone().prop_map(Step::Append),
            length.prop_map(Step::Consume),
        ]
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec(step(), 1..40)) {
            let mut bytes = Bytes::default();
            let (mut went_in, mut came_out) = (0usize, 0usize);
            // A period that no power of two divides: bytes that are moved by one show.
            let numbered = |from: usize, count: usize| (from..from + count).map(|place| (place % 251) as u8);
            for step in steps {
                match step {
                    Step::Push(count) => {
                        bytes.push(&numbered(went_in, count).collect::<Vec<_>>());
                        went_in += count;
                    }
                    Step::Append(count) => {
                        bytes.append(numbered(went_in, count).collect());
                        went_in += count;
                    }
                    Step::Consume(count) => {
                        let count = count.min(bytes.len());
                        let taken = &bytes.as_slice()[..count];
                        prop_assert!(numbered(came_out, count).eq(taken.iter().copied()));
                        bytes.consume(count);
                        came_out += count;
                        // What was consumed does not pile up before what is left.
                        prop_assert!(bytes.start <= KEPT.max(bytes.len()));
                    }
                }
                prop_assert_eq!(bytes.len(), went_in - came_out);
            }
            prop_assert!(numbered(came_out, bytes.len()).eq(bytes.as_slice().iter().copied()));
        }
    }
}
