//! UM::FiberScheduler: the object, its life, and how fibers start and end. Its hooks are in
//! `hooks/`.

use std::cell::Cell;
use std::ffi::c_int;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData, Value};
use uringmachine_runtime::tasks::State;

use super::{machine, turns};
use crate::machine::{closing, interrupts, owner, registry, report, switch, Core, Waiter};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::method::{as_value, raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, errors, Raise, NIL, VALUE};
use crate::tls;

/// What a UM::FiberScheduler holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::FiberScheduler", mark, size, free_immediately)]
pub struct Scheduler {
    /// The UM the scheduler runs on.
    pub machine: Cell<VALUE>,
    pub core: Cell<*mut Core>,
    pub closed: Cell<bool>,
    pub abort_on_exception: Cell<bool>,
    /// A child of fork gets a scheduler of its own.
    pub renews: Cell<bool>,
    /// [`run_fiber`] as a Proc, the body of every fiber: to make one for each costs as much as the fiber.
    pub body: Cell<VALUE>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            machine: Cell::new(NIL),
            core: Cell::new(std::ptr::null_mut()),
            closed: Cell::new(false),
            abort_on_exception: Cell::new(false),
            renews: Cell::new(false),
            body: Cell::new(NIL),
        }
    }
}

// SAFETY: used with Ruby's lock only, which one thread has at a time.
unsafe impl Send for Scheduler {}

impl DataTypeFunctions for Scheduler {
    fn mark(&self, marker: &Marker) {
        marker.mark(as_value(self.machine.get()));
        marker.mark(as_value(self.body.get()));
    }
}

impl Scheduler {
    /// The core, for a hook that runs on the scheduler's own thread.
    #[inline]
    pub unsafe fn core(&self) -> Result<*mut Core, Raise> {
        // SAFETY: the core lives as long as the UM, which this scheduler marks.
        unsafe {
            let thread = ruby::rb_thread_current();
            if !self.core.get().is_null()
                && (*self.core.get()).thread() == thread
                && !(*self.core.get()).is_forked()
            {
                return Ok(self.core.get());
            }
            self.first_use()
        }
    }

    #[cold]
    unsafe fn first_use(&self) -> Result<*mut Core, Raise> {
        // SAFETY: as above.
        unsafe {
            if self.core.get().is_null() || self.closed.get() {
                return Err(Raise::new(
                    rb_sys::rb_eRuntimeError,
                    "Scheduler already closed!",
                ));
            }
            if (*self.core.get()).is_forked() {
                return Err(Raise::new(
                    errors::error_class(),
                    "this scheduler belongs to the parent process; install one of your own with Fiber.set_scheduler(UM::FiberScheduler.new)",
                ));
            }
            if (*self.core.get()).thread() != NIL {
                return Err(Raise::new(
                    ruby::class(c"FiberError"),
                    "fiber called across threads",
                ));
            }
            owner::bind(self.machine.get())
        }
    }

    /// The core, for hooks that other threads may call; `None` when there is nobody to wake.
    #[inline]
    pub unsafe fn core_from_anywhere(&self) -> Option<*mut Core> {
        // SAFETY: the GVL is held, which is what guards a core's tasks.
        unsafe {
            if self.core.get().is_null() || self.closed.get() || (*self.core.get()).is_forked() {
                return None;
            }
            Some(self.core.get())
        }
    }

    /// Whether this thread and process may use the machine.
    pub unsafe fn is_foreign(&self) -> bool {
        // SAFETY: as above.
        unsafe {
            self.core.get().is_null()
                || (*self.core.get()).is_forked()
                || ((*self.core.get()).thread() != NIL
                    && (*self.core.get()).thread() != ruby::rb_thread_current())
        }
    }
}

/// The core of a scheduler of ours, or of what an object delegates to, if this thread runs fibers by it. Does not raise.
#[inline]
pub unsafe fn running_core(scheduler: VALUE) -> Option<*mut Core> {
    let scheduler = This::<Scheduler>::find(scheduler).or_else(|| find_behind(scheduler))?;
    let core = scheduler.core.get();
    // SAFETY: the core lives as long as the UM, which the scheduler marks.
    let runs = unsafe {
        !core.is_null() && (*core).thread() == ruby::rb_thread_current() && (*core).is_usable()
    };
    runs.then_some(core)
}

