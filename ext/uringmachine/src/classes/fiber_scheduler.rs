//! UM::FiberScheduler: the object, its life, and how fibers start and end. Its hooks are in
//! `hooks/`.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};
use uringmachine_runtime::tasks::State;

use super::{machine, selector, turns};
use crate::machine::registry::EndedWaits;
use crate::machine::{closing, interrupts, owner, registry, report, spun, Machine, Waiter};
use crate::ruby::arguments::{self, wrong_type, Arguments};
use crate::ruby::call::{call_if_there, catch_unwinding, responds_to};
use crate::ruby::fiber::{self, Body};
use crate::ruby::this::This;
use crate::ruby::{
    array, as_fixnum, call, classes, collections, io, is_hash, is_just, run_block, symbol, truthy,
    Outcome, Raise, Shared, Value, NIL,
};
use crate::tls;

/// What a UM::FiberScheduler holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::FiberScheduler", mark, size, free_immediately)]
pub struct Scheduler {
    /// The UM the scheduler runs on.
    pub um: Cell<Value>,
    /// Its machine, once it is initialized.
    machine: OnceCell<Arc<Machine>>,
    pub closed: Cell<bool>,
    pub abort_on_exception: Cell<bool>,
    /// A child of fork gets a scheduler of its own.
    pub renews: Cell<bool>,
    /// [`Scheduled`] as a Proc, the body of every fiber: to make one for each costs as much as the fiber.
    pub body: Cell<Value>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            um: Cell::new(NIL),
            machine: OnceCell::new(),
            closed: Cell::new(false),
            abort_on_exception: Cell::new(false),
            renews: Cell::new(false),
            body: Cell::new(NIL),
        }
    }
}

impl DataTypeFunctions for Scheduler {
    fn mark(&self, marker: &Marker) {
        marker.mark(self.um.get().to_magnus());
        marker.mark(self.body.get().to_magnus());
    }
}

impl Scheduler {
    /// Its machine, whoever asks; `None` before it is initialized.
    pub fn known_machine(&self) -> Option<&Machine> {
        self.machine.get().map(|machine| &**machine)
    }

    /// The machine, for a hook that runs on the scheduler's own thread.
    #[inline]
    pub fn machine(&self) -> Result<&Machine, Raise> {
        match self.machine.get() {
            Some(machine) if machine.is_own() => Ok(machine),
            _ => self.first_use(),
        }
    }

    #[cold]
    fn first_use(&self) -> Result<&Machine, Raise> {
        let Some(machine) = self.known_machine().filter(|_| !self.closed.get()) else {
            return Err(Raise::new(
                classes::runtime_error(),
                "Scheduler already closed!",
            ));
        };
        if machine.is_forked() {
            return Err(Raise::misuse(
                "this scheduler belongs to the parent process; install one of your own with Fiber.set_scheduler(UM::FiberScheduler.new)",
            ));
        }
        if machine.thread() != NIL {
            return Err(Raise::new(
                classes::fiber_error(),
                "fiber called across threads",
            ));
        }
        owner::bind(machine)?;
        Ok(machine)
    }

    /// The machine, for hooks that other threads may call; `None` when there is nobody to wake.
    #[inline]
    pub fn machine_from_anywhere(&self) -> Option<&Machine> {
        self.known_machine()
            .filter(|machine| !self.closed.get() && !machine.is_forked())
    }

    /// Whether this thread and process may not use the machine.
    pub fn is_foreign(&self) -> bool {
        self.known_machine()
            .is_none_or(|machine| machine.is_forked() || machine.is_anothers())
    }
}

/// The core of a scheduler of ours, or of what an object delegates to, if this thread runs fibers by it. Does not raise.
#[inline]
pub fn with_running<T>(scheduler: Value, body: impl FnOnce(&Machine) -> T) -> Option<T> {
    let scheduler = This::<Scheduler>::find(scheduler).or_else(|| find_behind(scheduler))?;
    let machine = scheduler.known_machine()?;
    let runs = machine.is_own() && machine.is_usable();
    runs.then(|| body(machine))
}

/// UM::FiberScheduler.
static CLASS: Shared = Shared::new();

/// A scheduler of ours whose hooks are no program's own.
#[inline]
pub fn plain(scheduler: Value) -> Option<This<Scheduler>> {
    if is_just(scheduler, CLASS.get()) {
        This::find(scheduler)
    } else {
        None
    }
}

