//! The machines there are in this process, and what concerns several of them.

use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{closing, owner, Core};
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, NIL, VALUE};

/// The machines there are.
pub static MACHINES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

pub struct Entry {
    pub object: VALUE,
    pub core: *mut Core,
}

// SAFETY: a core is used under the GVL only, by the collector too.
unsafe impl Send for Entry {}

/// The list, for as long as nothing of Ruby's is called that may make an object: that may have to wait until all
/// Ractors let the collector run, and one that waits for the list does not. The collector itself looks into the list.
pub fn machines() -> MutexGuard<'static, Vec<Entry>> {
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mark of an object that lives for ever: a machine is kept while the kernel may still write to
/// memory that only the machine marks, whether a program refers to it or not.
unsafe extern "C" fn mark_busy(_: *mut c_void) {
    // SAFETY: a fiber, or 0, which is no object.
    unsafe { rb_sys::rb_gc_mark(FORKER.load(Ordering::Relaxed)) };
    for Entry { object, core } in machines().iter() {
        // SAFETY: a core in the list lives until its UM is freed, which takes it off.
        unsafe {
            if (**core).driver.has_waited_operations() && !(**core).is_forked() {
                rb_sys::rb_gc_mark(*object);
            }
        }
    }
}

/// A machine that nothing keeps may be moved, as any object: only those that are busy are pinned by a mark.
unsafe extern "C" fn find_moved(_: *mut c_void) {
    for entry in machines().iter_mut() {
        // SAFETY: the object is alive, or was found dead and is not freed yet: then it is not moved.
        entry.object = unsafe { rb_sys::rb_gc_location(entry.object) };
    }
}

unsafe extern "C" fn keep(_: *mut c_void) {}

pub static ROOT: DataType =
    DataType::new::<()>(c"UringMachine root", mark_busy, keep).compacting(find_moved);

/// The UM of this thread, and its core, that a fiber waits in, by itself or in a fiber that it has resumed.
pub unsafe fn waited_in_by(fiber: VALUE) -> Option<(VALUE, *mut Core)> {
    // SAFETY: as `mark_busy`; plain accessors.
    unsafe {
        let thread = ruby::rb_thread_current();
        machines()
            .iter()
            .map(|entry| (entry.object, entry.core))
            .find(|(_, core)| {
                (**core).thread() == thread && (**core).is_usable() && (**core).has_waiting(fiber)
            })
    }
}

/// Whether a fiber of this thread was started by a scheduler or a machine.
pub unsafe fn has_started(fiber: VALUE) -> bool {
    // SAFETY: as `mark_busy`; plain accessors.
    unsafe {
        let thread = ruby::rb_thread_current();
        machines().iter().any(|entry| {
            let core = &*entry.core;
            core.thread() == thread && core.has_started(fiber)
        })
    }
}

/// How many threads look into cores, and the cores whose UMs the collector has freed meanwhile: one that is looked into
/// may be among them, if whoever looks makes an object.
static LOOKS: Mutex<(usize, Vec<Left>)> = Mutex::new((0, Vec::new()));

struct Left(Box<Core>);

// SAFETY: as `Entry`.
unsafe impl Send for Left {}

fn looks() -> MutexGuard<'static, (usize, Vec<Left>)> {
    LOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody looks into cores.
struct Looking;

impl Looking {
    fn begin() -> Self {
        looks().0 += 1;
        Self
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        let left = {
            let mut looks = looks();
            looks.0 -= 1;
            if looks.0 > 0 || looks.1.is_empty() {
                return;
            }
            std::mem::take(&mut looks.1)
        };
        for Left(core) in left {
            owner::give_up(core);
        }
    }
}

/// Keeps a core whose UM was freed, if somebody looks into cores; else it is returned.
pub fn keep_looked_into(core: Box<Core>) -> Option<Box<Core>> {
    let mut looks = looks();
    if looks.0 == 0 {
        return Some(core);
    }
    looks.1.push(Left(core));
    None
}

/// Calls `look` for each core that this thread may look into: those of its Ractor, whose lock it has, that are in use.
unsafe fn each_within_reach(mut look: impl FnMut(*mut Core)) {
    let _looking = Looking::begin();
    // SAFETY: the cores in the list are alive. It is not locked while `look` runs, which may run the collector: a core
    // whose UM it frees meanwhile stays until nobody looks any more.
    unsafe {
        let thread = ruby::rb_thread_current();
        let mut ractor = None;
        let mut place = 0;
        loop {
            // Another Ractor's core may be gone as soon as the list is not locked.
            let (core, owner, home) = match machines().get(place) {
                Some(entry) => {
                    let core = &*entry.core;
                    (entry.core, core.thread(), core.ractor())
                }
                None => break,
            };
            place += 1;
            let near = owner == thread || home == *ractor.get_or_insert_with(ruby::current_ractor);
            if near && (*core).is_usable() {
                look(core);
            }
        }
    }
}