/// See lib/uringmachine/fiber_scheduler/current.rb.
#[cold]
fn find_behind(scheduler: VALUE) -> Option<This<Scheduler>> {
    // SAFETY: what may raise is stopped here.
    unsafe {
        let error = ruby::current_error();
        let itself = ruby::id("uring_scheduler");
        let found =
            ruby::protect(|| rb_sys::rb_check_funcall(scheduler, itself, 0, std::ptr::null()));
        match found {
            Ok(found) if found != ruby::UNDEF => This::find(found),
            Ok(_) => None,
            Err(_) => {
                ruby::put_error_back(error);
                None
            }
        }
    }
}

/// Makes a scheduler, to be given to Fiber.set_scheduler.
///
/// @method UringMachine::FiberScheduler.new(machine = nil, fork: :discard)
/// @param machine [UringMachine, nil] the machine it runs on; nil is a new one
/// @param fork [:discard, :renew] what a child of fork gets: no scheduler, or a fresh one with a ring of its
///   own; see `process_fork`
/// @return [UringMachine::FiberScheduler]
/// @raise [UringMachine::UnsupportedError] if the kernel or the sandbox refuses io_uring
/// @raise [ArgumentError] if the machine belongs to another thread, or fork is something else
/// @kernel 6.1
/// @example
///   Fiber.set_scheduler(UM::FiberScheduler.new)
fn initialize(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    settle(ruby, || {
        let (options, arguments) = match raw(arguments) {
            [arguments @ .., last] if ruby::is_hash(*last) => (Some(*last), arguments),
            arguments => (None, arguments),
        };
        let arguments = Arguments::of(arguments, 0..=1)?;
        // SAFETY: a Hash; the machine is on the caller's frame, and marked by the scheduler from then on.
        unsafe {
            let renews = options.map_or(Ok(false), |options| {
                let [fork] = arguments::keywords(options, ["fork"])?;
                fork.map_or(Ok(false), read_fork)
            })?;
            let machine = match arguments.optional(0) {
                None => machine::new_default()?,
                Some(machine) => machine,
            };
            let core = owner::core(machine)?;
            if (*core).thread() != NIL && (*core).thread() != ruby::rb_thread_current() {
                return Err(Raise::argument("machine belongs to another thread"));
            }
            let body = ruby::protect(|| {
                interrupts::watch();
                turns::begin();
                rb_sys::rb_proc_new(Some(run_fiber), NIL)
            });
            this.body.set(body.map_err(Raise::Jump)?);
            this.machine.set(machine);
            this.core.set(core);
            this.renews.set(renews);
            Ok(this.value())
        }
    })
}

/// Whether a child of fork gets a scheduler.
fn read_fork(value: VALUE) -> Result<bool, Raise> {
    // SAFETY: symbols that are written here are never collected.
    let is = |name| value == unsafe { rb_sys::rb_id2sym(ruby::id(name)) };
    match (is("discard"), is("renew")) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ => Err(Raise::argument("fork must be :discard or :renew")),
    }
}

/// The body of every scheduled fiber: the block that its core is starting, with its end attended to.
unsafe extern "C" fn run_fiber(
    this: VALUE,
    _nothing: VALUE,
    _argc: c_int,
    _argv: *const VALUE,
    _none: VALUE,
) -> VALUE {
    // SAFETY: `this` is the scheduler that started the fiber; it is marked by its thread.
    unsafe {
        let Some(scheduler) = This::<Scheduler>::find(this) else {
            return NIL;
        };
        let block = std::mem::replace(&mut (*scheduler.core.get()).starting, NIL);
        let result = ruby::protect(|| {
            interrupts::catch_unwinding(|| {
                rb_sys::rb_proc_call_with_block(block, 0, std::ptr::null(), NIL)
            })
        });
        std::hint::black_box(block);
        registry::end_of_forker(ruby::rb_fiber_current(), &result);
        let mut result = result.map_err(|state| switch::unwinding(state));
        crate::machine::spun::tell_listeners(ruby::rb_fiber_current());
        let core = scheduler.core.get();
        if !core.is_null() && !(*core).is_forked() {
            if let Some(task) = (*core).find(ruby::rb_fiber_current()) {
                if let (Ok(_), Some(exception)) = (&result, (*core).take_kept(task)) {
                    result = Err(Raise::Exception(exception));
                }
                (*core).remove(task);
            }
        }
        let told = match result {
            Ok(_) => Ok(()),
            Err(Raise::Exception(exception)) if !fails_all(&scheduler, exception) => {
                let told = report::report(core, exception);
                // It may have waited.
                if !core.is_null() && !(*core).is_forked() {
                    if let Some(task) = (*core).find(ruby::rb_fiber_current()) {
                        (*core).remove(task);
                    }
                }
                told
            }
            // What ends a process or a thread goes to the root fiber, where a fiber's unwinding
            // ends (cont.c, rb_fiber_terminate).
            Err(raise) => Err(raise),
        };
        match told {
            Ok(()) => NIL,
            Err(raise) => raise.leave(),
        }
    }
}

