//! UM::AsyncOp: an operation that was started and is awaited later. Timeouts are the only kind.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::machine::caller::{answer, Caller};
use crate::machine::line::{self, Waiters};
use crate::machine::switch::Failure;
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, duration, Raise, NIL, VALUE};

/// What an AsyncOp holds.
struct AsyncOp {
    /// The UM it was started on; `NIL` for one that was not made by a machine.
    machine: VALUE,
    deadline: u64,
    state: State,
    waiters: Waiters,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Done(i32),
}

static TYPE: DataType = DataType::new::<AsyncOp>(c"UM::AsyncOp", mark, free);
static CLASS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    unsafe {
        let operation = data.cast::<AsyncOp>();
        rb_sys::rb_gc_mark((*operation).machine);
        (*operation).waiters.mark();
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead.
    drop(unsafe { Box::from_raw(data.cast::<AsyncOp>()) });
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let operation = Box::new(AsyncOp {
        machine: NIL,
        deadline: 0,
        state: State::Running,
        waiters: Waiters::default(),
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(operation).cast()) }
}

/// The data of one that a machine has started.
unsafe fn get<'a>(value: VALUE) -> Result<&'a mut AsyncOp, Raise> {
    // SAFETY: the type is checked; no two references are held across a wait.
    unsafe {
        let operation = &mut *TYPE.get(value).cast::<AsyncOp>();
        if operation.machine == NIL {
            return Err(Raise::misuse(
                "uninitialized AsyncOp: UM#prep_timeout makes them",
            ));
        }
        if operation.state == State::Running
            && operation.deadline <= uringmachine_runtime::clock::now()
        {
            operation.state = State::Done(-libc::ETIME);
        }
        Ok(operation)
    }
}

/// Makes a running timeout.
pub unsafe fn start(machine: VALUE, nanoseconds: u64) -> Result<VALUE, Raise> {
    // SAFETY: the class is defined when the extension is loaded.
    unsafe {
        let object = allocate(CLASS.load(Ordering::Relaxed));
        let operation = &mut *TYPE.get(object).cast::<AsyncOp>();
        operation.machine = machine;
        operation.deadline = duration::from_now(nanoseconds);
        Ok(object)
    }
}

/// @method UringMachine::AsyncOp#kind
/// @return [Symbol] :timeout
/// @raise [UringMachine::Error] for one that no machine has made
/// @example
///   machine.prep_timeout(1).kind #=> :timeout
unsafe extern "C" fn kind(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            get(this)?;
            Ok(rb_sys::rb_id2sym(ruby::id("timeout")))
        })
    }
}

/// @method UringMachine::AsyncOp#done?
/// @return [Boolean] whether its time is up, or it was cancelled
/// @example
///   machine.prep_timeout(1).done? #=> false
unsafe extern "C" fn is_done(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::boolean(get(this)?.state != State::Running))) }
}

/// @method UringMachine::AsyncOp#result
/// @return [Integer, nil] -ETIME when its time was up, -ECANCELED if it was cancelled; nil while it runs
/// @example
///   operation.result #=> -62
unsafe extern "C" fn result(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            Ok(match get(this)?.state {
                State::Running => NIL,
                State::Done(result) => ruby::fixnum(i64::from(result)),
            })
        })
    }
}

/// @method UringMachine::AsyncOp#cancelled?
/// @return [Boolean, nil] whether it was cancelled; nil while it runs
/// @example
///   operation.cancelled? #=> false
unsafe extern "C" fn is_cancelled(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            Ok(match get(this)?.state {
                State::Running => NIL,
                State::Done(result) => ruby::boolean(result == -libc::ECANCELED),
            })
        })
    }
}

/// Ends it before its time; whoever awaits it raises Errno::ECANCELED. One that is done is left alone.
///
/// @method UringMachine::AsyncOp#cancel
/// @return [UringMachine::AsyncOp] self
/// @example
///   operation.cancel.cancelled? #=> true
unsafe extern "C" fn cancel(this: VALUE) -> VALUE {
    // SAFETY: the type is checked; the GVL guards the core's tasks.
    unsafe {
        ruby::method(|| {
            let operation = get(this)?;
            if operation.state != State::Running {
                return Ok(this);
            }
            operation.state = State::Done(-libc::ECANCELED);
            operation.waiters.wake_all();
            Ok(this)
        })
    }
}

/// Waits until its time is up.
///
/// @method UringMachine::AsyncOp#await
/// @alias UringMachine::AsyncOp#join
/// @return [Integer] -ETIME
/// @raise [Errno::ECANCELED] if it is cancelled meanwhile. An exception that ends the wait cancels it too
/// @example
///   machine.prep_timeout(0.01).await #=> -62
unsafe extern "C" fn wait(this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        ruby::method(|| {
            let caller = Caller::new(get(this)?.machine)?;
            answer(wait_for(&caller, this))
        })
    }
}

unsafe fn wait_for(caller: &Caller, this: VALUE) -> Result<VALUE, Failure> {
    // SAFETY: see `switch`.
    unsafe {
        loop {
            let operation = get(this)?;
            if let State::Done(result) = operation.state {
                if result == -libc::ECANCELED {
                    return Err(Raise::errno(libc::ECANCELED).into());
                }
                return Ok(ruby::fixnum(i64::from(result)));
            }
            let (machine, deadline) = (operation.machine, operation.deadline);
            let line = || &raw mut (*TYPE.get(this).cast::<AsyncOp>()).waiters;
            match line::wait(caller, machine, line, false, Some(deadline)) {
                Ok(_) => {}
                Err(Failure::Scheduled(value)) => return Err(Failure::Scheduled(value)),
                Err(failure) => {
                    let operation = get(this)?;
                    if operation.state == State::Running {
                        operation.state = State::Done(-libc::ECANCELED);
                        operation.waiters.wake_all();
                    }
                    return Err(failure);
                }
            }
        }
    }
}

/// Defines the class.
pub unsafe fn define(module: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class_under(module, c"AsyncOp".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        CLASS.store(class, Ordering::Relaxed);
        ruby::define_method(class, c"kind", kind as *const (), 0);
        ruby::define_method(class, c"done?", is_done as *const (), 0);
        ruby::define_method(class, c"result", result as *const (), 0);
        ruby::define_method(class, c"cancelled?", is_cancelled as *const (), 0);
        ruby::define_method(class, c"cancel", cancel as *const (), 0);
        ruby::define_method(class, c"await", wait as *const (), 0);
        ruby::define_method(class, c"join", wait as *const (), 0);
    }
}