/// As [`with_running`], of one whose hooks are no program's own; or of Async's, on a selector of ours.
#[inline]
pub fn with_plain<T>(scheduler: Value, body: impl FnOnce(&Machine) -> T) -> Option<T> {
    if is_just(scheduler, CLASS.get()) {
        with_running(scheduler, body)
    } else {
        selector::with_spared(scheduler, body)
    }
}

/// See lib/uringmachine/fiber_scheduler/current.rb.
#[cold]
fn find_behind(scheduler: Value) -> Option<This<Scheduler>> {
    let found = call_if_there(scheduler, "uring_scheduler").ok().flatten()?;
    This::find(found)
}

/// Makes a scheduler, to be given to Fiber.set_scheduler.
///
/// @method UringMachine::FiberScheduler.new(machine = nil, pool = nil, fork: :discard)
/// @param machine [UringMachine, nil] the machine it runs on; nil is a new one
/// @param pool [UringMachine::BlockingOperationThreadPool, nil] has no effect: all schedulers share one
/// @param fork [:discard, :renew] what a child of fork gets: no scheduler, or a fresh one with a ring of its
///   own; see `process_fork`
/// @return [UringMachine::FiberScheduler]
/// @raise [UringMachine::UnsupportedError] if the kernel or the sandbox refuses io_uring
/// @raise [ArgumentError] if the machine belongs to another thread, or fork is something else
/// @raise [TypeError] if machine is no machine, or pool no pool
/// @kernel 6.1
/// @example
///   Fiber.set_scheduler(UM::FiberScheduler.new)
fn initialize(this: This<Scheduler>, arguments: &[magnus::Value]) -> Result<(), Raise> {
    let (options, arguments) = match arguments {
        [arguments @ .., last] if is_hash(Value::from(*last)) => {
            (Some(Value::from(*last)), arguments)
        }
        arguments => (None, arguments),
    };
    let arguments = Arguments::of(arguments, 0..=2)?;
    let again = || Raise::misuse("already initialized");
    if this.known_machine().is_some() {
        return Err(again());
    }
    let renews = match options {
        None => false,
        Some(options) => {
            let [fork] = arguments::keywords(options, ["fork"])?;
            fork.map_or(Ok(false), read_fork)?
        }
    };
    if let Some(pool) = arguments.optional(1) {
        if !responds_to(pool, "process")? {
            return Err(wrong_type(
                pool,
                "pool",
                "a UM::BlockingOperationThreadPool",
            ));
        }
    }
    let um = match arguments.optional(0) {
        None => machine::new_default()?,
        Some(machine) => machine,
    };
    let owner = owner::find(um)?;
    let machine = owner.machine()?;
    if machine.is_anothers() {
        return Err(Raise::argument("machine belongs to another thread"));
    }
    interrupts::watch()?;
    turns::begin()?;
    let body = fiber::body::<Scheduled>()?;
    this.machine.set(machine.share()).map_err(|_| again())?;
    this.body.set(body);
    this.um.set(um);
    this.renews.set(renews);
    Ok(())
}

/// Whether a child of fork gets a scheduler.
fn read_fork(value: Value) -> Result<bool, Raise> {
    if value == symbol("discard") {
        Ok(false)
    } else if value == symbol("renew") {
        Ok(true)
    } else {
        Err(Raise::argument("fork must be :discard or :renew"))
    }
}

/// The body of every scheduled fiber: the block that its machine is starting, with its end attended to. It is started
/// with the scheduler.
struct Scheduled;

impl Body for Scheduled {
    fn run(scheduler: Value, _argument: Value) -> Outcome {
        let Some(scheduler) = This::<Scheduler>::find(scheduler) else {
            return Ok(NIL);
        };
        let Some(machine) = scheduler.known_machine() else {
            return Ok(NIL);
        };
        let block = std::mem::replace(&mut machine.parts().starting, NIL);
        let fiber = fiber::current();
        let result = registry::end_of_forker(fiber, catch_unwinding(block, &[]));
        let noted = spun::end_scheduled(fiber, &result);
        let kept = forget(machine, fiber);
        let result = match (result, kept) {
            (Ok(_), Some(exception)) => Err(Raise::Exception(exception)),
            (result, _) => result.and_then(|value| noted.map(|()| value)),
        };
        match result {
            Ok(_) => Ok(NIL),
            Err(Raise::Exception(exception)) if !fails_all(&scheduler, exception) => {
                let told = report::report(Some(machine), exception);
                // It may have waited.
                forget(machine, fiber);
                told.map(|()| NIL)
            }
            // What ends a process or a thread goes to the root fiber, where a fiber's unwinding
            // ends (cont.c, rb_fiber_terminate).
            Err(raise) => Err(raise),
        }
    }
}

