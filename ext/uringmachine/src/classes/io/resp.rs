//! RESP2 and RESP3, the Redis serialization protocol (redis.io/docs/reference/protocol-spec), on UM::IO.
//!
//! A reply may come in any number of pieces: whatever is missing is waited for where it is missing.

use std::sync::atomic::{AtomicU64, Ordering};

use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{function, method, Error, RClass, Ruby, Value};

use super::reading::find;
use super::{reading, write_to, Io, Reader};
use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::switch::Failure;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, arguments, Raise, NIL, VALUE};

static ERROR: AtomicU64 = AtomicU64::new(0);

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
    // SAFETY: the class is set once Ruby runs.
    Raise::new(
        unsafe { rb_sys::rb_eEOFError },
        "end of file within a reply",
    )
    .into()
}

/// A String of bytes, taken to be UTF-8 as Redis's clients do.
fn text(bytes: &[u8]) -> VALUE {
    // SAFETY: the bytes are copied.
    unsafe { rb_sys::rb_utf8_str_new(bytes.as_ptr().cast(), bytes.len() as _) }
}

impl Reader<'_> {
    /// Waits for a line and takes it, without its CR LF. `None` if the end comes before its first byte.
    fn line(&self) -> Result<Option<Vec<u8>>, Failure> {
        let mut searched = 0;
        loop {
            let bytes = self.bytes().as_slice();
            if let Some(place) = find(b'\n', &bytes[searched..]) {
                let end = searched + place;
                if end > LONGEST_LINE {
                    return Err(protocol("a line is too long"));
                }
                if end == 0 || bytes[end - 1] != b'\r' {
                    return Err(protocol("a line does not end with CR LF"));
                }
                let line = bytes[..end - 1].to_vec();
                self.consume(end + 1);
                return Ok(Some(line));
            }
            searched = bytes.len();
            if searched > LONGEST_LINE {
                return Err(protocol("a line is too long"));
            }
            if !self.fill(searched + 1)? {
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
        if !self.fill(length + 2)? {
            return Err(cut_off());
        }
        let bytes = self.bytes().as_slice();
        if &bytes[length..length + 2] != b"\r\n" {
            return Err(protocol("a string does not end with CR LF"));
        }
        let made = make(&bytes[..length]);
        self.consume(length + 2);
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
    fn value(&self, depth: usize) -> Result<Option<VALUE>, Failure> {
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
            b'+' => text(rest),
            b'-' => error(text(rest))?,
            b':' | b'(' => integer(rest)?,
            b',' => double(rest)?,
            b'_' => NIL,
            b'#' => match rest {
                b"t" => ruby::TRUE,
                b"f" => ruby::FALSE,
                _ => return Err(protocol("a boolean is neither t nor f")),
            },
            b'$' => match self.string(rest)? {
                None => NIL,
                Some(bytes) => text(&bytes),
            },
            b'!' => match self.string(rest)? {
                None => NIL,
                Some(bytes) => error(text(&bytes))?,
            },
            b'=' => match self.string(rest)? {
                None => NIL,
                // "txt:" or "mkd:" comes first.
                Some(bytes) if bytes.len() >= 4 && bytes[3] == b':' => text(&bytes[4..]),
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
    fn element(&self, streamed: bool, depth: usize) -> Result<Option<VALUE>, Failure> {
        if streamed {
            if !self.fill(1)? {
                return Err(cut_off());
            }
            if self.bytes().as_slice()[0] == b'.' {
                self.line()?;
                return Ok(None);
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
        // SAFETY: a new Array, on this frame, which keeps it.
        let array = unsafe { rb_sys::rb_ary_new() };
        while left > 0 {
            let Some(value) = self.element(streamed, depth)? else {
                break;
            };
            // SAFETY: as above; nobody has frozen it.
            unsafe { rb_sys::rb_ary_push(array, value) };
            left -= 1;
        }
        std::hint::black_box(array);
        Ok(array)
    }

    fn hash(&self, field: &[u8], depth: usize) -> Answer {
        let (mut left, streamed) = match length(field)? {
            Length::Null => return Ok(NIL),
            Length::Known(count) => (count, false),
            Length::Streamed => (u64::MAX, true),
        };
        // SAFETY: a new Hash, on this frame, which keeps it.
        let hash = unsafe { rb_sys::rb_hash_new() };
        while left > 0 {
            let Some(key) = self.element(streamed, depth)? else {
                break;
            };
            let value = self.element(false, depth)?.ok_or_else(cut_off)?;
            // SAFETY: the key is on this frame, which keeps it; its hash method may be anything only if a program has
            // replaced a core class's, and what that raises is stopped.
            unsafe { ruby::protect(|| rb_sys::rb_hash_aset(hash, key, value)) }
                .map_err(Raise::Jump)?;
            std::hint::black_box(key);
            left -= 1;
        }
        std::hint::black_box(hash);
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
fn error(message: VALUE) -> Result<VALUE, Raise> {
    let class = ERROR.load(Ordering::Relaxed);
    // SAFETY: a class, which is never collected; what is raised is stopped.
    unsafe { ruby::protect(|| ruby::funcall(class, ruby::id("new"), &[message])) }
        .map_err(Raise::Jump)
}

fn integer(digits: &[u8]) -> Result<VALUE, Failure> {
    let plain = std::str::from_utf8(digits).ok();
    if let Some(number) = plain.and_then(|digits| digits.parse::<i64>().ok()) {
        // SAFETY: makes an Integer.
        return Ok(unsafe { rb_sys::rb_ll2inum(number) });
    }
    let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
    let unsigned = unsigned.strip_prefix(b"+").unwrap_or(unsigned);
    if unsigned.is_empty() || !unsigned.iter().all(u8::is_ascii_digit) {
        return Err(protocol("an integer is no number"));
    }
    // SAFETY: makes an Integer of digits.
    Ok(unsafe { rb_sys::rb_str_to_inum(text(digits), 10, 0) })
}

fn double(digits: &[u8]) -> Result<VALUE, Failure> {
    // Rust's grammar knows inf and nan, as the protocol does.
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<f64>().ok())
        .ok_or_else(|| protocol("a double is no number"))?;
    // SAFETY: makes a Float.
    Ok(unsafe { rb_sys::rb_float_new(number) })
}

/// Appends a value, which is on a frame or part of one that is, to bytes.
fn encode(object: VALUE, to: &mut Vec<u8>, depth: usize) -> Result<(), Raise> {
    if depth > DEEPEST {
        return Err(Raise::misuse("object is nested too deep for RESP"));
    }
    // SAFETY: types are checked; what may raise is protected.
    unsafe {
        if object == NIL {
            to.extend_from_slice(b"_\r\n");
        } else if object == ruby::TRUE {
            to.extend_from_slice(b"#t\r\n");
        } else if object == ruby::FALSE {
            to.extend_from_slice(b"#f\r\n");
        } else if let Some(number) = ruby::as_fixnum(object) {
            to.extend_from_slice(format!(":{number}\r\n").as_bytes());
        } else if ruby::is_a(object, rb_sys::rb_cInteger) {
            let digits = ruby::protect(|| rb_sys::rb_big2str(object, 10)).map_err(Raise::Jump)?;
            to.push(b'(');
            to.extend_from_slice(ruby::string_bytes(&digits));
            to.extend_from_slice(b"\r\n");
        } else if ruby::is_float(object) {
            let number = rb_sys::rb_float_value(object);
            let digits = if number.is_nan() {
                "nan".into()
            } else {
                // Rust writes inf and -inf, as the protocol does, and as few digits as tell the number.
                format!("{number}")
            };
            to.extend_from_slice(format!(",{digits}\r\n").as_bytes());
        } else if ruby::is_string(object) {
            bulk(ruby::string_bytes(&object), to);
        } else if ruby::is_symbol(object) {
            let string = rb_sys::rb_sym2str(object);
            bulk(ruby::string_bytes(&string), to);
        } else if ruby::is_array(object) {
            let count = rb_sys::RARRAY_LEN(object);
            to.extend_from_slice(format!("*{count}\r\n").as_bytes());
            for place in 0..count {
                encode(rb_sys::rb_ary_entry(object, place as _), to, depth + 1)?;
            }
        } else if ruby::is_hash(object) {
            let pairs = ruby::protect(|| ruby::funcall(object, ruby::id("to_a"), &[]))
                .map_err(Raise::Jump)?;
            check_array(pairs, object)?;
            let count = rb_sys::RARRAY_LEN(pairs);
            to.extend_from_slice(format!("%{count}\r\n").as_bytes());
            for place in 0..count {
                let pair = rb_sys::rb_ary_entry(pairs, place as _);
                check_array(pair, object)?;
                encode(rb_sys::rb_ary_entry(pair, 0), to, depth + 1)?;
                encode(rb_sys::rb_ary_entry(pair, 1), to, depth + 1)?;
            }
            std::hint::black_box(pairs);
        } else {
            let class = arguments::class_name(object);
            return Err(Raise::misuse(&format!(
                "object must be nil, a boolean, a number, a String, a Symbol, an Array or a Hash, not {class}"
            )));
        }
    }
    Ok(())
}

/// What a Hash's to_a, which may be the program's own, has answered must be an Array, and so must its elements.
fn check_array(value: VALUE, hash: VALUE) -> Result<(), Raise> {
    // SAFETY: a type check, and a class that is set once Ruby runs.
    unsafe {
        if ruby::is_array(value) {
            return Ok(());
        }
        let (class, got) = (arguments::class_name(hash), arguments::class_name(value));
        let text = format!("{class}#to_a must give an Array of Arrays, not {got}");
        Err(Raise::new(rb_sys::rb_eTypeError, &text))
    }
}

fn bulk(bytes: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    to.extend_from_slice(bytes);
    to.extend_from_slice(b"\r\n");
}

/// Reads a reply of RESP2 or RESP3, in however many pieces it comes.
///
/// @method UringMachine::IO#resp_read
/// @return [Object, nil] nil for a null, and at the end; a String, UTF-8; an Integer, Float or Boolean; an Array for
///   an array, a set or a push; a Hash for a map or an attribute; an error is returned as a
///   UringMachine::IO::RESPError
/// @raise [EOFError] if the end comes within a reply
/// @raise [UringMachine::Error] if it is not RESP
/// @example
///   io.resp_write(["GET", "key"])
///   io.resp_read #=> "value"
fn resp_read(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    reading(ruby, io, &[], 0..=0, |reader, _| {
        Ok(reader.value(0)?.unwrap_or(NIL))
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
fn resp_write(ruby: &Ruby, io: This<Io>, object: Value) -> Result<Value, Error> {
    settle(ruby, || {
        let caller = io.caller()?;
        let mut bytes = Vec::new();
        encode(object.as_raw(), &mut bytes, 0)?;
        let string = text(&bytes);
        drop(bytes);
        let written = write_whole(&caller, &io, string);
        std::hint::black_box(string);
        io.keep();
        answer(written.map(|total| ruby::fixnum(total as i64)))
    })
}

/// Writes all of a String, or raises: nobody could go on after a part of what it is to say.
fn write_whole(caller: &Caller, io: &Io, string: VALUE) -> Result<u64, Failure> {
    // SAFETY: a String, on the caller's frame.
    let length = unsafe { rb_sys::RSTRING_LEN(string) } as u64;
    let mut total = write_to(caller, io, &[string])?;
    while total < length {
        let (from, left) = (total as _, (length - total) as _);
        // SAFETY: as above; what is raised is stopped.
        let rest = unsafe { ruby::protect(|| rb_sys::rb_str_subseq(string, from, left)) };
        let rest = rest.map_err(Raise::Jump)?;
        let caller = caller.again();
        total += write_to(&caller, io, &[rest])?;
        std::hint::black_box(rest);
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
fn resp_encode(ruby: &Ruby, string: Value, object: Value) -> Result<Value, Error> {
    settle(ruby, || {
        let string = arguments::string(string.as_raw(), "string")?;
        let mut bytes = Vec::new();
        encode(object.as_raw(), &mut bytes, 0)?;
        let (start, length) = (bytes.as_ptr(), bytes.len());
        // SAFETY: a String; the append may raise, stopped before the bytes are dropped.
        unsafe { ruby::protect(|| rb_sys::rb_str_cat(string, start.cast(), length as _)) }
            .map_err(Raise::Jump)
    })
}

/// Defines the methods and the error.
pub fn define(ruby: &Ruby, class: RClass) -> Result<(), Error> {
    let error = class.define_error("RESPError", ruby.exception_standard_error())?;
    ERROR.store(error.as_raw(), Ordering::Relaxed);
    class.define_method("resp_read", method!(resp_read, 0))?;
    class.define_method("resp_write", method!(resp_write, 1))?;
    class.define_singleton_method("resp_encode", function!(resp_encode, 2))?;
    Ok(())
}
