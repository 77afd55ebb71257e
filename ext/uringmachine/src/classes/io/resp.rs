//! RESP2 and RESP3, the Redis serialization protocol (redis.io/docs/reference/protocol-spec), on UM::IO.
//!
//! A reply may come in any number of pieces: whatever is missing is waited for where it is missing.

use std::cell::Cell;

use magnus::prelude::*;
use magnus::{function, method, Error, RClass, Ruby};

use super::reader::{reading, Reader};
use super::{write_to, Io};
use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::operate::Failure;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::this::This;
use crate::ruby::{
    array, as_fixnum, as_float, call, class_name, classes, collections, fixnum, float, is_a,
    is_array, is_hash, is_string, is_symbol, keep_until_here, string, Outcome, Raise, Shared,
    Value, FALSE, NIL, TRUE,
};

static ERROR: Shared = Shared::new();

/// The most that a bulk string, and the most elements that an aggregate, may have: Redis's own limit.
const MOST: u64 = 512 << 20;
/// How deep aggregates may be nested.
const DEEPEST: usize = 128;
/// The longest line.
const LONGEST_LINE: usize = 64 << 10;

/// What a length field says.
enum Length {
    Known(u64),
    /// RESP2's null.
    Null,
    /// It ends where it says so (RESP3).
    Streamed,
}

fn protocol(text: &str) -> Failure {
    Raise::misuse(&format!("RESP: {text}")).into()
}

fn cut_off() -> Failure {
    Raise::new(classes::eof_error(), "end of file within a reply").into()
}

/// A String of bytes, taken to be UTF-8 as Redis's clients do.
fn text(bytes: &[u8]) -> Outcome {
    string::utf8(bytes)
}

/// A reply that is read.
struct Reply<'a> {
    reader: &'a Reader<'a>,
    /// How many bytes it may go on for.
    left: Cell<u64>,
}

