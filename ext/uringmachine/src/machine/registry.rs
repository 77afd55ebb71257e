//! The machines there are in this process, and what concerns several of them.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use magnus::gc::{Compactor, Marker};
use magnus::{DataTypeFunctions, Ruby, TypedData};

use super::{closing, Machine};
use crate::ruby::{
    self, classes, fiber, is_a, keep_for_ever, sync, Outcome, Shared, Value, FALSE, NIL,
};

/// The machines there are. They are used with Ruby's lock only, by the collector too.
static MACHINES: Mutex<Vec<Arc<Machine>>> = Mutex::new(Vec::new());

/// The list, for as long as nothing of Ruby's is called that may make an object: that may have to wait until all
/// Ractors let the collector run, and one that waits for the list does not. The collector itself looks into the list.
pub fn machines() -> MutexGuard<'static, Vec<Arc<Machine>>> {
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object that lives for ever, and marks what must be kept whether a program refers to it or not: a machine while the
/// kernel may still write to memory that only the machine marks.
#[derive(TypedData)]
#[magnus(class = "UringMachine", mark, compact, free_immediately)]
struct Root;

impl DataTypeFunctions for Root {
    fn mark(&self, _: &Marker) {
        ruby::mark(FORKER.get());
        for machine in machines().iter() {
            if machine.is_kept() {
                ruby::mark(machine.object());
            }
        }
    }

    /// A machine that nothing keeps may be moved, as any object: only those that are busy are pinned by a mark. One that
    /// was found dead and is not freed yet is not moved.
    fn compact(&self, compactor: &Compactor) {
        for machine in machines().iter() {
            machine.set_object(compactor.location(machine.object().to_magnus()).into());
        }
    }
}

/// Makes that object. Called once, when the extension is loaded, after the class is defined.
pub fn define(ruby: &Ruby) {
    let root = ruby.obj_wrap(Root);
    keep_for_ever(magnus::value::ReprValue::as_value(root).into());
}

impl Machine {
    /// Whether the kernel may yet write to what the machine marks, or somebody wants what is noted of it.
    fn is_kept(&self) -> bool {
        !self.is_forked()
            && self.with_unborrowed(|parts| {
                parts.driver.has_waited_operations() || parts.trace.is_some()
            })
    }
}

/// The UM of this thread, and its machine, that a fiber waits in, by itself or in a fiber that it has resumed.
pub fn waited_in_by(fiber: Value) -> Option<(Value, Arc<Machine>)> {
    let thread = fiber::current_thread();
    let found = machines().iter().find_map(|machine| {
        let waits =
            machine.thread() == thread && machine.is_usable() && machine.parts().has_waiting(fiber);
        waits.then(|| Arc::clone(machine))
    })?;
    // A dead one may know another fiber by this address.
    (!ruby::is_garbage(found.object())).then(|| (found.object(), found))
}

/// Whether a fiber of this thread was started by a scheduler or a machine.
pub fn has_started(fiber: Value) -> bool {
    let thread = fiber::current_thread();
    machines()
        .iter()
        .any(|machine| machine.thread() == thread && machine.parts().has_started(fiber))
}

/// Calls `look` for each machine that this thread may look into: those of its Ractor, whose lock it has, that are in
/// use. A UM may be collected meanwhile: its machine is held.
fn each_within_reach(mut look: impl FnMut(&Machine)) {
    let thread = fiber::current_thread();
    let mut ractor = None;
    let mut place = 0;
    loop {
        let next = machines().get(place).cloned();
        let Some(machine) = next else { return };
        place += 1;
        let near = machine.thread() == thread
            || machine.ractor() == *ractor.get_or_insert_with(fiber::current_ractor);
        if near && machine.is_usable() {
            look(&machine);
        }
    }
}

/// The machines that this thread may look into, and that are to live on.
pub fn within_reach() -> Vec<Arc<Machine>> {
    let mut list = Vec::new();
    each_within_reach(|machine| {
        // One that was found dead may not be marked any more.
        if !ruby::is_garbage(machine.object()) {
            list.push(machine.share());
        }
    });
    list
}

/// Those of this Ractor's machines, in use or not, that are wanted.
pub fn wanted(is_wanted: impl Fn(&Arc<Machine>) -> bool) -> Vec<Arc<Machine>> {
    let ractor = fiber::current_ractor();
    (machines().iter())
        .filter(|machine| machine.ractor() == ractor && !machine.is_forked() && is_wanted(machine))
        .cloned()
        .collect()
}

/// Has the machines forget what a descriptor was: it is closed, or another file's by now.
pub fn forget(fd: RawFd) {
    each_within_reach(|machine| machine.parts().descriptors.forget(fd));
}

/// What a descriptor is from now on is an IO's own doing: nobody has lost it.
pub fn found(fd: RawFd) {
    each_within_reach(|machine| machine.parts().lost.retain(|lost| lost.fd != fd));
}

/// Whether a close of a descriptor has anything to end, in any machine within reach.
pub fn is_in_use(fd: RawFd) -> bool {
    let mut in_use = false;
    each_within_reach(|machine| in_use = in_use || machine.parts().uses(fd));
    in_use
}

/// Before a descriptor is closed, or becomes another file's: has the machines let go of its file, and ends what fibers
/// do with it.
pub fn end_waits(fd: RawFd) -> EndedWaits {
    let mut ended = EndedWaits::default();
    each_within_reach(|machine| {
        let own = machine.thread() == fiber::current_thread();
        let is_waited_for = !machine.parts().waits.on(fd).is_empty();
        if own {
            if is_waited_for {
                closing::end_on(machine, fd, closing::closed());
                ended.here = true;
            }
            machine.let_go_of(fd);
        } else {
            if is_waited_for {
                closing::interrupt_on(machine, fd, closing::closed());
                ended.elsewhere = true;
            }
            let is_registered = machine.parts().driver.forget_file(fd);
            if is_registered {
                machine.notify();
            }
            machine.forget_from_elsewhere(fd);
        }
    });
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
pub fn pass_on(blocker: Value) {
    if blocker == NIL {
        return;
    }
    if is_a(blocker, classes::mutex()) {
        // Its lock is free, unless somebody was quicker: its unlocking wakes the next, be it a thread.
        if sync::try_lock(blocker).unwrap_or(false) {
            let _ = sync::unlock(blocker);
        }
        return;
    }
    let mut done = false;
    each_within_reach(|machine| done = done || machine.wake_blocked_by(blocker));
}

/// The fiber that forked this process, which is its root fiber now; false in one that was not forked.
pub static FORKER: Shared = Shared::new();

/// Ends the process if `fiber`, which ends, is the one that forked it: there is no other that could go on.
/// Ruby would do so too, but with the fiber gone that the scheduler's end runs on, and with status 0.
pub fn end_of_forker(fiber: Value, result: Outcome) -> Outcome {
    if FORKER.get() != FALSE && fiber == FORKER.get() {
        fiber::stop_process(result);
    }
    result
}
