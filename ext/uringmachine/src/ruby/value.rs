//! A Ruby object as the machine keeps it.

use std::fmt;

use magnus::rb_sys::{AsRawValue, FromRawValue};
use magnus::{Error, IntoValue, Ruby, TryConvert};
use rb_sys::ruby_value_type as kinds;
use rb_sys::VALUE;

use super::{call, classes};

/// A Ruby object, or a small number, `nil` and the like: known by its identity. Other than [`magnus::Value`] it can be
/// compared and lie in tables of the machine's, which the collector visits (`Machine::mark`). Whoever keeps one anywhere
/// else than on a frame of a method, or in what `mark` visits, keeps a number.
///
/// There is none but those that Ruby has given.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Value(VALUE);

/// nil
pub const NIL: Value = Value(rb_sys::Qnil as VALUE);
/// true
pub const TRUE: Value = Value(rb_sys::Qtrue as VALUE);
/// false
pub const FALSE: Value = Value(rb_sys::Qfalse as VALUE);
/// What Ruby has where there is nothing, not even nil: no object.
pub const UNDEF: Value = Value(rb_sys::Qundef as VALUE);

impl Value {
    /// A value as Ruby's C API has it.
    #[inline]
    pub(super) const fn of(raw: VALUE) -> Self {
        Self(raw)
    }

    /// As Ruby's C API takes it.
    #[inline]
    pub(super) const fn raw(self) -> VALUE {
        self.0
    }