impl Reply<'_> {
    /// How many bytes are left once so many more are taken.
    fn may_take(&self, bytes: usize) -> Result<u64, Failure> {
        let left = self.left.get().checked_sub(bytes as u64);
        left.ok_or_else(|| protocol("a reply is longer than limit"))
    }

    /// Counts bytes, before they are waited for or taken.
    fn count(&self, bytes: usize) -> Result<(), Failure> {
        self.left.set(self.may_take(bytes)?);
        Ok(())
    }

    /// Waits for a line and takes it, without its CR LF. `None` if the end comes before its first byte.
    fn line(&self) -> Result<Option<Vec<u8>>, Failure> {
        let mut searched = 0;
        loop {
            let (end, length) = self.reader.with_bytes(|bytes| {
                let place = memchr::memchr(b'\n', &bytes[searched..]);
                (place.map(|place| searched + place), bytes.len())
            });
            if let Some(end) = end {
                if end > LONGEST_LINE {
                    return Err(protocol("a line is too long"));
                }
                let line = self.reader.with_bytes(|bytes| {
                    let is_ended = end > 0 && bytes[end - 1] == b'\r';
                    is_ended.then(|| bytes[..end - 1].to_vec())
                });
                let Some(line) = line else {
                    return Err(protocol("a line does not end with CR LF"));
                };
                self.count(end + 1)?;
                self.reader.consume(end + 1);
                return Ok(Some(line));
            }
            searched = length;
            if searched > LONGEST_LINE {
                return Err(protocol("a line is too long"));
            }
            self.may_take(searched + 1)?;
            if !self.reader.fill(searched + 1)? {
                return if searched == 0 {
                    Ok(None)
                } else {
                    Err(cut_off())
                };
            }
        }
    }

    /// Waits for so many bytes and their CR LF; gives them to `make`.
    fn bulk<T>(&self, length: u64, make: impl FnOnce(&[u8]) -> T) -> Result<T, Failure> {
        let length = length as usize;
        self.count(length + 2)?;
        if !self.reader.fill(length + 2)? {
            return Err(cut_off());
        }
        let made = self.reader.with_bytes(|bytes| {
            let is_ended = &bytes[length..length + 2] == b"\r\n";
            is_ended.then(|| make(&bytes[..length]))
        });
        let Some(made) = made else {
            return Err(protocol("a string does not end with CR LF"));
        };
        self.reader.consume(length + 2);
        Ok(made)
    }

    /// The bytes of a string of a given or streamed length.
    fn string(&self, field: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        match length(field)? {
            Length::Null => Ok(None),
            Length::Known(length) => self.bulk(length, <[u8]>::to_vec).map(Some),
            Length::Streamed => {
                let mut whole = Vec::new();
                loop {
                    let line = self.line()?.ok_or_else(cut_off)?;
                    let Some((b';', field)) = line.split_first() else {
                        return Err(protocol("a part of a streamed string is missing"));
                    };
                    match length(field)? {
                        Length::Known(0) => return Ok(Some(whole)),
                        Length::Known(length) => {
                            self.bulk(length, |bytes| whole.extend_from_slice(bytes))?;
                        }
                        _ => return Err(protocol("a part of a streamed string has no length")),
                    }
                    if whole.len() as u64 > MOST {
                        return Err(protocol("a string is too long"));
                    }
                }
            }
        }
    }

    /// Reads one value; `None` if the end comes before it.
    fn value(&self, depth: usize) -> Result<Option<Value>, Failure> {
        if depth > DEEPEST {
            return Err(protocol("values are nested too deep"));
        }
        let Some(line) = self.line()? else {
            return Ok(None);
        };
        let Some((kind, rest)) = line.split_first() else {
            return Err(protocol("a line is empty"));
        };
        let value = match kind {
            b'+' => text(rest)?,
            b'-' => error(text(rest)?)?,
            b':' | b'(' => integer(rest)?,
            b',' => double(rest)?,
            b'_' if rest.is_empty() => NIL,
            b'_' => return Err(protocol("a null has a value")),
            b'#' => match rest {
                b"t" => TRUE,
                b"f" => FALSE,
                _ => return Err(protocol("a boolean is neither t nor f")),
            },
            b'$' => match self.string(rest)? {
                None => NIL,
                Some(bytes) => text(&bytes)?,
            },
            b'!' => match self.string(rest)? {
                None => NIL,
                Some(bytes) => error(text(&bytes)?)?,
            },
            b'=' => match self.string(rest)? {
                None => NIL,
                // "txt:" or "mkd:" comes first.
                Some(bytes) if bytes.len() >= 4 && bytes[3] == b':' => text(&bytes[4..])?,
                Some(_) => return Err(protocol("a verbatim string has no format")),
            },
            b'*' | b'~' | b'>' => self.array(rest, depth)?,
            b'%' | b'|' => self.hash(rest, depth)?,
            kind => {
                let kind = char::from(*kind);
                return Err(protocol(&format!("unknown type {kind:?}")));
            }
        };
        Ok(Some(value))
    }

    /// The next element of an aggregate; `None` at the end of a streamed one.
    fn element(&self, streamed: bool, depth: usize) -> Result<Option<Value>, Failure> {
        if streamed {
            if !self.reader.fill(1)? {
                return Err(cut_off());
            }
            if self.reader.with_bytes(|bytes| bytes[0]) == b'.' {
                return match self.line()?.as_deref() {
                    Some(b".") => Ok(None),
                    _ => Err(protocol("the end of an aggregate has a value")),
                };
            }
        }
        self.value(depth + 1)?.map(Some).ok_or_else(cut_off)
    }

    fn array(&self, field: &[u8], depth: usize) -> Answer {
        let (mut left, streamed) = match length(field)? {
            Length::Null => return Ok(NIL),
            Length::Known(count) => (count, false),
            Length::Streamed => (u64::MAX, true),
        };
        let array = array()?;
        while left > 0 {
            let Some(value) = self.element(streamed, depth)? else {
                break;
            };
            collections::push(array, value)?;
            left -= 1;
        }
        keep_until_here(array);
        Ok(array)
    }

    fn hash(&self, field: &[u8], depth: usize) -> Answer {
        let (mut left, streamed) = match length(field)? {
            Length::Null => return Ok(NIL),
            Length::Known(count) => (count, false),
            Length::Streamed => (u64::MAX, true),
        };
        let hash = collections::hash()?;
        while left > 0 {
            let Some(key) = self.element(streamed, depth)? else {
                break;
            };
            let value = self.element(false, depth)?.ok_or_else(cut_off)?;
            collections::set(hash, key, value)?;
            keep_until_here(key);
            left -= 1;
        }
        keep_until_here(hash);
        Ok(hash)
    }
}

