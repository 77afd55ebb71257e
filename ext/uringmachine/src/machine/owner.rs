//! The Ruby object that owns a machine, and the thread that uses it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry::{keep_looked_into, machines, object_of};
use super::{interrupts, splice, Core};
use crate::machine::thread_call;
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, Raise, NIL, VALUE};

pub static TYPE: DataType = DataType::new::<Um>(c"UringMachine", mark, free);

/// What a UM holds.
pub struct Um {
    pub core: Option<Box<Core>>,
    pub size: u32,
    pub sqpoll: bool,
    pub sidecar: bool,
}

pub unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    if let Some(core) = unsafe { &(*data.cast::<Um>()).core } {
        core.mark();
    }
}

pub unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead, so no fiber waits in its machine.
    let um = unsafe { Box::from_raw(data.cast::<Um>()) };
    if let Some(core) = um.core {
        give_up(core);
    }
}

/// Ends a core that nobody can use any more.
pub fn give_up(mut core: Box<Core>) {
    let place: *mut Core = &raw mut *core;
    machines().retain(|entry| entry.core != place);
    let Some(mut core) = keep_looked_into(core) else {
        return;
    };
    if core.is_forked() {
        core.machine.forsake();
        return;
    }
    thread_call::give_up_all(place);
    if core.machine.is_at_rest() {
        core.machine.drop_results();
        return;
    }
    // SAFETY: a plain accessor. Only the thread that a ring belongs to may enter it, and no Ruby runs
    // while it does.
    let own = core.thread() == unsafe { ruby::rb_thread_current() };
    let shut = own && core.machine.shut_down(SHUT_DOWN_LIMIT);
    core.machine.give_up_work();
    core.machine.drop_results();
    if !shut {
        // What the kernel may still touch is never freed.
        core.machine.leak();
        std::mem::forget(core);
    }
}

/// Gives back the rings of a thread that ends: its fibers go on no more, whatever they wait for. Only the thread
/// itself can have the kernel let go of their memory.
unsafe extern "C" fn end_of_thread(
    _event: u32,
    _data: VALUE,
    _this: VALUE,
    _id: ruby::ID,
    _class: VALUE,
) {
    // SAFETY: a plain accessor.
    let thread = unsafe { ruby::rb_thread_current() };
    // The list is not locked for as long as the kernel may take: other Ractors would wait.
    let own: Vec<*mut Core> = machines()
        .iter()
        // SAFETY: a core in the list lives while it is locked.
        .filter(|entry| unsafe { (*entry.core).thread() == thread && (*entry.core).is_usable() })
        .map(|entry| entry.core)
        .collect();
    let mut waited_in = Vec::new();
    for place in own {
        // SAFETY: no collector runs, here nor in another Ractor, before this thread calls Ruby: the core is alive.
        // None but its own thread uses its ring.
        unsafe {
            let core = &mut *place;
            if core.machine.has_waited_operations() {
                // What `mark_busy` has kept is alive.
                waited_in.push((object_of(place), place));
            }
            if core.machine.is_at_rest() || core.machine.shut_down(SHUT_DOWN_LIMIT) {
                core.machine.close();
            } else {
                // The memory is the kernel's until it is done, and is kept as long: for ever.
                core.machine.leak();
            }
            core.machine.drop_results();
            core.pipes = splice::Pipes::default();
            thread_call::give_up_all(place);
        }
    }
    for (object, core) in waited_in {
        // SAFETY: as above; the object is on this frame.
        unsafe {
            if (*core).machine.is_quiet() {
                (*core).unlock_held();
            }
        }
        std::hint::black_box(object);
    }
}

/// How long the collector waits for the kernel to give an unused machine's memory back, in nanoseconds.
const SHUT_DOWN_LIMIT: u64 = 100_000_000;

pub unsafe fn get<'a>(value: VALUE) -> &'a mut Um {
    // SAFETY: the type is checked; no two references are held across a call into Ruby.
    unsafe { &mut *TYPE.get(value).cast::<Um>() }
}

/// The core of a UM.
pub unsafe fn core(value: VALUE) -> Result<*mut Core, Raise> {
    // SAFETY: the type is checked; the box does not move.
    unsafe {
        match &mut get(value).core {
            Some(core) => Ok(&raw mut **core),
            None => Err(Raise::misuse("uninitialized or closed machine")),
        }
    }
}

/// The entries that were asked for.
pub unsafe fn size_of(value: VALUE) -> u64 {
    // SAFETY: the type is checked.
    u64::from(unsafe { get(value).size })
}

/// The core of a UM for a method that runs on its thread, which is the one that uses it first.
#[inline]
pub unsafe fn own_core(value: VALUE) -> Result<*mut Core, Raise> {
    // SAFETY: as `core`.
    unsafe {
        let core = core(value)?;
        if (*core).thread() == ruby::rb_thread_current() && !(*core).is_forked() {
            return Ok(core);
        }
        bind(value)
    }
}

/// Binds the machine of a UM to the current thread.
#[cold]
pub unsafe fn bind(value: VALUE) -> Result<*mut Core, Raise> {
    // SAFETY: as `core`; what may raise is protected.
    unsafe {
        let core = core(value)?;
        if (*core).is_forked() {
            return Err(Raise::misuse(
                "this machine belongs to the parent process; make one of your own with UM.new",
            ));
        }
        if (*core).thread() != NIL {
            return Err(Raise::misuse("this machine belongs to another thread"));
        }
        let thread = ruby::rb_thread_current();
        // A ring is entered by the native thread that has enabled it, and by no other.
        ruby::rb_thread_lock_native_thread();
        (*core).bind(thread)?;
        // Once for a thread. The main thread ends with its process.
        ruby::rb_thread_remove_event_hook(thread, end_of_thread);
        ruby::rb_thread_add_event_hook(thread, end_of_thread, ruby::EVENT_THREAD_END, NIL);
        ruby::protect(|| {
            interrupts::watch();
            used_by(thread, true, |map| {
                static USES: AtomicU64 = AtomicU64::new(0);
                let number = USES.fetch_add(1, Ordering::Relaxed);
                ruby::funcall(map, ruby::id("[]="), &[value, ruby::fixnum(number as i64)])
            })
        })
        .map_err(Raise::Jump)?;
        Ok(core)
    }
}

/// Does something with the machines that a thread uses, a WeakMap that the thread keeps, with numbers that grow: a
/// machine that a program has lost is not to be found. `NIL` if the thread has none and none is to be made. May raise.
pub unsafe fn used_by(thread: VALUE, make: bool, body: impl FnOnce(VALUE) -> VALUE) -> VALUE {
    // SAFETY: plain calls of Ruby methods; nothing here needs dropping.
    unsafe {
        // No variable of a program's: it has no `@`. A frozen thread keeps none.
        let variable = ruby::id("__um_machines");
        let mut map = rb_sys::rb_attr_get(thread, variable);
        if map == NIL {
            if !make || ruby::is_frozen(thread) {
                return NIL;
            }
            map = ruby::funcall(ruby::class(c"ObjectSpace::WeakMap"), ruby::id("new"), &[]);
            rb_sys::rb_ivar_set(thread, variable, map);
        }
        body(map)
    }
}

/// Keeps the machine of a UM for ever.
pub unsafe fn leak(value: VALUE) {
    // SAFETY: the type is checked.
    if let Some(mut core) = unsafe { get(value).core.take() } {
        let place: *mut Core = &raw mut *core;
        machines().retain(|entry| entry.core != place);
        std::mem::forget(core);
    }
}