/// Whether an exception ends more than its fiber: `exit`, a signal, a shortage of memory, or any
/// under `abort_on_exception`.
unsafe fn fails_all(scheduler: &Scheduler, exception: VALUE) -> bool {
    // SAFETY: the accessors are Thread's own.
    unsafe {
        if scheduler.abort_on_exception.get() || report::is_fatal(exception) {
            return true;
        }
        let abort = ruby::id("abort_on_exception");
        ruby::truthy(ruby::funcall(ruby::rb_thread_current(), abort, &[]))
            || ruby::truthy(ruby::funcall(rb_sys::rb_cThread, abort, &[]))
    }
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
fn waiting(this: This<Scheduler>) -> Value {
    fibers_of(this, |state, _| state != State::Running)
}

/// The fibers that a scheduler's machine knows, and that are wanted.
fn fibers_of(this: This<Scheduler>, wanted: impl Fn(State, &Waiter) -> bool) -> Value {
    // SAFETY: the array is on this frame.
    unsafe {
        let list = rb_sys::rb_ary_new();
        if let Some(core) = this.core_from_anywhere() {
            for (_, state, waiter) in (*core).driver.tasks.iter() {
                if wanted(state, waiter) {
                    rb_sys::rb_ary_push(list, waiter.fiber);
                }
            }
        }
        as_value(list)
    }
}

/// UM::FiberScheduler#masked(mask) { }: runs the block with the fiber's timeouts held back as the mask of
/// Thread.handle_interrupt says.
fn masked(ruby: &Ruby, this: This<Scheduler>, mask: Value) -> Result<Value, Error> {
    let mask = mask.as_raw();
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            if !ruby::is_hash(mask) {
                // Ruby's own says what is wrong with it.
                return ruby::protect(|| rb_sys::rb_yield(NIL)).map_err(Raise::Jump);
            }
            interrupts::masked(this.core()?, mask)
        }
    })
}

/// The fibers that the scheduler has started and that have not ended.
fn scheduled(this: This<Scheduler>) -> Value {
    fibers_of(this, |_, waiter| {
        waiter.scheduled && !waiter.spun && waiter.outer.is_none()
    })
}

/// Closing.in_use?(io): whether a close of the IO has anything to end. (One without autoclose closes nothing.)
fn is_in_use(_class: Value, io: Value) -> bool {
    let io = io.as_raw();
    // SAFETY: an IO; the accessors do not raise for one that is closed, or was never open.
    unsafe {
        let file = (*(io as *const rb_sys::RFile)).fptr;
        if file.is_null() {
            return false;
        }
        let writer = rb_sys::rb_io_get_write_io(io);
        if writer != io {
            return true;
        }
        let external = rb_sys::FMODE_EXTERNAL as c_int;
        if (*file).fd < 0 || (*file).mode as c_int & external != 0 {
            return false;
        }
        tls::is_held((*file).fd) || registry::is_in_use((*file).fd)
    }
}

/// UM::FiberScheduler.end_waits(io, side): before an IO is closed, or becomes another file's, ends what fibers do with
/// its descriptor: see `waits`. Says who is yet to be told: `:others` for fibers of other threads, which have to end
/// what they do by themselves, `:own` for fibers of this one, nil for nobody. A side (:read or :write) is that of an IO
/// with a descriptor for each; nil is all of it.
fn end_waits(ruby: &Ruby, _class: Value, io: Value, side: Value) -> Result<Value, Error> {
    let (io, side) = (io.as_raw(), side.as_raw());
    settle(ruby, || {
        // SAFETY: what raises, for an IO that is closed, is stopped; then the GVL is held.
        unsafe {
            let fd = ruby::descriptor(io).map_err(Raise::Jump)?;
            let writer = rb_sys::rb_io_get_write_io(io);
            let is = |name| side == NIL || side == rb_sys::rb_id2sym(ruby::id(name));
            let mut waited = registry::EndedWaits::default();
            if writer != io && is("write") {
                waited.add(tls::end_waits(
                    ruby::descriptor(writer).map_err(Raise::Jump)?,
                ));
            }
            if if writer == io {
                side == NIL
            } else {
                is("read")
            } {
                waited.add(tls::end_waits(fd));
            }
            Ok(match waited {
                registry::EndedWaits {
                    elsewhere: true, ..
                } => rb_sys::rb_id2sym(ruby::id("others")),
                registry::EndedWaits { here: true, .. } => rb_sys::rb_id2sym(ruby::id("own")),
                _ => NIL,
            })
        }
    })
}

