//! Ruby, as the floors above use it: what magnus lacks, or has at a price that the hot path does not pay.
//!
//! The only floor that says `rb_sys`. It is safe outside: a [`Value`] is one that Ruby has given, what is asked of it is
//! looked at first or asked of Ruby, and what may raise is called through [`protect`] and comes back as `Err`.

pub mod arguments;
pub mod blocking_operation;
pub mod buffered;
pub mod call;
pub mod classes;
pub mod collections;
pub mod duration;
pub mod errors;
pub mod fiber;
pub mod foreign;
pub mod gvl;
pub mod io;
pub mod io_buffer;
pub mod method;
mod protect;
pub mod room;
pub mod string;
pub mod sync;
pub mod this;
pub mod trace;
mod value;
pub mod version;

use std::ffi::{c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

pub use call::{block, block_given, call, id, run_block, tag, yield_, Name};
pub use collections::{array, array_of, options};
pub use errors::{Outcome, Raise};
use protect::{may_raise, may_raise_for};
use rb_sys::VALUE;
pub use value::{
    as_fixnum, as_float, boolean, class_name, class_of, fixnum, float, inherits, is_a, is_array,
    is_file, is_frozen, is_hash, is_io_buffer, is_just, is_object, is_string, is_symbol,
    just_class, keep_for_ever, keep_until_here, name_with_address, number, set_variable, symbol,
    truthy, values, variable, Value, FALSE, NIL, TRUE, UNDEF,
};
pub(crate) use value::{mark, mark_all};

/// The name of a method, a constant or a variable.
pub type Id = rb_sys::ID;

/// The event of a thread's end, after all of its program (include/ruby/internal/event.h).
const EVENT_THREAD_END: u32 = 0x0800;

type BlockFn = unsafe extern "C" fn(VALUE, VALUE, c_int, *const VALUE, VALUE) -> VALUE;
type UnblockFn = unsafe extern "C" fn(*mut c_void);
type EventHookFn = unsafe extern "C" fn(u32, VALUE, VALUE, Id, VALUE);
type NogvlFn = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// `struct rb_ractor_local_storage_type` (include/ruby/ractor.h).
#[repr(C)]
pub struct RactorLocalStorageType {
    pub mark: Option<unsafe extern "C" fn(*mut c_void)>,
    pub free: Option<unsafe extern "C" fn(*mut c_void)>,
}

// What rb-sys does not declare.
extern "C" {
    fn rb_fiber_current() -> VALUE;
    fn rb_fiber_alive_p(fiber: VALUE) -> VALUE;
    fn rb_fiber_new(func: BlockFn, object: VALUE) -> VALUE;
    fn rb_fiber_transfer(fiber: VALUE, argc: c_int, argv: *const VALUE) -> VALUE;
    fn rb_fiber_raise(fiber: VALUE, argc: c_int, argv: *const VALUE) -> VALUE;
    fn rb_obj_is_fiber(object: VALUE) -> VALUE;
    fn rb_fiber_scheduler_get() -> VALUE;
    fn rb_fiber_scheduler_current() -> VALUE;
    fn rb_fiber_scheduler_set(scheduler: VALUE) -> VALUE;
    fn ruby_stop(state: c_int) -> !;

    fn rb_thread_current() -> VALUE;
    static rb_cRactor: VALUE;
    fn rb_thread_check_ints();
    fn rb_thread_interrupted(thread: VALUE) -> c_int;
    fn rb_thread_create(
        func: unsafe extern "C" fn(*mut c_void) -> VALUE,
        data: *mut c_void,
    ) -> VALUE;
    /// nil if it has ended.
    fn rb_thread_wakeup_alive(thread: VALUE) -> VALUE;
    fn rb_thread_lock_native_thread() -> bool;
    fn rb_thread_add_event_hook(thread: VALUE, func: EventHookFn, events: u32, data: VALUE);
    fn rb_thread_remove_event_hook(thread: VALUE, func: EventHookFn) -> c_int;
    fn rb_nogvl(
        func: NogvlFn,
        data: *mut c_void,
        unblock: Option<UnblockFn>,
        unblock_data: *mut c_void,
        flags: c_int,
    ) -> *mut c_void;

    pub fn rb_ractor_local_storage_ptr_newkey(kind: *const RactorLocalStorageType) -> *mut c_void;
    pub fn rb_ractor_local_storage_ptr(key: *mut c_void) -> *mut c_void;
    pub fn rb_ractor_local_storage_ptr_set(key: *mut c_void, value: *mut c_void);

    fn rb_io_descriptor(io: VALUE) -> c_int;
    fn rb_io_timeout(io: VALUE) -> VALUE;
    fn rb_io_buffer_get_bytes(buffer: VALUE, base: *mut *mut c_void, size: *mut usize) -> c_int;
    fn rb_io_buffer_get_bytes_for_reading(
        buffer: VALUE,
        base: *mut *const c_void,
        size: *mut usize,
    );
    fn rb_io_buffer_get_bytes_for_writing(buffer: VALUE, base: *mut *mut c_void, size: *mut usize);
    fn rb_io_buffer_new(base: *mut c_void, size: usize, flags: c_int) -> VALUE;
    fn rb_io_buffer_free(buffer: VALUE) -> VALUE;
    fn rb_io_buffer_resize(buffer: VALUE, size: usize);
    fn rb_io_buffer_lock(buffer: VALUE) -> VALUE;
    fn rb_io_buffer_unlock(buffer: VALUE) -> VALUE;

    fn rb_process_status_wait(pid: libc::pid_t, flags: c_int) -> VALUE;
    fn rb_time_interval(duration: VALUE) -> libc::timeval;
    fn rb_make_exception(argc: c_int, argv: *const VALUE) -> VALUE;
    fn rb_syserr_new(errno: c_int, message: *const c_char) -> VALUE;

    fn rb_profile_frames(
        start: c_int,
        limit: c_int,
        frames: *mut VALUE,
        lines: *mut c_int,
    ) -> c_int;
    fn rb_profile_frame_path(frame: VALUE) -> VALUE;
    fn rb_profile_frame_first_lineno(frame: VALUE) -> VALUE;
    fn rb_profile_frame_method_name(frame: VALUE) -> VALUE;
    fn rb_profile_frame_qualified_method_name(frame: VALUE) -> VALUE;
    fn rb_intern2(name: *const c_char, length: c_long) -> Id;
}

/// How often the collector has run.
#[inline]
pub fn gc_runs() -> usize {
    // SAFETY: a plain accessor.
    unsafe { rb_sys::rb_gc_count() as usize }
}

/// An object that is kept for ever, or kept by other means, known to all threads.
pub struct Shared(AtomicU64);

impl Shared {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(FALSE.raw()))
    }

    /// The object; false if there is none yet.
    #[inline]
    pub fn get(&self) -> Value {
        Value::of(self.0.load(Ordering::Relaxed))
    }

    /// Sets it, and keeps it for ever.
    pub fn keep(&self, object: Value) {
        keep_for_ever(object);
        self.set(object);
    }

    /// Sets it. Somebody else keeps it.
    pub fn set(&self, object: Value) {
        self.0.store(object.raw(), Ordering::Relaxed);
    }
}

