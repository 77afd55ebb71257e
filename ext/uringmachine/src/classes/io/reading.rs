//! The methods of UM::IO that read.

use std::ffi::{c_int, c_void};

use magnus::prelude::*;
use magnus::{method, Error, RClass, Ruby, Value};

use super::{reading, Io, More, Reader};
use crate::lending;
use crate::machine::caller::Answer;
use crate::machine::switch::Failure;
use crate::ruby::this::This;
use crate::ruby::{self, arguments, new_string, Raise, NIL, VALUE};

/// Finds a byte among bytes (memchr(3), which looks at many at a time).
pub fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    // SAFETY: the pointer and the length are the slice's.
    unsafe {
        let start = bytes.as_ptr();
        let place = libc::memchr(start.cast(), c_int::from(byte), bytes.len());
        (!place.is_null()).then(|| place.cast::<u8>().offset_from(start) as usize)
    }
}

impl Reader<'_> {
    /// Takes `count` bytes as a String, and throws `extra` more away.
    pub(super) fn take(&self, count: usize, extra: usize) -> VALUE {
        // SAFETY: the bytes are copied.
        let string = unsafe { new_string(&self.bytes().as_slice()[..count]) };
        self.consume(count + extra);
        string
    }

    /// Waits until the queue has `byte` among its first `limit` bytes (0: anywhere); its place, or `None`
    /// if the limit or the end comes first.
    fn find(&self, byte: u8, limit: usize) -> Result<Option<usize>, Failure> {
        let mut searched = 0;
        loop {
            let bytes = self.bytes().as_slice();
            let most = if limit == 0 {
                bytes.len()
            } else {
                bytes.len().min(limit)
            };
            if let Some(place) = find(byte, &bytes[searched..most]) {
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
        while self.bytes().len() < count {
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
fn read_line(ruby: &Ruby, io: This<Io>, arguments: &[Value]) -> Result<Value, Error> {
    reading(ruby, io, arguments, 0..=1, |reader, arguments| {
        let limit = match arguments.optional(0) {
            None => 0,
            Some(_) => arguments.length(0, "limit")? as usize,
        };
        match reader.find(b'\n', limit)? {
            Some(place) => {
                let line = &reader.bytes().as_slice()[..place];
                let return_too = usize::from(line.last() == Some(&b'\r'));
                Ok(reader.take(place - return_too, 1 + return_too))
            }
            None => {
                let left = reader.bytes().len();
                let is_last = left > 0 && (limit == 0 || left < limit) && reader.ended();
                Ok(if is_last { reader.take(left, 0) } else { NIL })
            }
        }
    })
}

impl Reader<'_> {
    fn ended(&self) -> bool {
        self.io.ended.get()
    }
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
fn read(ruby: &Ruby, io: This<Io>, length: Value) -> Result<Value, Error> {
    reading(ruby, io, &[length], 1..=1, |reader, arguments| {
        let length = arguments.long(0, "length")?;
        if length > 0 {
            let length = length as usize;
            let filled = reader.fill(length)?;
            return Ok(if filled { reader.take(length, 0) } else { NIL });
        }
        if !reader.any()? {
            return Ok(NIL);
        }
        let there = reader.bytes().len();
        let count = match length {
            0 => there,
            length => there.min(length.unsigned_abs() as usize),
        };
        Ok(reader.take(count, 0))
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
fn read_to_delim(ruby: &Ruby, io: This<Io>, arguments: &[Value]) -> Result<Value, Error> {
    reading(ruby, io, arguments, 1..=2, |reader, arguments| {
        let delimiter = arguments.get(0);
        // SAFETY: a type check.
        if !{ ruby::is_string(delimiter) } {
            return Err(Raise::argument("delimiter must be a String").into());
        }
        // SAFETY: a String, whose byte is copied.
        let byte = match unsafe { ruby::string_bytes(&delimiter) } {
            [byte] => *byte,
            _ => return Err(Raise::misuse("delimiter must be a single byte").into()),
        };
        let limit = match arguments.optional(1) {
            None => 0,
            Some(limit) => arguments::long(limit, "limit")?,
        };
        let most = limit.unsigned_abs() as usize;
        match reader.find(byte, most)? {
            Some(place) => Ok(reader.take(place, 1)),
            None if limit < 0 && !reader.bytes().is_empty() => {
                let count = reader.bytes().len().min(most);
                Ok(reader.take(count, 0))
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
fn skip(ruby: &Ruby, io: This<Io>, count: Value) -> Result<Value, Error> {
    reading(ruby, io, &[count], 1..=1, |reader, arguments| {
        let count = arguments.length(0, "count")?;
        let mut left = count;
        while left > 0 && reader.any()? {
            let now = reader.bytes().len().min(left as usize);
            reader.consume(now);
            left -= now as u64;
        }
        Ok(ruby::fixnum((count - left) as i64))
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
fn read_each(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    reading(ruby, io, &[], 0..=0, |reader, _| {
        if !ruby.block_given() {
            return Err(Raise::argument("no block given (read_each)").into());
        }
        each(reader)?;
        Ok(io.value())
    })
}

fn each(reader: &Reader) -> Answer {
    while reader.any()? {
        // SAFETY: as `Reader::bytes`.
        let bytes = unsafe { (*reader.inflow()).take_all() };
        reader.count(bytes.len());
        let (base, size) = (bytes.as_slice().as_ptr(), bytes.len());
        let mut freed = false;
        let freed_slot = &raw mut freed;
        // SAFETY: the queue is taken out of the IO while the block has a view of it, and dropped after the view was
        // freed, which ends every slice of it. What is raised is stopped.
        let yielded = unsafe {
            ruby::protect(|| {
                let base: *mut c_void = base.cast_mut().cast();
                let buffer = ruby::rb_io_buffer_new(base, size, ruby::IO_BUFFER_VIEW);
                // Nobody may transfer the memory to a buffer that outlives this one.
                lending::lock(buffer);
                let yielded = ruby::protect(|| rb_sys::rb_yield(buffer));
                lending::unlock(buffer);
                // Refused while an operation of another fiber works on the buffer.
                ruby::rb_io_buffer_free(buffer);
                *freed_slot = true;
                match yielded {
                    Ok(value) => value,
                    Err(state) => Raise::Jump(state).leave(),
                }
            })
        };
        if !freed {
            std::mem::forget(bytes);
        }
        yielded.map_err(Raise::Jump)?;
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