/// UM::FiberScheduler.forget(fd): forgets what a descriptor was, which is closed, or another file's now.
fn forget(_class: Value, fd: Value) {
    if let Some(fd) = ruby::as_fixnum(fd.as_raw()) {
        // SAFETY: the GVL is held.
        unsafe {
            registry::forget(fd as i32);
            registry::found(fd as i32);
        }
    }
}

/// UM::FiberScheduler#waiting_on(io) { }: runs the block so that the fiber raises IOError if the IO is closed
/// meanwhile, as Ruby's own hooks are run.
fn waiting_on(ruby: &Ruby, this: This<Scheduler>, io: Value) -> Result<Value, Error> {
    let io = io.as_raw();
    settle(ruby, || {
        // SAFETY: see `switch`; what raises is protected.
        unsafe {
            let core = this.core()?;
            let me = (*core).current_task();
            let fd = ruby::descriptor(io).map_err(Raise::Jump)?;
            let mut result = Ok(NIL);
            let waited = closing::during(core, me, io, fd, &mut || {
                result = ruby::protect(|| rb_sys::rb_yield(NIL));
            });
            let value = result.map_err(Raise::Jump)?;
            waited.map(|()| value)
        }
    })
}

/// Gives the thread to the root fiber, without being woken by anything.
///
/// @method UringMachine::FiberScheduler#transfer
/// @return [nil]
/// @example
///   scheduler.transfer
fn transfer(ruby: &Ruby, this: This<Scheduler>) -> Result<Value, Error> {
    settle(ruby, || {
        // SAFETY: see `switch`; nothing here needs dropping.
        unsafe {
            let core = this.core()?;
            let me = (*core).current_task();
            if let Some(root) = (*core).root {
                if root != me {
                    let fiber = (*core).waiter(root).fiber;
                    (*core).current = root;
                    let result = ruby::protect(|| ruby::transfer(fiber, &[]));
                    (*core).current = me;
                    return result.map_err(Raise::Jump);
                }
            }
            Ok(NIL)
        }
    })
}

/// @method UringMachine::FiberScheduler#machine
/// @return [UringMachine] the machine the scheduler runs on
/// @example
///   Fiber.scheduler.machine.metrics
fn machine(this: This<Scheduler>) -> Value {
    as_value(this.machine.get())
}

/// Whether what any fiber fails by is raised in the root fiber.
///
/// @method UringMachine::FiberScheduler#abort_on_exception=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   scheduler.abort_on_exception = true
fn set_abort_on_exception(this: This<Scheduler>, value: Value) -> Value {
    this.abort_on_exception.set(ruby::truthy(value.as_raw()));
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
    class.define_alloc_func::<Scheduler>();
    class.define_method("initialize", method!(initialize, -1))?;
    class.define_method("closed?", method!(is_closed, 0))?;
    class.define_method("waiting", method!(waiting, 0))?;
    class.define_private_method("waiting_on", method!(waiting_on, 1))?;
    class.define_private_method("masked", method!(masked, 1))?;
    class.define_private_method("scheduled", method!(scheduled, 0))?;
    class.define_singleton_method("end_waits", method!(end_waits, 2))?;
    // The rest is in lib/uringmachine/core_ext/io_close.rb.
    let closing = module.define_module("Closing")?;
    closing.define_singleton_method("in_use?", method!(is_in_use, 1))?;
    class.define_singleton_method("forget", method!(forget, 1))?;
    class.define_method("transfer", method!(transfer, 0))?;
    class.define_method("machine", method!(machine, 0))?;
    class.define_method("abort_on_exception", method!(abort_on_exception, 0))?;
    class.define_method("abort_on_exception=", method!(set_abort_on_exception, 1))?;
    Ok(class)
}