/// Forgets the task of a fiber that ends; what it was to raise at its next wait.
fn forget(machine: &Machine, fiber: Value) -> Option<Value> {
    if machine.is_forked() {
        return None;
    }
    let mut parts = machine.parts();
    let task = parts.find_running(fiber)?;
    let kept = parts.take_kept(task);
    parts.remove(task);
    kept
}

/// Whether an exception ends more than its fiber: `exit`, a signal, a shortage of memory, or any
/// under `abort_on_exception`.
fn fails_all(scheduler: &Scheduler, exception: Value) -> bool {
    if scheduler.abort_on_exception.get() || report::is_fatal(exception) {
        return true;
    }
    let aborts = |object| call(object, "abort_on_exception", &[]).is_ok_and(truthy);
    aborts(fiber::current_thread()) || aborts(classes::thread())
}

/// @method UringMachine::FiberScheduler#closed?
/// @return [Boolean]
/// @example
///   scheduler.closed? #=> false
fn is_closed(this: This<Scheduler>) -> bool {
    this.closed.get()
}

/// The fibers that wait in the machine or are about to go on.
///
/// @method UringMachine::FiberScheduler#waiting
/// @return [Array<Fiber>]
/// @example
///   scheduler.waiting.size #=> 0
fn waiting(this: This<Scheduler>) -> Outcome {
    fibers_of(this, |state, _| state != State::Running)
}

/// The fibers that a scheduler's machine knows, and that are wanted.
fn fibers_of(this: This<Scheduler>, wanted: impl Fn(State, &Waiter) -> bool) -> Outcome {
    let list = array()?;
    if let Some(machine) = this.machine_from_anywhere() {
        for fiber in machine.fibers_that(wanted) {
            collections::push(list, fiber)?;
        }
    }
    Ok(list)
}

/// UM::FiberScheduler#unwinding?: whether the fibers are being unwound, with their thread.
fn is_unwinding(this: This<Scheduler>) -> Result<bool, Raise> {
    Ok(this.machine()?.parts().ending)
}

/// UM::FiberScheduler#masked(mask) { }: runs the block with the fiber's timeouts held back as the mask of
/// Thread.handle_interrupt says.
fn masked(this: This<Scheduler>, mask: Value) -> Outcome {
    if !is_hash(mask) {
        // Ruby's own says what is wrong with it.
        return run_block();
    }
    interrupts::masked(this.machine()?, mask)
}

/// The fibers that the scheduler has started and that have not ended.
fn scheduled(this: This<Scheduler>) -> Outcome {
    fibers_of(this, |_, waiter| {
        waiter.scheduled && !waiter.spun && waiter.outer.is_none()
    })
}

/// Closing.in_use?(io): whether a close of the IO has anything to end. (One without autoclose closes nothing.)
fn is_in_use(_class: Value, io: Value) -> bool {
    if !io::is_open(io) {
        return false;
    }
    io::writer(io) != io
        || io::closes(io).is_some_and(|fd| tls::is_held(fd) || registry::is_in_use(fd))
}

/// UM::FiberScheduler.end_waits(io, side): before an IO is closed, or becomes another file's, ends what fibers do with
/// its descriptor: see `waits`. Says who is yet to be told: `:others` for fibers of other threads, which have to end
/// what they do by themselves, `:own` for fibers of this one, nil for nobody. A side (:read or :write) is that of an IO
/// with a descriptor for each; nil is all of it.
fn end_waits(_class: Value, io: Value, side: Value) -> Outcome {
    let fd = io::descriptor(io)?;
    let writer = io::writer(io);
    let is = |name| side == NIL || side == symbol(name);
    let mut waited = EndedWaits::default();
    if writer != io && is("write") {
        waited.add(tls::end_waits(io::descriptor(writer)?));
    }
    let ends_reader = match writer == io {
        true => side == NIL,
        false => is("read"),
    };
    if ends_reader {
        waited.add(tls::end_waits(fd));
    }
    Ok(match waited {
        EndedWaits {
            elsewhere: true, ..
        } => symbol("others"),
        EndedWaits { here: true, .. } => symbol("own"),
        _ => NIL,
    })
}

