//! A receiver or an argument of a class of ours, its type checked without a call that may raise: magnus' own `&T` and
//! `Obj<T>` go through `rb_protect`, at 12 ns each.

use std::marker::PhantomData;
use std::ops::Deref;

use magnus::{DataType, Error, Ruby, TryConvert, TypedData};

use super::{arguments, Value};

/// An object of a class of ours, and its data. It lives on frames of methods, where the collector sees it.
pub struct This<T: TypedData> {
    value: Value,
    data: *const T,
    /// It belongs to the thread that has Ruby's lock.
    kind: PhantomData<*const T>,
}

impl<T: TypedData> Clone for This<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: TypedData> Copy for This<T> {}

impl<T: TypedData> This<T> {
    /// The data of an object; `None` if it is of another class.
    #[inline(always)]
    pub fn find(value: Value) -> Option<Self> {
        let wanted: *const DataType = T::data_type();
        // SAFETY: what is no immediate begins with its flags; the type is read of typed data only.
        unsafe {
            let raw = value.raw();
            if !rb_sys::SPECIAL_CONST_P(raw)
                && rb_sys::RB_BUILTIN_TYPE(raw) == rb_sys::ruby_value_type::RUBY_T_DATA
                && rb_sys::RTYPEDDATA_P(raw)
                && rb_sys::RTYPEDDATA_TYPE(raw) == wanted.cast()
            {
                return Some(Self {
                    value,
                    data: rb_sys::RTYPEDDATA_GET_DATA(raw).cast(),
                    kind: PhantomData,
                });
            }
        }
        None
    }

    /// The object.
    #[inline]
    pub fn value(&self) -> Value {
        self.value
    }

    /// Keeps the object on this frame until here, whatever the compiler makes of it.
    #[inline(always)]
    pub fn keep(self) {
        std::hint::black_box(self.value);
    }
}

impl<T: TypedData> Deref for This<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the type was checked, and the object is on a frame of the method that runs.
        unsafe { &*self.data }
    }
}

impl<T: TypedData> TryConvert for This<T> {
    #[inline(always)]
    fn try_convert(value: magnus::Value) -> Result<Self, Error> {
        Self::find(value.into()).ok_or_else(|| wrong::<T>(value))
    }
}

/// TypeError, in the words of every argument of ours.
#[cold]
fn wrong<T: TypedData>(value: magnus::Value) -> Error {
    let ruby = Ruby::get_with(value);
    let class = T::class(&ruby).to_string().replace("UringMachine", "UM");
    let name = class.rsplit("::").next().unwrap_or(&class).to_lowercase();
    let raise = arguments::wrong_type(value.into(), &name, &format!("a {class}"));
    magnus::error::IntoError::into_error(raise, &ruby)
}

/// An object as magnus returns it.
impl<T: TypedData> magnus::IntoValue for This<T> {
    fn into_value_with(self, _: &Ruby) -> magnus::Value {
        self.value.to_magnus()
    }
}
