//! The Ruby object that owns a machine, and the thread that uses it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use magnus::gc::Marker;
use magnus::{DataTypeFunctions, TypedData};

use super::registry::{keep_looked_into, machines, object_of};
use super::{interrupts, splice, Core};
use crate::machine::thread_call;
use crate::ruby::arguments::wrong_type;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a UM holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine", mark, size)]
pub struct Um {
    /// Its machine, a Box; null before there is one, and when it is closed.
    core: Cell<*mut Core>,
    pub size: Cell<u32>,
    pub sqpoll: Cell<bool>,
    pub sidecar: Cell<bool>,
}

impl Default for Um {
    fn default() -> Self {
        Self {
            core: Cell::new(std::ptr::null_mut()),
            size: Cell::new(0),
            sqpoll: Cell::new(false),
            sidecar: Cell::new(false),
        }
    }
}

// SAFETY: used with Ruby's lock only, which one thread has at a time.
unsafe impl Send for Um {}

impl DataTypeFunctions for Um {
    // It enters the kernel, so it is not called in the middle of a collection (no `free_immediately`).
    fn free(self: Box<Self>) {
        // The object is dead, so no fiber waits in its machine.
        if let Some(core) = self.take() {
            give_up(core);
        }
    }

    fn mark(&self, _: &Marker) {
        // SAFETY: the core lives until it is taken.
        if let Some(core) = unsafe { self.core.get().as_ref() } {
            core.mark();
        }
    }
}

impl Um {
    /// Its core, if there is one.
    pub fn find_core(&self) -> Option<*mut Core> {
        Some(self.core.get()).filter(|core| !core.is_null())
    }

    /// Gives it a core.
    pub fn give(&self, core: Box<Core>) {
        self.core.set(Box::into_raw(core));
    }

    /// Takes its core away.
    fn take(&self) -> Option<Box<Core>> {
        let core = self.core.replace(std::ptr::null_mut());
        // SAFETY: it came from a Box, and nobody else owns it.
        (!core.is_null()).then(|| unsafe { Box::from_raw(core) })
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
        core.driver.forsake();
        return;
    }
    thread_call::give_up_all(place);
    if core.driver.is_at_rest() {
        core.driver.drop_results();
        return;
    }
    // SAFETY: a plain accessor. Only the thread that a ring belongs to may enter it, and no Ruby runs
    // while it does.
    let own = core.thread() == unsafe { ruby::rb_thread_current() };
    let shut = own && core.driver.shut_down(SHUT_DOWN_LIMIT);
    core.driver.give_up_work();
    core.driver.drop_results();
    if !shut {
        // What the kernel may still touch is never freed.
        core.driver.leak();
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
            if core.driver.has_waited_operations() {
                // What `mark_busy` has kept is alive.
                waited_in.push((object_of(place), place));
            }
            if core.driver.is_at_rest() || core.driver.shut_down(SHUT_DOWN_LIMIT) {
                core.driver.close();
            } else {
                // The memory is the kernel's until it is done, and is kept as long: for ever.
                core.driver.leak();
            }
            core.driver.drop_results();
            core.pipes = splice::Pipes::default();
            thread_call::give_up_all(place);
        }
    }
    for (object, core) in waited_in {
        // SAFETY: as above; the object is on this frame.
        unsafe {
            if (*core).driver.is_quiet() {
                (*core).unlock_held();
            }
        }
        std::hint::black_box(object);
    }
}

/// How long the collector waits for the kernel to give an unused machine's memory back, in nanoseconds.
const SHUT_DOWN_LIMIT: u64 = 100_000_000;

/// The data of a UM; TypeError for anything else.
#[inline]
pub fn find(value: VALUE) -> Result<This<Um>, Raise> {
    This::find(value).ok_or_else(|| wrong_type(value, "machine", "a UM"))
}

/// The core of a UM.
#[inline]
pub fn core(value: VALUE) -> Result<*mut Core, Raise> {
    find(value)?
        .find_core()
        .ok_or_else(|| Raise::misuse("uninitialized or closed machine"))
}

/// The entries that were asked for.
pub fn size_of(value: VALUE) -> u64 {
    find(value).map_or(0, |um| u64::from(um.size.get()))
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
pub fn leak(value: VALUE) {
    if let Some(core) = find(value).ok().and_then(|um| um.take()) {
        let place = Box::into_raw(core);
        machines().retain(|entry| entry.core != place);
    }
}
