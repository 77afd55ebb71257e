//! Which registered buffers the kernel works on.

/// How many operations work on each registered buffer.
#[derive(Default)]
pub struct InUse {
    counts: Vec<u32>,
}

impl InUse {
    /// An operation begins, on a registered buffer if there is an index.
    #[inline]
    pub fn begin(&mut self, index: Option<u16>) {
        if let Some(index) = index {
            let place = usize::from(index);
            if self.counts.len() <= place {
                self.counts.resize(place + 1, 0);
            }
            self.counts[place] += 1;
        }
    }

    /// It is over.
    #[inline]
    pub fn end(&mut self, index: Option<u16>) {
        if let Some(index) = index {
            self.counts[usize::from(index)] -= 1;
        }
    }

    /// Whether an operation works on the buffer of an index.
    pub fn has(&self, index: u16) -> bool {
        self.counts
            .get(usize::from(index))
            .is_some_and(|count| *count > 0)
    }
}
