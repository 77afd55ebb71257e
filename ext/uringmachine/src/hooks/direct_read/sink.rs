//! Where the bytes of a read go to that asks no hook.

use crate::lending::scratch::SIZE;
use crate::machine::Machine;
use crate::os::Errno;
use crate::ruby::room::Room;
use crate::ruby::{buffered, string, Outcome, Raise, Value, NIL};

/// Where bytes go to.
pub trait Sink {
    /// Whether it takes what there is more of than has come while it was waited for.
    const TAKES_MORE: bool;

    /// How many there is room for.
    fn most(&self) -> usize;

    /// Has them put there by `receive`, which calls nothing of Ruby's.
    fn take(
        &mut self,
        machine: &Machine,
        receive: impl FnOnce(&mut Room) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Raise>;

    /// Puts bytes there that have come meanwhile.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Raise>;
}

/// The buffer that Ruby reads ahead into.
pub struct Ahead(pub Value);

impl Sink for Ahead {
    /// It is read ahead when it is wanted.
    const TAKES_MORE: bool = false;

    fn most(&self) -> usize {
        buffered::CAPACITY as usize
    }

    #[inline]
    fn take(
        &mut self,
        _machine: &Machine,
        receive: impl FnOnce(&mut Room) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Raise> {
        buffered::fill(self.0, receive)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Raise> {
        buffered::put(self.0, bytes)
    }
}

/// A String; a new one if it is nil.
pub struct Into {
    pub string: Value,
    is_new: bool,
    /// How many bytes it has that were read.
    pub length: usize,
    /// How many it is to have.
    limit: usize,
}

impl Into {
    /// The String, with no more room than it needs.
    pub fn finish(&self) -> Outcome {
        if self.is_new {
            string::shrink(self.string)?;
        }
        Ok(self.string)
    }

    pub fn new(string: Value, limit: usize) -> Self {
        Self {
            string,
            is_new: string == NIL,
            length: 0,
            limit,
        }
    }
}

impl Sink for Into {
    const TAKES_MORE: bool = true;

    fn most(&self) -> usize {
        self.limit - self.length
    }

    #[inline]
    fn take(
        &mut self,
        machine: &Machine,
        receive: impl FnOnce(&mut Room) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Raise> {
        let received = if self.string != NIL {
            string::receive(self.string, self.length, self.limit, receive)?
        } else if self.limit > SIZE {
            self.string = string::with_capacity(self.limit)?;
            string::receive(self.string, 0, self.limit, receive)?
        } else {
            // A copy costs less than a String with more room than it needs.
            let mut block = machine.parts().lending.scratch.take();
            let received = receive(&mut Room::of(&mut block[..self.limit]));
            let string = match received {
                Ok(count) => string::binary(&block[..count]),
                Err(_) => Ok(NIL),
            };
            machine.parts().lending.scratch.give(block);
            self.string = string?;
            received
        };
        self.length += received.unwrap_or(0);
        Ok(received)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Raise> {
        let end = self.length + bytes.len();
        if self.string == NIL {
            self.string = string::binary(bytes)?;
        } else {
            let put = string::receive(self.string, self.length, end, |room| {
                Ok::<_, Errno>(room.put(bytes))
            });
            put.map(drop)?;
        }
        self.length = end;
        Ok(())
    }
}