/// Has the machines forget what a descriptor was: it is closed, or another file's by now.
pub unsafe fn forget(fd: RawFd) {
    // SAFETY: the cores are alive, and guarded by the GVL.
    unsafe { each_within_reach(|core| (*core).descriptors.forget(fd)) };
}

/// What a descriptor is from now on is an IO's own doing: nobody has lost it.
pub unsafe fn found(fd: RawFd) {
    // SAFETY: as `forget`.
    unsafe { each_within_reach(|core| (*core).lost.retain(|lost| lost.fd != fd)) };
}

/// Whether a close of a descriptor has anything to end, in any machine within reach.
pub unsafe fn is_in_use(fd: RawFd) -> bool {
    let mut in_use = false;
    // SAFETY: as `forget`.
    unsafe { each_within_reach(|core| in_use = in_use || (*core).uses(fd)) };
    in_use
}

/// Before a descriptor is closed, or becomes another file's: has the machines let go of its file, and ends what fibers
/// do with it.
pub unsafe fn end_waits(fd: RawFd) -> EndedWaits {
    let mut ended = EndedWaits::default();
    // SAFETY: as `forget`.
    unsafe {
        each_within_reach(|core| {
            let own = (*core).thread() == ruby::rb_thread_current();
            let is_waited_for = !(*core).waits.on(fd).is_empty();
            if own {
                if is_waited_for {
                    closing::end_on(core, fd, closing::closed());
                    ended.here = true;
                }
                (*core).let_go_of(fd);
            } else {
                if is_waited_for {
                    closing::interrupt_on(core, fd, closing::closed());
                    ended.elsewhere = true;
                }
                if (*core).driver.forget_file(fd) {
                    (*core).notify();
                }
                (*core).forget_from_elsewhere(fd);
            }
        });
    }
    ended
}

/// Whose fibers were doing something with a descriptor.
#[derive(Default)]
pub struct EndedWaits {
    /// This thread's: it is over, but for the fibers' being told.
    pub here: bool,
    /// Another thread's, which has yet to end it: only that can.
    pub elsewhere: bool,
}

impl EndedWaits {
    /// Those of another descriptor too.
    pub fn add(&mut self, other: Self) {
        self.here |= other.here;
        self.elsewhere |= other.elsewhere;
    }
}

/// Passes a wake-up on that was given to a fiber which leaves without what it has waited for: to the next that waits for
/// the same. Whoever is woken looks whether there is anything for it.
#[cold]
pub unsafe fn pass_on(blocker: VALUE) {
    // SAFETY: as `forget`; what raises is stopped.
    unsafe {
        if blocker == NIL {
            return;
        }
        if ruby::is_a(blocker, ruby::class(c"Thread::Mutex")) {
            // Its lock is free, unless somebody was quicker: its unlocking wakes the next, be it a thread.
            let passed = ruby::protect(|| {
                if ruby::truthy(rb_sys::rb_mutex_trylock(blocker)) {
                    rb_sys::rb_mutex_unlock(blocker);
                }
                NIL
            });
            if passed.is_err() {
                ruby::take_exception();
            }
            return;
        }
        let mut done = false;
        each_within_reach(|core| done = done || (*core).wake_blocked_by(blocker));
    }
}

/// The UM of a core that belongs to a thread.
pub fn object_of(core: *mut Core) -> VALUE {
    machines()
        .iter()
        .find(|entry| entry.core == core)
        .map_or(NIL, |entry| entry.object)
}

/// The fiber that forked this process, which is its root fiber now; 0 in one that was not forked.
pub static FORKER: AtomicU64 = AtomicU64::new(0);

/// Ends the process if `fiber`, which ends, is the one that forked it: there is no other that could go on.
/// Ruby would do so too, but with the fiber gone that the scheduler's end runs on, and with status 0.
/// `result` is what [`ruby::protect`] returned.
pub unsafe fn end_of_forker(fiber: VALUE, result: &Result<VALUE, c_int>) {
    if fiber == FORKER.load(Ordering::Relaxed) {
        // SAFETY: nothing of the frames below is needed any more.
        unsafe { ruby::ruby_stop(result.err().unwrap_or(0)) };
    }
}
