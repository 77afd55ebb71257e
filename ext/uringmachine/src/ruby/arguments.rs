//! The arguments of a method, converted with errors that name them.

use std::ops::RangeInclusive;

use super::call::responds_to;
use super::{
    as_fixnum, call, class_name, classes, collections, errors, is_a, is_string, string, to_long,
    values, Raise, Value, NIL,
};

/// What a method was called with.
#[derive(Clone, Copy)]
pub struct Arguments<'a>(&'a [Value]);

impl<'a> Arguments<'a> {
    /// Checks the number of arguments as Ruby does.
    #[inline]
    pub fn of(list: &'a [magnus::Value], expected: RangeInclusive<usize>) -> Result<Self, Raise> {
        if expected.contains(&list.len()) {
            return Ok(Self(values(list)));
        }
        Err(wrong_count(list.len(), expected))
    }

    /// All of them.
    pub fn all(&self) -> &'a [Value] {
        self.0
    }

    /// An argument that must be there.
    #[inline]
    pub fn get(&self, place: usize) -> Value {
        self.0[place]
    }

    /// An argument that may be left out or nil.
    #[inline]
    pub fn optional(&self, place: usize) -> Option<Value> {
        self.0.get(place).copied().filter(|value| *value != NIL)
    }

    /// A file descriptor.
    #[inline]
    pub fn fd(&self, place: usize, name: &str) -> Result<i32, Raise> {
        int(self.get(place), name)
    }

    /// A C int.
    #[inline]
    pub fn int(&self, place: usize, name: &str) -> Result<i32, Raise> {
        int(self.get(place), name)
    }

    /// A C int that may be left out.
    pub fn int_or(&self, place: usize, name: &str, default: i32) -> Result<i32, Raise> {
        self.optional(place)
            .map_or(Ok(default), |value| int(value, name))
    }

    /// An unsigned 32-bit number.
    pub fn unsigned(&self, place: usize, name: &str) -> Result<u32, Raise> {
        let number = long(self.get(place), name)?;
        u32::try_from(number).map_err(|_| out_of_range(name, number))
    }

    /// A 64-bit number.
    pub fn long(&self, place: usize, name: &str) -> Result<i64, Raise> {
        long(self.get(place), name)
    }

    /// A number of bytes.
    #[inline]
    pub fn length(&self, place: usize, name: &str) -> Result<u64, Raise> {
        count(self.get(place), name)
    }

    /// A position in a file: [`CURRENT`] if it is left out or -1.
    #[inline]
    pub fn file_offset(&self, place: usize, name: &str) -> Result<u64, Raise> {
        match self.optional(place) {
            None => Ok(CURRENT),
            Some(value) => match long(value, name)? {
                offset if offset >= -1 => Ok(offset as u64),
                offset => Err(out_of_range(name, offset)),
            },
        }
    }

    /// A path: a String, or anything with to_path.
    pub fn path(&self, place: usize, name: &str) -> Result<std::ffi::CString, Raise> {
        c_string(path(self.get(place), name)?, name)
    }

    /// A String without a zero byte.
    pub fn c_string(&self, place: usize, name: &str) -> Result<std::ffi::CString, Raise> {
        c_string(string(self.get(place), name)?, name)
    }
}

/// The error for a wrong number of arguments, in Ruby's words.
#[cold]
fn wrong_count(count: usize, expected: RangeInclusive<usize>) -> Raise {
    let (least, most) = (expected.start(), expected.end());
    let expected = match (least == most, *most == usize::MAX) {
        (true, _) => least.to_string(),
        (_, true) => format!("{least}+"),
        _ => format!("{least}..{most}"),
    };
    Raise::argument(&format!(
        "wrong number of arguments (given {count}, expected {expected})"
    ))
}

/// The current position of a file, as an offset of io_uring.
pub const CURRENT: u64 = u64::MAX;

/// An argument that must be a String.
pub fn string(value: Value, name: &str) -> Result<Value, Raise> {
    if is_string(value) {
        Ok(value)
    } else {
        Err(wrong_type(value, name, "a String"))
    }
}

/// An argument that must be a path, as a String.
fn path(value: Value, name: &str) -> Result<Value, Raise> {
    if is_string(value) {
        return Ok(value);
    }
    let converted = if responds_to(value, "to_path")? {
        call(value, "to_path", &[])?
    } else {
        value
    };
    string::if_any(converted)?.ok_or_else(|| wrong_type(value, name, "a path"))
}

/// The bytes of a String, which must have no zero byte.
fn c_string(value: Value, name: &str) -> Result<std::ffi::CString, Raise> {
    string::with_bytes(value, |bytes| std::ffi::CString::new(bytes))
        .map_err(|_| Raise::argument(&format!("{name} contains null byte")))
}

/// An argument that must be a C int.
#[inline]
pub fn int(value: Value, name: &str) -> Result<i32, Raise> {
    match as_fixnum(value).map(i32::try_from) {
        Some(Ok(number)) => Ok(number),
        _ => convert_to_int(value, name),
    }
}

#[cold]
fn convert_to_int(value: Value, name: &str) -> Result<i32, Raise> {
    let number = long(value, name)?;
    i32::try_from(number).map_err(|_| out_of_range(name, number))
}

/// An argument that must be a 64-bit number.
#[inline]
pub fn long(value: Value, name: &str) -> Result<i64, Raise> {
    match as_fixnum(value) {
        Some(number) => Ok(number),
        None => convert_to_long(value, name),
    }
}

#[cold]
fn convert_to_long(value: Value, name: &str) -> Result<i64, Raise> {
    if !is_a(value, classes::integer()) {
        return Err(wrong_type(value, name, "an Integer"));
    }
    to_long(value).map_err(|_| Raise::argument(&format!("{name} is out of range")))
}

/// An argument that must be a number of something.
#[inline]
pub fn count(value: Value, name: &str) -> Result<u64, Raise> {
    match u64::try_from(long(value, name)?) {
        Ok(number) => Ok(number),
        Err(_) => Err(is_negative(name)),
    }
}

#[cold]
fn is_negative(name: &str) -> Raise {
    Raise::argument(&format!("{name} can't be negative"))
}

/// The error for a number that is too large or too small.
#[cold]
pub fn out_of_range(name: &str, number: i64) -> Raise {
    Raise::argument(&format!("{name} {number} is out of range"))
}

/// The error for an argument of the wrong type.
pub fn wrong_type(value: Value, name: &str, wanted: &str) -> Raise {
    let text = format!("{name} must be {wanted}, not {}", class_name(value));
    Raise::new(classes::type_error(), &text)
}

/// UM::Error for what is neither a String nor an IO::Buffer.
pub fn no_buffer(value: Value, name: &str) -> Raise {
    let class = class_name(value);
    let text = format!("{name} must be a String or an IO::Buffer, not {class}");
    Raise::new(errors::error_class(), &text)
}

/// The keywords of a method, by name, from a Hash; an unknown one raises as Ruby does.
pub fn keywords<const N: usize>(
    options: Value,
    names: [&str; N],
) -> Result<[Option<Value>; N], Raise> {
    let values = names.map(|name| collections::option(options, name));
    let known = values.iter().flatten().count();
    if collections::size(options) == known {
        return Ok(values);
    }
    let names = names.map(|name| format!("{name}:")).join(", ");
    Err(Raise::argument(&format!(
        "unknown keyword; the known ones are {names}"
    )))
}
