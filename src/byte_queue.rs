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
