//! The methods of UM::IO that read.

use magnus::prelude::*;
use magnus::{method, Error, RClass};

use super::reader::{reading, More, Reader};
use super::Io;
use crate::lending::view;
use crate::machine::caller::Answer;
use crate::machine::operate::Failure;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::this::This;
use crate::ruby::{block_given, fixnum, is_string, string, yield_, Outcome, Raise, Value, NIL};

impl Reader<'_> {
    /// Takes `count` bytes as a String, and throws `extra` more away.
    pub(super) fn take(&self, count: usize, extra: usize) -> Outcome {
        // Taken out, since the collector may run while the String is made.
        let bytes = self.with_bytes(|bytes| bytes[..count].to_vec());
        let string = string::binary(&bytes)?;
        self.consume(count + extra);
        Ok(string)
    }

    /// Waits until the queue has `byte` among its first `limit` bytes (0: anywhere); its place, or `None`
    /// if the limit or the end comes first.
    fn find(&self, byte: u8, limit: usize) -> Result<Option<usize>, Failure> {
        let mut searched = 0;
        loop {
            let (place, most) = self.with_bytes(|bytes| {
                let most = if limit == 0 {
                    bytes.len()
                } else {
                    bytes.len().min(limit)
                };
                (memchr::memchr(byte, &bytes[searched..most]), most)
            });
            if let Some(place) = place {
                return Ok(Some(searched + place));
            }
            searched = most;
            if limit != 0 && searched == limit || self.more()? == More::End {
                return Ok(None);
            }
        }
    }

    /// Waits until there are `count` bytes; false if the end comes first.
    pub(super) fn fill(&self, count: usize) -> Result<bool, Failure> {
        while self.length() < count {
            if self.more()? == More::End {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until there is a byte at all.
    fn any(&self) -> Result<bool, Failure> {
        self.fill(1)
    }

    fn ended(&self) -> bool {
        self.io.ended.get()
    }
}

/// Reads a line, without its newline (LF or CR LF). The last line may have none.
///
/// @method UringMachine::IO#read_line(limit = 0)
/// @param limit [Integer] the most bytes that are looked at for the newline; 0 is any number
/// @return [String, nil] binary; nil at the end, or if there is no newline within limit: then nothing is
///   consumed
/// @raise [ArgumentError] if limit is negative
/// @example
///   io.read_line(8192) #=> "GET / HTTP/1.1"
fn read_line(io: This<Io>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 0..=1)?;
    reading(io, |reader| {
        let limit = match arguments.optional(0) {
            None => 0,
            Some(_) => arguments.length(0, "limit")? as usize,
        };
        match reader.find(b'\n', limit)? {
            Some(place) => {
                let last = reader.with_bytes(|bytes| bytes[..place].last().copied());
                let return_too = usize::from(last == Some(b'\r'));
                Ok(reader.take(place - return_too, 1 + return_too)?)
            }
            None => {
                let left = reader.length();
                let is_last = left > 0 && (limit == 0 || left < limit) && reader.ended();
                Ok(if is_last { reader.take(left, 0)? } else { NIL })
            }
        }
    })
}

/// Reads bytes.
///
/// @method UringMachine::IO#read(length)
/// @param length [Integer] exactly so many bytes; a negative number is at most so many, as soon as there are
///   some; 0 is all that has come
/// @return [String, nil] binary; nil at the end, or if it comes before as many bytes: those are left
/// @raise [TypeError] if length is no Integer
/// @example
///   io.read(13)
///   io.read(-13) # up to 13
fn read(io: This<Io>, length: Value) -> Outcome {
    reading(io, |reader| {
        let length = arguments::long(length, "length")?;
        if length > 0 {
            let length = length as usize;
            let filled = reader.fill(length)?;
            return Ok(if filled { reader.take(length, 0)? } else { NIL });
        }
        if !reader.any()? {
            return Ok(NIL);
        }
        let there = reader.length();
        let count = match length {
            0 => there,
            length => there.min(length.unsigned_abs() as usize),
        };
        Ok(reader.take(count, 0)?)
    })
}

/// Reads up to a delimiter, which is consumed and not returned.
///
/// @method UringMachine::IO#read_to_delim(delimiter, limit = 0)
/// @param delimiter [String] one byte
/// @param limit [Integer] the most bytes that are looked at for the delimiter; 0 is any number. Of a negative
///   one the absolute value: without a delimiter within it, or before the end, what was looked at is returned
/// @return [String, nil] binary; nil if there is no delimiter: then nothing is consumed
/// @raise [ArgumentError] if delimiter is no String
/// @raise [UringMachine::Error] if it is not one byte
/// @example
///   io.read_to_delim(",") #=> "abc"
fn read_to_delim(io: This<Io>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 1..=2)?;
    reading(io, |reader| {
        let delimiter = arguments.get(0);
        if !is_string(delimiter) {
            return Err(Raise::argument("delimiter must be a String").into());
        }
        let byte = string::with_bytes(delimiter, |bytes| match bytes {
            [byte] => Some(*byte),
            _ => None,
        });
        let Some(byte) = byte else {
            return Err(Raise::misuse("delimiter must be a single byte").into());
        };
        let limit = match arguments.optional(1) {
            None => 0,
            Some(limit) => arguments::long(limit, "limit")?,
        };
        let most = limit.unsigned_abs() as usize;
        match reader.find(byte, most)? {
            Some(place) => Ok(reader.take(place, 1)?),
            None if limit < 0 && reader.length() > 0 => {
                let count = reader.length().min(most);
                Ok(reader.take(count, 0)?)
            }
            None => Ok(NIL),
        }
    })
}

/// Throws bytes away.
///
/// @method UringMachine::IO#skip(count)
/// @param count [Integer] how many bytes
/// @return [Integer] the bytes thrown away: fewer only if the end came first
/// @raise [ArgumentError] if count is negative
/// @example
///   io.skip(2) #=> 2
fn skip(io: This<Io>, count: Value) -> Outcome {
    reading(io, |reader| {
        let count = arguments::count(count, "count")?;
        let mut left = count;
        while left > 0 && reader.any()? {
            let now = reader.length().min(left as usize);
            reader.consume(now);
            left -= now as u64;
        }
        Ok(fixnum((count - left) as i64))
    })
}

/// Reads until the end and gives the bytes to the block as they come, without copying them to a String.
///
/// @method UringMachine::IO#read_each(&block)
/// @yieldparam buffer [IO::Buffer] read-only, and valid only within the block
/// @return [UringMachine::IO] self
/// @raise [ArgumentError] without a block
/// @example
///   io.read_each { |buffer| size += buffer.size }
fn read_each(io: This<Io>) -> Outcome {
    reading(io, |reader| {
        if !block_given() {
            return Err(Raise::argument("no block given (read_each)").into());
        }
        each(reader)?;
        Ok(io.value())
    })
}

fn each(reader: &Reader) -> Answer {
    while reader.any()? {
        // The block has a view of them, taken out of the IO.
        let bytes = reader.take_all();
        view::of_bytes(bytes, yield_)?;
    }
    Ok(NIL)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("read_line", method!(read_line, -1))?;
    class.define_method("read", method!(read, 1))?;
    class.define_method("read_to_delim", method!(read_to_delim, -1))?;
    class.define_method("skip", method!(skip, 1))?;
    class.define_method("read_each", method!(read_each, 0))?;
    Ok(())
}
