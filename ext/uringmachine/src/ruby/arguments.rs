//! The arguments of a method, converted with errors that name them.

use std::ffi::CStr;
use std::ops::RangeInclusive;

use crate::ruby::{self, errors, Raise, NIL, VALUE};

/// What a method was called with.
#[derive(Clone, Copy)]
pub struct Arguments<'a>(&'a [VALUE]);

impl<'a> Arguments<'a> {
    /// Checks the number of arguments as Ruby does.
    #[inline]
    pub fn of(values: &'a [VALUE], expected: RangeInclusive<usize>) -> Result<Self, Raise> {
        if expected.contains(&values.len()) {
            return Ok(Self(values));
        }
        Err(wrong_count(values.len(), expected))
    }

    /// All of them.
    pub fn all(&self) -> &'a [VALUE] {
        self.0
    }

    /// An argument that must be there.
    #[inline]
    pub fn get(&self, place: usize) -> VALUE {
        self.0[place]
    }

    /// An argument that may be left out or nil.
    #[inline]
    pub fn optional(&self, place: usize) -> Option<VALUE> {
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
    pub fn length(&self, place: usize, name: &str) -> Result<u64, Raise> {
        let number = long(self.get(place), name)?;
        u64::try_from(number).map_err(|_| Raise::argument(&format!("{name} can't be negative")))
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
pub fn string(value: VALUE, name: &str) -> Result<VALUE, Raise> {
    if ruby::is_string(value) {
        Ok(value)
    } else {
        Err(wrong_type(value, name, "a String"))
    }
}

/// An argument that must be a path, as a String.
fn path(value: VALUE, name: &str) -> Result<VALUE, Raise> {
    // SAFETY: type checks; the conversions may raise, stopped here.
    unsafe {
        if ruby::is_string(value) {
            return Ok(value);
        }
        let converted = ruby::protect(|| {
            let method = ruby::id("to_path");
            let value = if rb_sys::rb_respond_to(value, method) != 0 {
                ruby::funcall(value, method, &[])
            } else {
                value
            };
            rb_sys::rb_check_string_type(value)
        })
        .map_err(Raise::Jump)?;
        if converted == NIL {
            return Err(wrong_type(value, name, "a path"));
        }
        Ok(converted)
    }
}

/// The bytes of a String, which must have no zero byte.
fn c_string(string: VALUE, name: &str) -> Result<std::ffi::CString, Raise> {
    // SAFETY: the caller has a String; it is copied before Ruby runs again.
    std::ffi::CString::new(unsafe { ruby::string_bytes(&string) })
        .map_err(|_| Raise::argument(&format!("{name} contains null byte")))
}

/// An argument that must be a C int.
#[inline]
pub fn int(value: VALUE, name: &str) -> Result<i32, Raise> {
    match ruby::as_fixnum(value).and_then(|number| i32::try_from(number).ok()) {
        Some(number) => Ok(number),
        None => {
            let number = long(value, name)?;
            i32::try_from(number).map_err(|_| out_of_range(name, number))
        }
    }
}

/// An argument that must be a 64-bit number.
#[inline]
pub fn long(value: VALUE, name: &str) -> Result<i64, Raise> {
    if let Some(number) = ruby::as_fixnum(value) {
        return Ok(number);
    }
    // SAFETY: a type check, and a conversion of an Integer that may raise a RangeError, stopped here.
    unsafe {
        if !ruby::is_a(value, rb_sys::rb_cInteger) {
            return Err(wrong_type(value, name, "an Integer"));
        }
        let mut number = 0;
        let slot = &raw mut number;
        let converted = ruby::protect(|| {
            *slot = rb_sys::rb_num2ll(value);
            NIL
        });
        if converted.is_err() {
            ruby::take_exception();
            return Err(Raise::argument(&format!("{name} is out of range")));
        }
        Ok(number)
    }
}

/// The error for a number that is too large or too small.
pub fn out_of_range(name: &str, number: i64) -> Raise {
    Raise::argument(&format!("{name} {number} is out of range"))
}

/// The error for an argument of the wrong type.
pub fn wrong_type(value: VALUE, name: &str, wanted: &str) -> Raise {
    let text = format!("{name} must be {wanted}, not {}", class_name(value));
    // SAFETY: the class is set once Ruby runs.
    Raise::new(unsafe { rb_sys::rb_eTypeError }, &text)
}

/// UM::Error for what is neither a String nor an IO::Buffer.
pub fn no_buffer(value: VALUE, name: &str) -> Raise {
    let class = class_name(value);
    let text = format!("{name} must be a String or an IO::Buffer, not {class}");
    Raise::new(errors::error_class(), &text)
}

/// The name of a value's class, for messages.
pub fn class_name(value: VALUE) -> String {
    if value == NIL {
        return "nil".into();
    }
    // SAFETY: the name of a class is a C string that lives as long as the class.
    unsafe {
        let name = rb_sys::rb_obj_classname(value);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// The keywords of a method, by name; an unknown one raises as Ruby does.
pub unsafe fn keywords<const N: usize>(
    options: VALUE,
    names: [&str; N],
) -> Result<[Option<VALUE>; N], Raise> {
    // SAFETY: `options` is a Hash.
    unsafe {
        let values = names.map(|name| {
            let key = rb_sys::rb_id2sym(ruby::id(name));
            let value = rb_sys::rb_hash_lookup2(options, key, ruby::UNDEF);
            (value != ruby::UNDEF).then_some(value)
        });
        let known = values.iter().flatten().count();
        if rb_sys::rb_hash_size_num(options) as usize == known {
            return Ok(values);
        }
        let names = names.map(|name| format!("{name}:")).join(", ");
        Err(Raise::argument(&format!(
            "unknown keyword; the known ones are {names}"
        )))
    }
}
