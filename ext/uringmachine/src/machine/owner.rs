//! The Ruby object that owns a machine, and the thread that uses it.

use std::cell::{Cell, OnceCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::{DataTypeFunctions, TypedData};

use super::registry::machines;
use super::splice::Pipes;
use super::{interrupts, thread_call, trace, Machine};
use crate::ruby::arguments::wrong_type;
use crate::ruby::fiber::{self, AtEnd};
use crate::ruby::this::This;
use crate::ruby::{self, call, classes, fixnum, Outcome, Raise, Value, NIL};

/// What a UM holds.
#[derive(Default, TypedData)]
#[magnus(class = "UringMachine", mark, size)]
pub struct Um {
    /// Its machine, once it is initialized.
    machine: OnceCell<Arc<Machine>>,
    pub size: Cell<u32>,
    pub sqpoll: Cell<bool>,
    pub sidecar: Cell<bool>,
}

impl DataTypeFunctions for Um {
    // It enters the kernel, so it is not called in the middle of a collection (no `free_immediately`).
    fn free(self: Box<Self>) {
        // The object is dead, so no fiber waits in its machine.
        if let Some(machine) = self.machine.into_inner() {
            give_up(&machine);
        }
    }

    fn mark(&self, _: &Marker) {
        if let Some(machine) = self.machine.get() {
            machine.mark();
        }
    }
}

impl Um {
    /// Its machine, if there is one.
    pub fn find_machine(&self) -> Option<&Arc<Machine>> {
        self.machine.get()
    }

    /// Gives it a machine, once.
    pub fn give(&self, machine: Arc<Machine>) {
        let given = self.machine.set(machine);
        debug_assert!(given.is_ok(), "a UM is initialized once");
    }

    /// Its machine.
    #[inline]
    pub fn machine(&self) -> Result<&Machine, Raise> {
        match self.machine.get() {
            Some(machine) => Ok(machine),
            None => Err(Raise::misuse("uninitialized or closed machine")),
        }
    }

    /// Its machine, for a method that runs on the machine's thread, which is the one that uses it first.
    #[inline]
    pub fn own(&self) -> Result<&Machine, Raise> {
        let machine = self.machine()?;
        if !machine.is_own() {
            bind(machine)?;
        }
        Ok(machine)
    }
}

/// Binds a machine to the current thread.
#[cold]
pub fn bind(machine: &Machine) -> Result<(), Raise> {
    if machine.is_forked() {
        return Err(Raise::misuse(
            "this machine belongs to the parent process; make one of your own with UM.new",
        ));
    }
    if machine.thread() != NIL {
        return Err(Raise::misuse("this machine belongs to another thread"));
    }
    let thread = fiber::current_thread();
    // A ring is entered by the native thread that has enabled it, and by no other.
    fiber::lock_native_thread();
    machine.bind(thread)?;
    trace::join(machine);
    // Once for a thread. The main thread ends with its process.
    fiber::at_end_of::<EndOfThread>(thread);
    interrupts::watch()?;
    static USES: AtomicU64 = AtomicU64::new(0);
    let number = USES.fetch_add(1, Ordering::Relaxed);
    let list = used_by(thread, true)?;
    if list != NIL {
        call(list, "[]=", &[machine.object(), fixnum(number as i64)])?;
    }
    Ok(())
}

/// Ends a machine that nobody can use any more.
fn give_up(machine: &Arc<Machine>) {
    machines().retain(|entry| !Arc::ptr_eq(entry, machine));
    if machine.is_forked() {
        machine.parts().driver.forsake();
        return;
    }
    thread_call::give_up_all(machine);
    let mut parts = machine.parts();
    parts.close_for_fibers();
    if parts.driver.is_at_rest() {
        parts.driver.drop_results();
        parts.driver.close();
        return;
    }
    // Only the thread that a ring belongs to may enter it, and no Ruby runs while it does.
    let own = machine.thread() == fiber::current_thread();
    let shut = own && parts.driver.shut_down(SHUT_DOWN_LIMIT);
    parts.driver.give_up_work();
    parts.driver.drop_results();
    if shut {
        parts.driver.close();
    } else {
        // What the kernel may still touch is never freed.
        parts.driver.leak();
        std::mem::forget(Arc::clone(machine));
    }
}

/// Gives back the rings of a thread that ends: its fibers go on no more, whatever they wait for. Only the thread
/// itself can have the kernel let go of their memory.
struct EndOfThread;

impl AtEnd for EndOfThread {
    fn run() {
        let thread = fiber::current_thread();
        // The list is not locked for as long as the kernel may take: other Ractors would wait.
        let own: Vec<Arc<Machine>> = (machines().iter())
            .filter(|machine| machine.thread() == thread && machine.is_usable())
            .cloned()
            .collect();
        for machine in own {
            let was_waited_for = end_with_thread(&machine);
            if was_waited_for && machine.parts().driver.is_quiet() {
                machine.unlock_held();
            }
        }
    }
}

/// Ends a machine whose thread ends; says whether fibers waited for its operations.
fn end_with_thread(machine: &Machine) -> bool {
    let mut parts = machine.parts();
    let was_waited_for = parts.driver.has_waited_operations();
    parts.close_for_fibers();
    if parts.driver.is_at_rest() || parts.driver.shut_down(SHUT_DOWN_LIMIT) {
        parts.driver.close();
    } else {
        // The memory is the kernel's until it is done, and is kept as long: for ever.
        parts.driver.leak();
    }
    parts.driver.drop_results();
    parts.pipes = Pipes::default();
    drop(parts);
    thread_call::give_up_all(machine);
    was_waited_for
}

/// How long the collector waits for the kernel to give an unused machine's memory back, in nanoseconds.
const SHUT_DOWN_LIMIT: u64 = 100_000_000;

/// The data of a UM; TypeError for anything else.
#[inline]
pub fn find(value: Value) -> Result<This<Um>, Raise> {
    This::find(value).ok_or_else(|| wrong_type(value, "machine", "a UM"))
}

/// The machines that a thread uses: a WeakMap that the thread keeps, with numbers that grow. A machine that a program has
/// lost is not to be found. `NIL` if the thread has none and none is to be made.
pub fn used_by(thread: Value, make: bool) -> Outcome {
    // No variable of a program's: it has no `@`. A frozen thread keeps none.
    static MACHINES: ruby::Name = ruby::Name::new("__um_machines");
    let variable = MACHINES.id();
    let known = ruby::variable(thread, variable);
    if known != NIL || !make || ruby::is_frozen(thread) {
        return Ok(known);
    }
    let list = call(classes::at("ObjectSpace::WeakMap")?, "new", &[])?;
    ruby::set_variable(thread, variable, list)?;
    Ok(list)
}

/// How long the end of what a machine runs waits for the kernel to give memory back, in nanoseconds.
const GIVE_BACK_LIMIT: u64 = 5_000_000_000;

/// Gives a machine's ring back, on its own thread, which goes on.
pub fn shut_down(machine: &Machine) {
    let is_shut = {
        let mut parts = machine.parts();
        // Those that are kept for the next use.
        parts.pipes = Pipes::default();
        parts.driver.shut_down(GIVE_BACK_LIMIT)
    };
    if is_shut {
        machine.parts().driver.close();
    } else {
        leak(machine);
    }
}

/// Keeps a machine for ever: the kernel may still write to what it knows.
fn leak(machine: &Machine) {
    machine.parts().driver.leak();
    let machine = machine.share();
    machines().retain(|entry| !Arc::ptr_eq(entry, &machine));
    std::mem::forget(machine);
}