    /// As magnus takes it.
    #[inline]
    pub fn to_magnus(self) -> magnus::Value {
        // SAFETY: there is no Value but those that Ruby has given.
        unsafe { magnus::Value::from_raw(self.0) }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Value({:#x})", self.0)
    }
}

impl From<magnus::Value> for Value {
    #[inline]
    fn from(value: magnus::Value) -> Self {
        Self(value.as_raw())
    }
}

impl TryConvert for Value {
    #[inline]
    fn try_convert(value: magnus::Value) -> Result<Self, Error> {
        Ok(value.into())
    }
}

impl IntoValue for Value {
    #[inline]
    fn into_value_with(self, _: &Ruby) -> magnus::Value {
        self.to_magnus()
    }
}

/// The arguments of a method as they come from magnus.
#[inline]
pub fn values(arguments: &[magnus::Value]) -> &[Value] {
    // SAFETY: both are a VALUE, and nothing else (repr(transparent)).
    unsafe { std::slice::from_raw_parts(arguments.as_ptr().cast(), arguments.len()) }
}

/// A small Integer: counts and negated errnos, always a Fixnum.
#[inline]
pub const fn fixnum(number: i64) -> Value {
    Value(((number << 1) | 1) as VALUE)
}

/// A small number as a method returns it.
#[inline]
pub fn number(number: i32) -> Value {
    fixnum(i64::from(number))
}

/// The value of a Fixnum, if it is one.
#[inline]
pub fn as_fixnum(value: Value) -> Option<i64> {
    (value.0 & 1 == 1).then_some(value.0 as i64 >> 1)
}

/// true or false.
#[inline]
pub fn boolean(answer: bool) -> Value {
    if answer {
        TRUE
    } else {
        FALSE
    }
}

/// Whether it is neither nil nor false.
#[inline]
pub fn truthy(value: Value) -> bool {
    value.0 & !NIL.0 != 0
}

#[inline]
fn is(value: Value, kind: kinds) -> bool {
    // SAFETY: what is no immediate begins with its flags.
    unsafe { rb_sys::RB_TYPE_P(value.0, kind) }
}

/// Whether a value is a String.
#[inline]
pub fn is_string(value: Value) -> bool {
    is(value, kinds::RUBY_T_STRING)
}

/// Whether a value is an Array.
pub fn is_array(value: Value) -> bool {
    is(value, kinds::RUBY_T_ARRAY)
}

/// Whether a value is a Symbol.
pub fn is_symbol(value: Value) -> bool {
    is(value, kinds::RUBY_T_SYMBOL)
}

/// Whether a value is an object of a class that a program may write: no String, class, or other kind of Ruby's own.
#[inline]
pub fn is_object(value: Value) -> bool {
    is(value, kinds::RUBY_T_OBJECT)
}

/// Whether a value is a Hash.
pub fn is_hash(value: Value) -> bool {
    is(value, kinds::RUBY_T_HASH)
}

/// Whether a value is an IO: not only what answers as one.
pub fn is_file(value: Value) -> bool {
    is(value, kinds::RUBY_T_FILE)
}

/// The number, if a value is a Float.
#[inline]
pub fn as_float(value: Value) -> Option<f64> {
    // SAFETY: a look at the flags, and at what is a Float.
    unsafe { rb_sys::RB_FLOAT_TYPE_P(value.0).then(|| rb_sys::rb_float_value(value.0)) }
}

/// A Float.
pub fn float(number: f64) -> Result<Value, super::Raise> {
    // SAFETY: a new object; memory may be short.
    super::may_raise(|| unsafe { rb_sys::rb_float_new(number) })
}

/// Whether a value is an IO::Buffer.
#[inline]
pub fn is_io_buffer(value: Value) -> bool {
    let class = classes::io_buffer();
    // SAFETY: what is no immediate begins with an RBasic.
    let is_direct = unsafe {
        !rb_sys::SPECIAL_CONST_P(value.0) && (*(value.0 as *const rb_sys::RBasic)).klass == class.0
    };
    is_direct || is_a(value, class)
}

/// Whether an object is frozen.
pub fn is_frozen(value: Value) -> bool {
    // SAFETY: a check of a flag.
    unsafe { rb_sys::rb_obj_frozen_p(value.0) == TRUE.0 }
}

/// Whether an object is of a class. Blockers may be objects that Ruby hides, which have none.
pub fn is_a(object: Value, class: Value) -> bool {
    // SAFETY: what is no immediate begins with an RBasic.
    unsafe {
        if !rb_sys::SPECIAL_CONST_P(object.0) && (*(object.0 as *const rb_sys::RBasic)).klass == 0 {
            return false;
        }
        rb_sys::rb_obj_is_kind_of(object.0, class.0) == TRUE.0
    }
}

/// Whether an object's class is this one itself, and no subclass or singleton class of it.
#[inline]
pub fn is_just(object: Value, class: Value) -> bool {
    // SAFETY: an object of the heap begins with its class.
    unsafe {
        !rb_sys::SPECIAL_CONST_P(object.0)
            && (*(object.0 as *const rb_sys::RBasic)).klass == class.0
    }
}

/// The class of an object of the heap as [`is_just`] compares it: its singleton class, if it has one.
pub fn just_class(object: Value) -> Value {
    // SAFETY: an object of the heap begins with its class.
    Value(unsafe { (*(object.0 as *const rb_sys::RBasic)).klass })
}

/// The class of an object.
pub fn class_of(object: Value) -> Value {
    // SAFETY: a plain accessor.
    Value(unsafe { rb_sys::rb_obj_class(object.0) })
}

/// Whether a class is another one, or inherits from it. Both must be classes or modules.
pub fn inherits(class: Value, from: Value) -> bool {
    is_a(class, classes::module())
        && is_a(from, classes::module())
        // SAFETY: classes, both of them.
        && unsafe { rb_sys::rb_class_inherited_p(class.0, from.0) } == TRUE.0
}

/// The name of a value's class, for messages.
pub fn class_name(value: Value) -> String {
    if value == NIL {
        return "nil".into();
    }
    // SAFETY: the name of a class is a C string that lives as long as the class.
    unsafe {
        let name = rb_sys::rb_obj_classname(value.0);
        std::ffi::CStr::from_ptr(name)
            .to_string_lossy()
            .into_owned()
    }
}

/// What an object is called, as `inspect` does by default: its class, and where it is.
pub fn name_with_address(object: Value) -> String {
    format!("#<{}:{:#018x}>", class_name(object), object.0)
}

/// A Symbol.
pub fn symbol(name: &str) -> Value {
    // SAFETY: those whose names are written here are never collected.
    Value(unsafe { rb_sys::rb_id2sym(call::id(name)) })
}

/// Keeps an object for ever, where it is.
pub fn keep_for_ever(object: Value) {
    // SAFETY: the object is alive.
    unsafe { rb_sys::rb_gc_register_mark_object(object.0) };
}

/// Keeps an object on the caller's frame until here, whatever the compiler makes of it.
#[inline(always)]
pub fn keep_until_here(object: Value) {
    std::hint::black_box(object);
}

/// Marks an object, pinned: called by the collector, of an object that is alive, or of none.
pub(crate) fn mark(object: Value) {
    // SAFETY: the collector runs, on behalf of `DataTypeFunctions::mark`; else this does nothing that is not allowed.
    unsafe { rb_sys::rb_gc_mark(object.0) };
}

/// Marks several.
pub(crate) fn mark_all(objects: &[Value]) {
    objects.iter().copied().for_each(mark);
}

/// What an instance variable of an object holds, also one that programs do not see (it has no `@`); nil if there is none.
#[inline]
pub fn variable(object: Value, name: super::Id) -> Value {
    // SAFETY: a plain accessor.
    Value(unsafe { rb_sys::rb_attr_get(object.0, name) })
}

/// Sets an instance variable.
///
/// # Errors
/// FrozenError.
pub fn set_variable(object: Value, name: super::Id, value: Value) -> Result<(), super::Raise> {
    // SAFETY: the values are Ruby's.
    super::may_raise(|| unsafe { rb_sys::rb_ivar_set(object.0, name, value.0) }).map(drop)
}
