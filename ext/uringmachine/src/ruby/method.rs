//! Methods as Ruby calls them, by magnus: it checks what a function takes by its type, stops panics, and raises only when
//! every frame of ours is gone.

use std::ops::RangeInclusive;

use magnus::error::IntoError;
use magnus::rb_sys::{protect, FromRawValue};
use magnus::{Error, Exception, Ruby, Value};

use super::arguments::Arguments;
use super::{Outcome, Raise, VALUE};

/// A value of ours as magnus has it.
#[inline]
pub fn as_value(raw: VALUE) -> Value {
    // SAFETY: a value of Ruby's, on a frame or marked.
    unsafe { Value::from_raw(raw) }
}

/// Values of magnus' as ours are.
#[inline]
pub fn raw(values: &[Value]) -> &[VALUE] {
    // SAFETY: a Value is a VALUE, and nothing else (repr(transparent)).
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

impl IntoError for Raise {
    /// What magnus raises: an exception as it is; a jump that was stopped is taken up again, and stopped by magnus.
    #[cold]
    fn into_error(self, _ruby: &Ruby) -> Error {
        if let Self::Exception(exception) = self {
            if let Some(exception) = Exception::from_value(as_value(exception)) {
                return exception.into();
            }
        }
        // SAFETY: nothing is alive in the frame that is jumped over.
        match protect(|| unsafe { self.leave() }) {
            Err(error) => error,
            Ok(_) => unreachable!("`leave` does not return"),
        }
    }
}

/// Calls the body of a method that takes its arguments as they are.
#[inline(always)]
pub fn call(
    ruby: &Ruby,
    arguments: &[Value],
    expected: RangeInclusive<usize>,
    body: impl FnOnce(Arguments) -> Outcome,
) -> Result<Value, Error> {
    Arguments::of(raw(arguments), expected)
        .and_then(body)
        .map(as_value)
        .map_err(|raise| raise.into_error(ruby))
}

/// Defines a singleton method that takes its arguments as they are: `function!(class, "name", 1..=2, body)`.
macro_rules! function {
    ($class:expr, $name:literal, $expected:expr, $body:path) => {
        magnus::Object::define_singleton_method(
            $class,
            $name,
            magnus::method!(
                |ruby: &magnus::Ruby, _this: magnus::Value, arguments: &[magnus::Value]| {
                    $crate::ruby::method::call(ruby, arguments, $expected, $body)
                },
                -1
            ),
        )?
    };
}
pub(crate) use function;

/// What a method of a fixed number of arguments returns or raises.
#[inline(always)]
pub fn settle(ruby: &Ruby, body: impl FnOnce() -> Outcome) -> Result<Value, Error> {
    body().map(as_value).map_err(|raise| raise.into_error(ruby))
}