/// UM::FiberScheduler.forget(fd): forgets what a descriptor was, which is closed, or another file's now.
fn forget_descriptor(_class: Value, fd: Value) {
    if let Some(fd) = as_fixnum(fd) {
        registry::forget(fd as i32);
        registry::found(fd as i32);
    }
}

/// UM::FiberScheduler#waiting_on(io) { }: runs the block so that the fiber raises IOError if the IO is closed
/// meanwhile, as Ruby's own hooks are run.
fn waiting_on(this: This<Scheduler>, io: Value) -> Outcome {
    let machine = this.machine()?;
    let me = machine.current_task();
    let fd = io::descriptor(io)?;
    let mut result = Ok(NIL);
    let waited = closing::during(machine, me, io, fd, &mut || result = run_block());
    let value = result?;
    waited.map(|()| value)
}

/// Gives the thread to the root fiber, without being woken by anything.
///
/// @method UringMachine::FiberScheduler#transfer
/// @return [nil]
/// @example
///   scheduler.transfer
fn transfer(this: This<Scheduler>) -> Outcome {
    let machine = this.machine()?;
    let me = machine.current_task();
    let root = {
        let mut parts = machine.parts();
        match parts.fibers.root.filter(|root| *root != me) {
            None => return Ok(NIL),
            Some(root) => {
                parts.fibers.current = root;
                parts.waiter(root).fiber
            }
        }
    };
    let result = fiber::transfer(root, &[]);
    machine.goes_on(me);
    result
}

/// @method UringMachine::FiberScheduler#machine
/// @return [UringMachine] the machine the scheduler runs on
/// @example
///   Fiber.scheduler.machine.metrics
fn machine(this: This<Scheduler>) -> Value {
    this.um.get()
}

/// Whether what any fiber fails by is raised in the root fiber.
///
/// @method UringMachine::FiberScheduler#abort_on_exception=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   scheduler.abort_on_exception = true
fn set_abort_on_exception(this: This<Scheduler>, value: Value) -> Value {
    this.abort_on_exception.set(truthy(value));
    value
}

/// @method UringMachine::FiberScheduler#abort_on_exception
/// @return [Boolean] whether what any fiber fails by is raised in the root fiber
/// @example
///   scheduler.abort_on_exception #=> false
fn abort_on_exception(this: This<Scheduler>) -> bool {
    this.abort_on_exception.get()
}

/// Defines the class, without its hooks.
pub fn define(ruby: &Ruby, module: RClass) -> Result<RClass, Error> {
    let class = module.define_class("FiberScheduler", ruby.class_object())?;
    CLASS.keep(class.as_value().into());
    class.define_alloc_func::<Scheduler>();
    class.define_method("initialize", method!(initialize, -1))?;
    class.define_method("closed?", method!(is_closed, 0))?;
    class.define_method("waiting", method!(waiting, 0))?;
    class.define_private_method("waiting_on", method!(waiting_on, 1))?;
    class.define_private_method("masked", method!(masked, 1))?;
    class.define_private_method("scheduled", method!(scheduled, 0))?;
    class.define_private_method("unwinding?", method!(is_unwinding, 0))?;
    class.define_singleton_method("end_waits", method!(end_waits, 2))?;
    // The rest is in lib/uringmachine/core_ext/io_close.rb.
    let closing = module.define_module("Closing")?;
    closing.define_singleton_method("in_use?", method!(is_in_use, 1))?;
    class.define_singleton_method("forget", method!(forget_descriptor, 1))?;
    class.define_method("transfer", method!(transfer, 0))?;
    class.define_method("machine", method!(machine, 0))?;
    class.define_method("abort_on_exception", method!(abort_on_exception, 0))?;
    class.define_method("abort_on_exception=", method!(set_abort_on_exception, 1))?;
    Ok(class)
}
