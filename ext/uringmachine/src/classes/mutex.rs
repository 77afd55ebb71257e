//! UM::Mutex: one fiber at a time, of one machine or of several threads'.

use std::ffi::c_void;

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::line::{self, Waiters};
use crate::ruby::arguments::wrong_type;
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a UM::Mutex holds.
struct Mutex {
    /// The fiber that has it, or `NIL`.
    owner: VALUE,
    waiters: Waiters,
}

static TYPE: DataType = DataType::new::<Mutex>(c"UM::Mutex", mark, free);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    unsafe {
        let mutex = data.cast::<Mutex>();
        rb_sys::rb_gc_mark((*mutex).owner);
        (*mutex).waiters.mark();
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead.
    drop(unsafe { Box::from_raw(data.cast::<Mutex>()) });
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let mutex = Box::new(Mutex {
        owner: NIL,
        waiters: Waiters::default(),
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(mutex).cast()) }
}

#[inline]
unsafe fn get(value: VALUE) -> Result<*mut Mutex, Raise> {
    // SAFETY: a check of the type.
    match unsafe { TYPE.find(value) } {
        Some(data) => Ok(data.cast()),
        None => Err(wrong_type(value, "mutex", "a UM::Mutex")),
    }
}

/// Runs a block while no other fiber, of any thread, runs one for the same mutex.
///
/// @method UringMachine#synchronize(mutex, &block)
/// @param mutex [UringMachine::Mutex]
/// @return [Object] what the block returns
/// @raise [UringMachine::Error] if this fiber has the mutex already
/// @raise [TypeError] if mutex is no UM::Mutex
/// @raise [ArgumentError] without a block
/// @example
///   machine.synchronize(mutex) { connection.query(sql) }
unsafe extern "C" fn synchronize(this: VALUE, mutex: VALUE) -> VALUE {
    // SAFETY: see `switch`; the mutex is on Ruby's frame of the call. The block may unwind through this
    // frame, which has nothing to drop.
    unsafe {
        let data = match TYPE.find(mutex) {
            Some(data) if (*data.cast::<Mutex>()).owner == NIL => data.cast::<Mutex>(),
            _ => {
                let value = ruby::method(|| wait_and_lock(this, mutex));
                if value != ruby::UNDEF {
                    return value;
                }
                TYPE.get(mutex).cast()
            }
        };
        (*data).owner = ruby::rb_fiber_current();
        rb_sys::rb_ensure(Some(run_block), NIL, Some(unlock), data as VALUE)
    }
}

unsafe extern "C" fn run_block(_: VALUE) -> VALUE {
    // SAFETY: the block of the method that is running.
    unsafe {
        // Asked only here: a call without a block need not be fast.
        if rb_sys::rb_block_given_p() == 0 {
            Raise::argument("no block given (synchronize)").leave();
        }
        rb_sys::rb_yield(NIL)
    }
}

unsafe extern "C" fn unlock(data: VALUE) -> VALUE {
    let data = data as *mut Mutex;
    // SAFETY: the mutex is on the frame of `synchronize`.
    unsafe {
        (*data).owner = NIL;
        if (*data).waiters.len() > 0 {
            (*data).waiters.wake_one();
        }
    }
    NIL
}

/// Waits for a mutex that somebody has: `UNDEF` once it is free, or what the fiber was scheduled with.
unsafe fn wait_and_lock(this: VALUE, mutex: VALUE) -> ruby::Outcome {
    // SAFETY: as `synchronize`.
    unsafe {
        let data = get(mutex)?;
        let me = ruby::rb_fiber_current();
        answer(lock(this, data, me))
    }
}

/// `UNDEF` once the mutex is free.
#[cold]
unsafe fn lock(this: VALUE, data: *mut Mutex, me: VALUE) -> Answer {
    // SAFETY: as `synchronize`.
    unsafe {
        if (*data).owner == me {
            return Err(Raise::misuse("deadlock; this fiber has locked the mutex already").into());
        }
        let caller = Caller::new(this)?;
        let mut again = false;
        loop {
            let waited = line::wait(&caller, this, || &raw mut (*data).waiters, again, None);
            if let Err(failure) = waited {
                // It may have been woken for a mutex that it now leaves to another.
                if (*data).owner == NIL {
                    (*data).waiters.wake_one();
                }
                return Err(failure);
            }
            if (*data).owner == NIL {
                return Ok(ruby::UNDEF);
            }
            again = true;
        }
    }
}

/// @method UringMachine::Mutex#locked?
/// @return [Boolean] whether a fiber has it
/// @example
///   UM::Mutex.new.locked? #=> false
unsafe extern "C" fn is_locked(mutex: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::boolean((*get(mutex)?).owner != NIL))) }
}

/// @method UringMachine::Mutex#owned?
/// @return [Boolean] whether the current fiber has it
/// @example
///   machine.synchronize(mutex) { mutex.owned? } #=> true
unsafe extern "C" fn is_owned(mutex: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            Ok(ruby::boolean(
                (*get(mutex)?).owner == ruby::rb_fiber_current(),
            ))
        })
    }
}

/// Defines the class, and the machine's method for it.
pub unsafe fn define(module: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class_under(module, c"Mutex".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        ruby::define_method(class, c"locked?", is_locked as *const (), 0);
        ruby::define_method(class, c"owned?", is_owned as *const (), 0);
        ruby::define_method(module, c"synchronize", synchronize as *const (), 1);
    }
}
