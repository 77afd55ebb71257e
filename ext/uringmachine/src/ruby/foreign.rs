//! Other extensions: the data of their objects, and C code of theirs that calls Ruby.

use std::ffi::{c_int, c_void, CStr};
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::{classes, errors, is_a, may_raise, may_raise_for, Raise, Value, NIL};

/// A class of another extension, whose objects have data of one type.
pub struct Foreign {
    class: &'static str,
    /// What the type is called.
    name: &'static CStr,
    /// The type, once an object of the class was seen.
    kind: AtomicPtr<rb_sys::rb_data_type_t>,
}

/// Why an object has no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoData {
    /// It is of another class.
    Other,
    /// The class's data are of another type than was expected.
    Unknown,
    /// It has none yet.
    Uninitialized,
}

impl Foreign {
    /// A class by its path, and the name of its type.
    pub const fn new(class: &'static str, name: &'static CStr) -> Self {
        Self {
            class,
            name,
            kind: AtomicPtr::new(null_mut()),
        }
    }

    /// The data of an object: they stay as long as the object does, unless the extension frees them before.
    pub fn data(&self, object: Value) -> Result<NonNull<c_void>, NoData> {
        let mut kind = self.kind.load(Ordering::Relaxed);
        if kind.is_null() {
            kind = self.find(object)?;
            self.kind.store(kind, Ordering::Relaxed);
        }
        // SAFETY: a type that an object has is never freed; Ruby looks whether this object's is the same.
        let data = unsafe {
            if rb_sys::rb_typeddata_is_kind_of(object.raw(), kind) == 0 {
                return Err(NoData::Other);
            }
            rb_sys::rb_check_typeddata(object.raw(), kind)
        };
        NonNull::new(data).ok_or(NoData::Uninitialized)
    }

    /// The type of the class's data, by an object.
    fn find(&self, object: Value) -> Result<*mut rb_sys::rb_data_type_t, NoData> {
        let class = classes::at(self.class).map_err(|_| NoData::Other)?;
        // SAFETY: a look at the flags of what is no immediate.
        let has_data =
            unsafe { rb_sys::RB_TYPE_P(object.raw(), rb_sys::ruby_value_type::RUBY_T_DATA) };
        if !has_data || !is_a(object, class) {
            return Err(NoData::Other);
        }
        // SAFETY: an object with data. The lowest bits of the type's address may be flags; a type has a name.
        unsafe {
            if !rb_sys::RTYPEDDATA_P(object.raw()) {
                return Err(NoData::Unknown);
            }
            let kind = rb_sys::RTYPEDDATA_TYPE(object.raw()).map_addr(|address| address & !3);
            if kind.is_null() || CStr::from_ptr((*kind).wrap_struct_name) != self.name {
                return Err(NoData::Unknown);
            }
            Ok(kind.cast_mut())
        }
    }
}

/// Calls C code that may call Ruby.
///
/// # Errors
/// What that raises.
///
/// # Safety
/// Nothing that runs in `call` needs dropping when it is jumped over.
#[inline]
pub unsafe fn run<T>(call: impl FnOnce() -> T) -> Result<T, Raise> {
    may_raise_for(call)
}

/// What C code has stopped in this fiber by a protection of its own, and left to be gone on with: by its state
/// (rb_protect), and by the exception, if it is one. `None` if it has stopped nothing.
pub fn left_over(state: i64) -> Option<Raise> {
    // TAG_RETURN to TAG_FATAL (vm_core.h, enum ruby_tag_type).
    let state = c_int::try_from(state).ok()?;
    if !(1..=8).contains(&state) {
        return None;
    }
    let exception = errors::current_error();
    if is_a(exception, classes::exception()) {
        // SAFETY: it is being gone on with; `$!` is nobody's any more.
        unsafe { rb_sys::rb_set_errinfo(NIL.raw()) };
        return Some(Raise::Exception(exception));
    }
    const RAISE: c_int = 6;
    if state == RAISE {
        return None;
    }
    // SAFETY: the number of a jump, which is stopped again.
    may_raise(|| unsafe {
        rb_sys::rb_jump_tag(state);
        #[allow(unreachable_code)]
        NIL.raw()
    })
    .err()
}
