//! The wrapping of Rust data in Ruby objects.

use std::ffi::{c_void, CStr};

use super::VALUE;

/// A Ruby data type, made at compile time.
pub struct DataType(rb_sys::rb_data_type_t);

// SAFETY: the struct is never written to after it is made.
unsafe impl Sync for DataType {}

type DataFn = unsafe extern "C" fn(*mut c_void);

impl DataType {
    pub const fn new<T>(name: &'static CStr, mark: DataFn, free: DataFn) -> Self {
        unsafe extern "C" fn size<T>(_: *const c_void) -> u64 {
            std::mem::size_of::<T>() as u64
        }
        // SAFETY: an all-zero type is a valid one without functions.
        let mut data_type: rb_sys::rb_data_type_t = unsafe { std::mem::zeroed() };
        data_type.wrap_struct_name = name.as_ptr();
        data_type.function.dmark = Some(mark);
        data_type.function.dfree = Some(free);
        data_type.function.dsize = Some(size::<T>);
        Self(data_type)
    }

    /// The same, with a function that finds the objects anew that a compaction has moved.
    pub const fn compacting(mut self, compact: DataFn) -> Self {
        self.0.function.dcompact = Some(compact);
        self
    }

    /// Makes an object of `class` that owns `data`.
    pub unsafe fn wrap(&'static self, class: VALUE, data: *mut c_void) -> VALUE {
        // SAFETY: the caller gives `data` away.
        unsafe { rb_sys::rb_data_typed_object_wrap(class, data, &self.0) }
    }
}