fn length(field: &[u8]) -> Result<Length, Failure> {
    match field {
        b"-1" => Ok(Length::Null),
        b"?" => Ok(Length::Streamed),
        digits => std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .filter(|length| *length <= MOST)
            .map(Length::Known)
            .ok_or_else(|| protocol("a length is no number, or too large")),
    }
}

/// UM::IO::RESPError, which is returned, not raised.
fn error(message: Value) -> Outcome {
    call(ERROR.get(), "new", &[message])
}

fn integer(digits: &[u8]) -> Result<Value, Failure> {
    let plain = std::str::from_utf8(digits).ok();
    if let Some(number) = plain.and_then(|digits| digits.parse::<i64>().ok()) {
        return Ok(crate::ruby::integer(number)?);
    }
    let unsigned = match digits {
        [b'-' | b'+', unsigned @ ..] => unsigned,
        digits => digits,
    };
    if unsigned.is_empty() || !unsigned.iter().all(u8::is_ascii_digit) {
        return Err(protocol("an integer is no number"));
    }
    Ok(string::to_integer(digits)?)
}

fn double(digits: &[u8]) -> Result<Value, Failure> {
    // Rust's grammar knows inf and nan, as the protocol does.
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<f64>().ok())
        .ok_or_else(|| protocol("a double is no number"))?;
    Ok(float(number)?)
}

/// Appends a value, which is on a frame or part of one that is, to bytes.
fn encode(object: Value, to: &mut Vec<u8>, depth: usize) -> Result<(), Raise> {
    if depth > DEEPEST {
        return Err(Raise::misuse("object is nested too deep for RESP"));
    }
    if object == NIL {
        to.extend_from_slice(b"_\r\n");
    } else if object == TRUE {
        to.extend_from_slice(b"#t\r\n");
    } else if object == FALSE {
        to.extend_from_slice(b"#f\r\n");
    } else if let Some(number) = as_fixnum(object) {
        to.extend_from_slice(format!(":{number}\r\n").as_bytes());
    } else if is_a(object, classes::integer()) {
        let digits = string::of_integer(object)?;
        to.push(b'(');
        string::with_bytes(digits, |digits| to.extend_from_slice(digits));
        to.extend_from_slice(b"\r\n");
    } else if let Some(number) = as_float(object) {
        let digits = if number.is_nan() {
            "nan".into()
        } else {
            // Rust writes inf and -inf, as the protocol does, and as few digits as tell the number.
            format!("{number}")
        };
        to.extend_from_slice(format!(",{digits}\r\n").as_bytes());
    } else if is_string(object) {
        string::with_bytes(object, |bytes| bulk(bytes, to));
    } else if is_symbol(object) {
        string::with_bytes(string::of_symbol(object)?, |bytes| bulk(bytes, to));
    } else if is_array(object) {
        encode_array(object, to, depth)?;
    } else if is_hash(object) {
        encode_hash(object, to, depth)?;
    } else {
        let class = class_name(object);
        return Err(Raise::misuse(&format!(
            "object must be nil, a boolean, a number, a String, a Symbol, an Array or a Hash, not {class}"
        )));
    }
    Ok(())
}

fn encode_array(array: Value, to: &mut Vec<u8>, depth: usize) -> Result<(), Raise> {
    let count = collections::length(array);
    to.extend_from_slice(format!("*{count}\r\n").as_bytes());
    (0..count).try_for_each(|place| encode(collections::entry(array, place), to, depth + 1))
}

fn encode_hash(hash: Value, to: &mut Vec<u8>, depth: usize) -> Result<(), Raise> {
    let pairs = call(hash, "to_a", &[])?;
    check_array(pairs, hash)?;
    let count = collections::length(pairs);
    to.extend_from_slice(format!("%{count}\r\n").as_bytes());
    for place in 0..count {
        let pair = collections::entry(pairs, place);
        check_array(pair, hash)?;
        encode(collections::entry(pair, 0), to, depth + 1)?;
        encode(collections::entry(pair, 1), to, depth + 1)?;
    }
    keep_until_here(pairs);
    Ok(())
}

