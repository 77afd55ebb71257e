//! How a method ends when it does not return, and the errors of ours: UM::Error, UM::UnsupportedError, UM::Terminate.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use magnus::error::IntoError;
use magnus::{prelude::*, Error, Exception, ExceptionClass, RClass, Ruby};
use uringmachine_runtime::SetupError;

use super::{classes, is_a, may_raise, Value, NIL};

/// How a method ends when it does not return.
#[derive(Debug)]
pub enum Raise {
    /// By an exception.
    Exception(Value),
    /// By the Errno of this number, made when it is raised: most are never.
    Errno(i32),
    /// The fiber is to end: its ensure blocks run, and no rescue stops it. Once: Ruby's own Fiber#kill kills anew
    /// whenever the fiber is switched to, in the middle of an ensure block too.
    Unwind,
    /// By going on with what was stopped and is no exception, of which Ruby keeps this state and the rest: a throw, or the
    /// end of the thread.
    Jump(c_int),
}

/// The state of the end of a thread (eval_intern.h, `TAG_FATAL`).
const FATAL: c_int = 8;

/// What a method returns or raises.
pub type Outcome = Result<Value, Raise>;

impl Raise {
    /// An exception of `class` with `text`. One that cannot be made is raised instead.
    pub fn new(class: Value, text: &str) -> Self {
        // SAFETY: `text` is copied.
        let made = may_raise(|| unsafe {
            rb_sys::rb_exc_new(class.raw(), text.as_ptr().cast(), text.len() as _)
        });
        made.map_or_else(|raise| raise, Self::Exception)
    }

    /// The Errno for `errno`.
    pub fn errno(errno: i32) -> Self {
        Self::Errno(errno)
    }

    /// The Errno of an error of the runtime's; `otherwise` if it has none.
    pub fn of(error: &std::io::Error, otherwise: i32) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(otherwise))
    }

    /// The Errno for `errno`, with words of ours.
    pub fn errno_with(errno: i32, text: &str) -> Self {
        let text = std::ffi::CString::new(text).unwrap_or_default();
        match errno_exception(errno, text.as_ptr()) {
            Ok(exception) => Self::Exception(exception),
            Err(raise) => raise,
        }
    }

    /// A UM::Error with `text`.
    pub fn misuse(text: &str) -> Self {
        Self::new(error_class(), text)
    }

    /// An ArgumentError.
    pub fn argument(text: &str) -> Self {
        Self::new(classes::argument_error(), text)
    }

    /// An exception with a cause.
    pub fn caused_by(exception: Value, cause: Value) -> Self {
        let raise = || {
            let options = super::options(&[("cause", cause)])?;
            let kernel = classes::at("Kernel")?;
            super::call::call_with_keywords(kernel, "raise", &[exception, options])
        };
        match raise() {
            Err(raise) => raise,
            Ok(_) => Self::Exception(exception),
        }
    }

    /// The exception, made if it is an Errno's; what is none is returned as it is.
    pub fn exception(self) -> Result<Value, Self> {
        match self {
            Self::Exception(exception) => Ok(exception),
            Self::Errno(errno) => errno_exception(errno, std::ptr::null()),
            raise => Err(raise),
        }
    }

    /// Whether it is the end of the thread (Thread#kill, or that of the process).
    pub fn is_kill(&self) -> bool {
        matches!(self, Self::Jump(FATAL))
    }

    /// Whether it is an exception of this class.
    pub fn is_a(&self, class: Value) -> bool {
        matches!(self, Self::Exception(exception) if is_a(*exception, class))
    }
}

/// An Errno. A NULL message is allowed (error.c, rb_syserr_new).
fn errno_exception(errno: i32, message: *const std::ffi::c_char) -> Result<Value, Raise> {
    // SAFETY: the message, if there is one, is copied.
    may_raise(|| unsafe { super::rb_syserr_new(errno, message) })
}

impl IntoError for Raise {
    /// As magnus raises it, when every frame of ours is gone.
    #[cold]
    fn into_error(self, _ruby: &Ruby) -> Error {
        let raise = match self {
            // SAFETY: the unwinding begins within the protection.
            Self::Unwind => match may_raise(|| unsafe {
                rb_sys::rb_throw_obj(super::tag().raw(), NIL.raw());
                #[allow(unreachable_code)]
                NIL.raw()
            }) {
                Err(raise) => raise,
                Ok(_) => unreachable!("a throw does not return"),
            },
            raise => raise,
        };
        match raise.exception() {
            Ok(exception) => match Exception::from_value(exception.to_magnus()) {
                Some(exception) => exception.into(),
                None => unreachable!("an exception is one"),
            },
            Err(Self::Jump(state)) => {
                // SAFETY: the jump goes on within the protection.
                let jumped = magnus::rb_sys::protect(|| unsafe { rb_sys::rb_jump_tag(state) });
                match jumped {
                    Err(error) => error,
                    Ok(_) => unreachable!("a jump does not return"),
                }
            }
            Err(raise) => unreachable!("{raise:?} is an exception or was stopped"),
        }
    }
}

/// A class of ours, set when the extension is loaded.
struct Class(AtomicU64);

impl Class {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn get(&self) -> Value {
        Value::of(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, class: ExceptionClass) {
        self.0
            .store(Value::from(class.as_value()).raw(), Ordering::Relaxed);
    }
}

static ERROR: Class = Class::new();
static UNSUPPORTED: Class = Class::new();
static TERMINATE: Class = Class::new();

/// UM::Error, for misuse.
pub fn error_class() -> Value {
    ERROR.get()
}

/// UM::Terminate, which ends a fiber.
pub fn terminate_class() -> Value {
    TERMINATE.get()
}

/// What a ring that could not be set up raises: UM::UnsupportedError for a refusal, the Errno for a
/// shortage.
pub fn from_setup(error: SetupError) -> Raise {
    match error.errno() {
        Some(errno) => Raise::errno(errno),
        None => Raise::new(UNSUPPORTED.get(), &error.to_string()),
    }
}

/// Defines the classes.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let error = module.define_error("Error", ruby.exception_standard_error())?;
    ERROR.set(error);
    UNSUPPORTED.set(module.define_error("UnsupportedError", error)?);
    TERMINATE.set(module.define_error("Terminate", ruby.exception_exception())?);
    Ok(())
}

/// The exception that is being unwound, or `NIL`; a small integer while the thread is killed.
pub fn current_error() -> Value {
    // SAFETY: a plain accessor.
    Value::of(unsafe { rb_sys::rb_errinfo() })
}

/// Whether it is an exception, or none: not the number or the VM's own object of a throw, or of the end of the thread.
#[inline]
pub(super) fn is_exception_or_nil(error: Value) -> bool {
    error == NIL || is_object(error)
}

fn is_object(error: Value) -> bool {
    // SAFETY: what is no immediate begins with its flags.
    !rb_sys::SPECIAL_CONST_P(error.raw())
        && unsafe { rb_sys::RB_BUILTIN_TYPE(error.raw()) } != rb_sys::ruby_value_type::RUBY_T_IMEMO
}

/// The fiber that runs does not go on with a throw, or the end of the thread, but as if that had not come to it.
pub fn end_unwinding() {
    if !is_exception_or_nil(current_error()) {
        // SAFETY: nil is always allowed.
        unsafe { rb_sys::rb_set_errinfo(NIL.raw()) };
    }
}
