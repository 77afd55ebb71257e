//! UringMachine, alias UM: the class whose instances own a machine, and the wrapping of Rust data in
//! Ruby objects.

use std::ffi::{c_int, c_void, CStr};
use std::sync::atomic::{AtomicU64, Ordering};

use uringmachine_runtime::ring::{DEFAULT_ENTRIES, MAX_ENTRIES};
use uringmachine_runtime::{Features, Machine};

use crate::core::Core;
use crate::errors;
use crate::scheduler::new_core;
use crate::sys::{self, Raise, FALSE, NIL, TRUE, VALUE};

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

    /// Makes an object of `class` that owns `data`.
    pub unsafe fn wrap(&'static self, class: VALUE, data: *mut c_void) -> VALUE {
        // SAFETY: the caller gives `data` away.
        unsafe { rb_sys::rb_data_typed_object_wrap(class, data, &self.0) }
    }

    /// The data of an object of this type; raises TypeError for any other.
    #[inline]
    pub unsafe fn get(&'static self, value: VALUE) -> *mut c_void {
        // SAFETY: the check is what this call does.
        unsafe { rb_sys::rb_check_typeddata(value, &self.0) }
    }
}

static TYPE: DataType = DataType::new::<Um>(c"UringMachine", mark, free);
static CLASS: AtomicU64 = AtomicU64::new(0);

/// What a UM holds.
struct Um {
    core: Option<Box<Core>>,
}

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    if let Some(core) = unsafe { &(*data.cast::<Um>()).core } {
        core.mark();
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead, so no fiber waits in its machine.
    let um = unsafe { Box::from_raw(data.cast::<Um>()) };
    if let Some(mut core) = um.core {
        // Only a scheduler that was never closed leaves operations; none of them can be waited for
        // here, so what the kernel may still touch is never freed.
        if core.machine.operations() > 0 && !core.is_forked() {
            core.asleep = false;
            std::mem::forget(core);
        }
    }
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let um = Box::new(Um { core: None });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(um).cast()) }
}

/// The core of a UM.
pub unsafe fn core(value: VALUE) -> Result<*mut Core, Raise> {
    // SAFETY: the type is checked; the box does not move.
    unsafe {
        let um = &mut *TYPE.get(value).cast::<Um>();
        match &mut um.core {
            Some(core) => Ok(&raw mut **core),
            None => Err(Raise::new(errors::error_class(), "uninitialized machine")),
        }
    }
}

/// Keeps the machine of a UM for ever.
pub unsafe fn leak(value: VALUE) {
    // SAFETY: the type is checked.
    if let Some(core) = unsafe { (*TYPE.get(value).cast::<Um>()).core.take() } {
        std::mem::forget(core);
    }
}

/// UM.new without arguments.
pub unsafe fn new_default() -> Result<VALUE, Raise> {
    // SAFETY: the class is defined when the extension is loaded; a fresh object has no core.
    unsafe {
        let object = allocate(CLASS.load(Ordering::Relaxed));
        (*TYPE.get(object).cast::<Um>()).core = Some(new_core(DEFAULT_ENTRIES)?);
        Ok(object)
    }
}

/// UM.new(size: 256)
unsafe extern "C" fn initialize(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        sys::method(|| {
            let entries = match argc {
                0 => DEFAULT_ENTRIES,
                1 if rb_sys::rb_obj_is_kind_of(*argv, rb_sys::rb_cHash) == TRUE => size(*argv)?,
                _ => {
                    return Err(Raise::argument(&format!(
                        "wrong number of arguments (given {argc}, expected 0)"
                    )))
                }
            };
            let um = &mut *TYPE.get(this).cast::<Um>();
            if um.core.is_some() {
                return Err(Raise::new(errors::error_class(), "already initialized"));
            }
            um.core = Some(new_core(entries)?);
            Ok(this)
        })
    }
}

unsafe fn size(options: VALUE) -> Result<u32, Raise> {
    // SAFETY: `options` is a Hash.
    unsafe {
        let key = rb_sys::rb_id2sym(sys::id("size"));
        let size = rb_sys::rb_hash_lookup2(options, key, sys::UNDEF);
        let known = usize::from(size != sys::UNDEF);
        if rb_sys::rb_hash_size_num(options) as usize != known {
            return Err(Raise::argument("unknown keyword; UM.new takes size:"));
        }
        if size == sys::UNDEF {
            return Ok(DEFAULT_ENTRIES);
        }
        match sys::as_fixnum(size) {
            Some(entries) if (1..=i64::from(MAX_ENTRIES)).contains(&entries) => Ok(entries as u32),
            Some(entries) => Err(Raise::argument(&format!(
                "size: {entries} is not within 1..{MAX_ENTRIES}"
            ))),
            None => Err(Raise::new(
                rb_sys::rb_eTypeError,
                "size: must be an Integer",
            )),
        }
    }
}

/// UM.supported?: whether the kernel and the sandbox allow io_uring.
unsafe extern "C" fn is_supported(_class: VALUE) -> VALUE {
    match Machine::<()>::new(1, Features::from_environment()) {
        Ok(_) => TRUE,
        Err(_) => FALSE,
    }
}

/// UM.unsupported_reason: why io_uring cannot be had, or nil.
unsafe extern "C" fn unsupported_reason(_class: VALUE) -> VALUE {
    match Machine::<()>::new(1, Features::from_environment()) {
        Ok(_) => NIL,
        Err(error) => {
            let text = error.to_string();
            // SAFETY: the text is copied.
            unsafe { rb_sys::rb_utf8_str_new(text.as_ptr().cast(), text.len() as _) }
        }
    }
}

/// Defines the class and its alias.
pub unsafe fn define() -> VALUE {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class(c"UringMachine".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_const(rb_sys::rb_cObject, c"UM".as_ptr(), class);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        CLASS.store(class, Ordering::Relaxed);
        sys::define_method(class, c"initialize", initialize as *const (), -1);
        sys::define_singleton_method(class, c"supported?", is_supported as *const (), 0);
        sys::define_singleton_method(
            class,
            c"unsupported_reason",
            unsupported_reason as *const (),
            0,
        );
        class
    }
}