/// What a Hash's to_a, which may be the program's own, has answered must be an Array, and so must its elements.
fn check_array(value: Value, hash: Value) -> Result<(), Raise> {
    if is_array(value) {
        return Ok(());
    }
    let (class, got) = (class_name(hash), class_name(value));
    let text = format!("{class}#to_a must give an Array of Arrays, not {got}");
    Err(Raise::new(classes::type_error(), &text))
}

fn bulk(bytes: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    to.extend_from_slice(bytes);
    to.extend_from_slice(b"\r\n");
}

/// Reads a reply of RESP2 or RESP3, in however many pieces it comes.
///
/// @method UringMachine::IO#resp_read(limit = 0)
/// @param limit [Integer] the most bytes that a reply may have; 0 is any number, as far as RESP goes: 512 MiB a string and as many
///   elements. After one that has more the stream is of no use
/// @return [Object, nil] nil for a null, and at the end; a String, UTF-8; an Integer, Float or Boolean; an Array for
///   an array, a set or a push; a Hash for a map or an attribute; an error is returned as a
///   UringMachine::IO::RESPError
/// @raise [EOFError] if the end comes within a reply
/// @raise [UringMachine::Error] if it is not RESP, or longer than limit
/// @raise [ArgumentError] if limit is negative
/// @example
///   io.resp_write(["GET", "key"])
///   io.resp_read #=> "value"
fn resp_read(io: This<Io>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 0..=1)?;
    reading(io, |reader| {
        let limit = match arguments.optional(0) {
            None => 0,
            Some(_) => arguments.length(0, "limit")?,
        };
        let left = Cell::new(if limit == 0 { u64::MAX } else { limit });
        Ok(Reply { reader, left }.value(0)?.unwrap_or(NIL))
    })
}

/// Writes an object as RESP3.
///
/// @method UringMachine::IO#resp_write(object)
/// @param object [nil, Boolean, Integer, Float, String, Symbol, Array, Hash]
/// @return [Integer] bytes written
/// @raise [UringMachine::Error] if the object is of another class, or nested too deep
/// @raise [SystemCallError] as write(2)
/// @example
///   io.resp_write(["SET", "key", "value"]) #=> 33
fn resp_write(io: This<Io>, object: Value) -> Outcome {
    let um = io.um()?;
    let caller = Caller::new(&um)?;
    let mut bytes = Vec::new();
    encode(object, &mut bytes, 0)?;
    let string = text(&bytes)?;
    drop(bytes);
    let written = write_whole(&caller, &io, string);
    keep_until_here(string);
    io.keep();
    answer(written.map(|total| fixnum(total as i64)))
}

/// Writes all of a String, or raises: nobody could go on after a part of what it is to say.
fn write_whole(caller: &Caller, io: &Io, string: Value) -> Result<u64, Failure> {
    let length = string::length(string) as u64;
    let mut total = write_to(caller, io, &[string])?;
    while total < length {
        let rest = string::part(string, total as usize, (length - total) as usize)?;
        total += write_to(&caller.again(), io, &[rest])?;
        keep_until_here(rest);
    }
    Ok(total)
}

/// Appends an object to a String, as RESP3.
///
/// @method UringMachine::IO.resp_encode(string, object)
/// @param string [String]
/// @param object [nil, Boolean, Integer, Float, String, Symbol, Array, Hash]
/// @return [String] string
/// @raise [UringMachine::Error] if the object is of another class, or nested too deep
/// @raise [TypeError] if string is no String
/// @example
///   UM::IO.resp_encode(+"", 42) #=> ":42\r\n"
fn resp_encode(string: Value, object: Value) -> Outcome {
    let string = arguments::string(string, "string")?;
    let mut bytes = Vec::new();
    encode(object, &mut bytes, 0)?;
    string::append(string, &bytes)?;
    Ok(string)
}

/// Defines the methods and the error.
pub fn define(ruby: &Ruby, class: RClass) -> Result<(), Error> {
    let error = class.define_error("RESPError", ruby.exception_standard_error())?;
    ERROR.keep(error.as_value().into());
    class.define_method("resp_read", method!(resp_read, -1))?;
    class.define_method("resp_write", method!(resp_write, 1))?;
    class.define_singleton_method("resp_encode", function!(resp_encode, 2))?;
    Ok(())
}