/// An Integer.
pub fn integer(number: i64) -> Outcome {
    // SAFETY: a number; memory may be short for a large one.
    may_raise(|| unsafe { rb_sys::rb_ll2inum(number) })
}

/// An Integer that is not negative.
pub fn unsigned(number: u64) -> Outcome {
    // SAFETY: as above.
    may_raise(|| unsafe { rb_sys::rb_ull2inum(number) })
}

/// What Ruby takes for a C int.
///
/// # Errors
/// TypeError, RangeError.
pub fn to_int(value: Value) -> Result<c_int, Raise> {
    // SAFETY: a value of Ruby's.
    may_raise_for(|| unsafe { rb_sys::rb_num2int(value.raw()) as c_int })
}

/// What Ruby takes for a 64-bit number.
///
/// # Errors
/// As [`to_int`].
#[inline]
pub fn to_long(value: Value) -> Result<i64, Raise> {
    match as_fixnum(value) {
        Some(number) => Ok(number),
        None => convert_to_long(value),
    }
}

#[cold]
fn convert_to_long(value: Value) -> Result<i64, Raise> {
    // SAFETY: as above.
    may_raise_for(|| unsafe { rb_sys::rb_num2ll(value.raw()) })
}

/// Whether an object is dead, and not swept or finalized yet: what it has kept may be gone. One that Ruby cannot be asked about
/// is taken for dead.
pub fn is_garbage(object: Value) -> bool {
    type Ask = unsafe extern "C" fn(VALUE) -> c_int;
    static FOUND: std::sync::OnceLock<Option<Ask>> = std::sync::OnceLock::new();
    // SAFETY: a symbol of that name has this signature (internal/gc.h).
    let ask = FOUND.get_or_init(|| unsafe {
        version::symbol(c"rb_objspace_garbage_object_p")
            .map(|found| std::mem::transmute::<*mut c_void, Ask>(found))
    });
    // SAFETY: the slot is the object's until it has been freed, which whoever asks is told of.
    ask.is_none_or(|ask| unsafe { ask(object.raw()) != 0 })
}

/// Has the collector run, as GC.start.
pub fn collect_garbage() {
    // SAFETY: with Ruby's lock; finalizers do not run in it.
    unsafe { rb_sys::rb_gc() };
}

/// Says that the extension may be used by several Ractors.
pub fn allow_ractors() {
    // SAFETY: called when the extension is loaded.
    unsafe { rb_sys::rb_ext_ractor_safe(true) };
}

/// Process::Status.wait: the status of a child, or nil. $? is left alone.
pub fn process_status(pid: libc::pid_t, flags: c_int) -> Outcome {
    // SAFETY: numbers.
    may_raise(|| unsafe { rb_process_status_wait(pid, flags) })
}
