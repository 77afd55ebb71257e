//! UM::FiberScheduler: the object, its life, and how fibers start and end. Its hooks are in
//! `hooks/`.

use std::ffi::{c_int, c_void};

use uringmachine_runtime::tasks::State;

use super::{machine, turns};
use crate::machine::{closing, interrupts, owner, registry, report, switch, Core};
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, arguments, errors, Raise, FALSE, NIL, TRUE, VALUE};
use crate::tls;

/// What a UM::FiberScheduler holds.
pub struct Scheduler {
    /// The UM the scheduler runs on.
    pub machine: VALUE,
    pub core: *mut Core,
    pub closed: bool,
    pub abort_on_exception: bool,
    /// A child of fork gets a scheduler of its own.
    pub renews: bool,
    /// [`run_fiber`] as a Proc, the body of every fiber: to make one for each costs as much as the fiber.
    pub body: VALUE,
}

static TYPE: DataType = DataType::new::<Scheduler>(c"UM::FiberScheduler", mark, free);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    unsafe {
        rb_sys::rb_gc_mark((*data.cast::<Scheduler>()).machine);
        rb_sys::rb_gc_mark((*data.cast::<Scheduler>()).body);
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead; the core belongs to the UM.
    drop(unsafe { Box::from_raw(data.cast::<Scheduler>()) });
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let scheduler = Box::new(Scheduler {
        machine: NIL,
        body: NIL,
        core: std::ptr::null_mut(),
        closed: false,
        abort_on_exception: false,
        renews: false,
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(scheduler).cast()) }
}

/// The data of a scheduler. Raises TypeError for anything else.
#[inline]
pub unsafe fn get<'a>(value: VALUE) -> &'a mut Scheduler {
    // SAFETY: the type is checked; no two references are held across a call into Ruby.
    unsafe { &mut *TYPE.get(value).cast::<Scheduler>() }
}

impl Scheduler {
    /// The core, for a hook that runs on the scheduler's own thread.
    #[inline]
    pub unsafe fn core(&self) -> Result<*mut Core, Raise> {
        // SAFETY: the core lives as long as the UM, which this scheduler marks.
        unsafe {
            let thread = ruby::rb_thread_current();
            if !self.core.is_null() && (*self.core).thread() == thread && !(*self.core).is_forked()
            {
                return Ok(self.core);
            }
            self.first_use()
        }
    }

    #[cold]
    unsafe fn first_use(&self) -> Result<*mut Core, Raise> {
        // SAFETY: as above.
        unsafe {
            if self.core.is_null() || self.closed {
                return Err(Raise::new(
                    rb_sys::rb_eRuntimeError,
                    "Scheduler already closed!",
                ));
            }
            if (*self.core).is_forked() {
                return Err(Raise::new(
                    errors::error_class(),
                    "this scheduler belongs to the parent process; install one of your own with Fiber.set_scheduler(UM::FiberScheduler.new)",
                ));
            }
            if (*self.core).thread() != NIL {
                return Err(Raise::new(
                    ruby::class(c"FiberError"),
                    "fiber called across threads",
                ));
            }
            owner::bind(self.machine)
        }
    }

    /// The core, for hooks that other threads may call; `None` when there is nobody to wake.
    #[inline]
    pub unsafe fn core_from_anywhere(&self) -> Option<*mut Core> {
        // SAFETY: the GVL is held, which is what guards a core's tasks.
        unsafe {
            if self.core.is_null() || self.closed || (*self.core).is_forked() {
                return None;
            }
            Some(self.core)
        }
    }

    /// Whether this thread and process may use the machine.
    pub unsafe fn is_foreign(&self) -> bool {
        // SAFETY: as above.
        unsafe {
            self.core.is_null()
                || (*self.core).is_forked()
                || ((*self.core).thread() != NIL
                    && (*self.core).thread() != ruby::rb_thread_current())
        }
    }
}

/// The core of a scheduler of ours, or of what an object delegates to, if this thread runs fibers by it. Does not raise.
#[inline]
pub unsafe fn running_core(scheduler: VALUE) -> Option<*mut Core> {
    // SAFETY: the type is checked.
    unsafe {
        let data = match TYPE.find(scheduler) {
            Some(data) => data,
            None => find_behind(scheduler)?,
        };
        let core = (*data.cast::<Scheduler>()).core;
        let runs =
            !core.is_null() && (*core).thread() == ruby::rb_thread_current() && (*core).is_usable();
        runs.then_some(core)
    }
}

/// See lib/uringmachine/fiber_scheduler/current.rb.
#[cold]
unsafe fn find_behind(scheduler: VALUE) -> Option<*mut c_void> {
    // SAFETY: what may raise is stopped here.
    unsafe {
        let error = ruby::current_error();
        let itself = ruby::id("uring_scheduler");
        let found =
            ruby::protect(|| rb_sys::rb_check_funcall(scheduler, itself, 0, std::ptr::null()));
        match found {
            Ok(found) if found != ruby::UNDEF => TYPE.find(found),
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
unsafe extern "C" fn initialize(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        ruby::method(|| {
            let (options, argc) = match argc {
                0 => (None, 0),
                _ => match *argv.add(argc as usize - 1) {
                    last if ruby::is_hash(last) => (Some(last), argc - 1),
                    _ => (None, argc),
                },
            };
            let renews = options.map_or(Ok(false), |options| {
                let [fork] = arguments::keywords(options, ["fork"])?;
                fork.map_or(Ok(false), read_fork)
            })?;
            let machine = match argc {
                0 => NIL,
                1 => *argv,
                _ => {
                    return Err(Raise::argument(&format!(
                        "wrong number of arguments (given {argc}, expected 0..1)"
                    )))
                }
            };
            let machine = if machine == NIL {
                machine::new_default()?
            } else {
                machine
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
            let scheduler = get(this);
            scheduler.body = body.map_err(Raise::Jump)?;
            scheduler.machine = machine;
            scheduler.core = core;
            scheduler.renews = renews;
            Ok(this)
        })
    }
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
        let block = std::mem::replace(&mut (*get(this).core).starting, NIL);
        let result = ruby::protect(|| {
            interrupts::catch_unwinding(|| {
                rb_sys::rb_proc_call_with_block(block, 0, std::ptr::null(), NIL)
            })
        });
        std::hint::black_box(block);
        registry::end_of_forker(ruby::rb_fiber_current(), &result);
        let mut result = result.map_err(|state| switch::unwinding(state));
        crate::machine::spun::tell_listeners(ruby::rb_fiber_current());
        let scheduler = get(this);
        let core = scheduler.core;
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
            Err(Raise::Exception(exception)) if !fails_all(scheduler, exception) => {
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
        if scheduler.abort_on_exception || report::is_fatal(exception) {
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
unsafe extern "C" fn is_closed(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    if unsafe { get(this).closed } {
        TRUE
    } else {
        FALSE
    }
}

/// The fibers that wait in the machine or are about to go on.
///
/// @method UringMachine::FiberScheduler#waiting
/// @return [Array<Fiber>]
/// @example
///   scheduler.waiting.size #=> 0
unsafe extern "C" fn waiting(this: VALUE) -> VALUE {
    // SAFETY: the array is on this frame.
    unsafe {
        let list = rb_sys::rb_ary_new();
        if let Some(core) = get(this).core_from_anywhere() {
            for (_, state, waiter) in (*core).machine.tasks.iter() {
                if state != State::Running {
                    rb_sys::rb_ary_push(list, waiter.fiber);
                }
            }
        }
        list
    }
}

/// UM::FiberScheduler#masked(mask) { }: runs the block with the fiber's timeouts held back as the mask of
/// Thread.handle_interrupt says.
unsafe extern "C" fn masked(this: VALUE, mask: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        ruby::method(|| {
            if !ruby::is_hash(mask) {
                // Ruby's own says what is wrong with it.
                return ruby::protect(|| rb_sys::rb_yield(NIL)).map_err(Raise::Jump);
            }
            interrupts::masked(get(this).core()?, mask)
        })
    }
}

/// The fibers that the scheduler has started and that have not ended.
unsafe extern "C" fn scheduled(this: VALUE) -> VALUE {
    // SAFETY: as above.
    unsafe {
        let list = rb_sys::rb_ary_new();
        if let Some(core) = get(this).core_from_anywhere() {
            for (_, _, waiter) in (*core).machine.tasks.iter() {
                if waiter.scheduled && !waiter.spun && waiter.outer.is_none() {
                    rb_sys::rb_ary_push(list, waiter.fiber);
                }
            }
        }
        list
    }
}

/// Closing.in_use?(io): whether a close of the IO has anything to end. (One without autoclose closes nothing.)
unsafe extern "C" fn is_in_use(_class: VALUE, io: VALUE) -> VALUE {
    // SAFETY: an IO; the accessors do not raise for one that is closed, or was never open.
    unsafe {
        let file = (*(io as *const rb_sys::RFile)).fptr;
        if file.is_null() {
            return FALSE;
        }
        let writer = rb_sys::rb_io_get_write_io(io);
        if writer != io {
            return TRUE;
        }
        let external = rb_sys::FMODE_EXTERNAL as c_int;
        if (*file).fd < 0 || (*file).mode as c_int & external != 0 {
            return FALSE;
        }
        ruby::boolean(tls::is_held((*file).fd) || registry::is_in_use((*file).fd))
    }
}

/// UM::FiberScheduler.end_waits(io, side): before an IO is closed, or becomes another file's, ends what fibers do with
/// its descriptor: see `waits`. Says who is yet to be told: `:others` for fibers of other threads, which have to end
/// what they do by themselves, `:own` for fibers of this one, nil for nobody. A side (:read or :write) is that of an IO
/// with a descriptor for each; nil is all of it.
unsafe extern "C" fn end_waits(_class: VALUE, io: VALUE, side: VALUE) -> VALUE {
    // SAFETY: may raise, for an IO that is closed, with nothing here to drop; then the GVL is held.
    unsafe {
        let fd = ruby::rb_io_descriptor(io);
        let writer = rb_sys::rb_io_get_write_io(io);
        ruby::method(|| {
            let is = |name| side == NIL || side == rb_sys::rb_id2sym(ruby::id(name));
            let mut waited = registry::EndedWaits::default();
            if writer != io && is("write") {
                waited.add(tls::end_waits(ruby::rb_io_descriptor(writer)));
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
        })
    }
}

/// UM::FiberScheduler.forget(fd): forgets what a descriptor was, which is closed, or another file's now.
unsafe extern "C" fn forget(_class: VALUE, fd: VALUE) -> VALUE {
    if let Some(fd) = ruby::as_fixnum(fd) {
        // SAFETY: the GVL is held.
        unsafe {
            registry::forget(fd as i32);
            registry::found(fd as i32);
        }
    }
    NIL
}

/// UM::FiberScheduler#waiting_on(io) { }: runs the block so that the fiber raises IOError if the IO is closed
/// meanwhile, as Ruby's own hooks are run.
unsafe extern "C" fn waiting_on(this: VALUE, io: VALUE) -> VALUE {
    // SAFETY: see `switch`; what raises is protected.
    unsafe {
        ruby::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            let fd = ruby::rb_io_descriptor(io);
            let mut result = Ok(NIL);
            let waited = closing::during(core, me, io, fd, &mut || {
                result = ruby::protect(|| rb_sys::rb_yield(NIL));
            });
            let value = result.map_err(Raise::Jump)?;
            waited.map(|()| value)
        })
    }
}

/// Gives the thread to the root fiber, without being woken by anything.
///
/// @method UringMachine::FiberScheduler#transfer
/// @return [nil]
/// @example
///   scheduler.transfer
unsafe extern "C" fn transfer(this: VALUE) -> VALUE {
    // SAFETY: see `switch`; nothing here needs dropping.
    unsafe {
        ruby::method(|| {
            let core = get(this).core()?;
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
        })
    }
}

/// @method UringMachine::FiberScheduler#machine
/// @return [UringMachine] the machine the scheduler runs on
/// @example
///   Fiber.scheduler.machine.metrics
unsafe extern "C" fn machine(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { get(this).machine }
}

/// Whether what any fiber fails by is raised in the root fiber.
///
/// @method UringMachine::FiberScheduler#abort_on_exception=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   scheduler.abort_on_exception = true
unsafe extern "C" fn set_abort_on_exception(this: VALUE, value: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { get(this).abort_on_exception = ruby::truthy(value) };
    value
}

/// @method UringMachine::FiberScheduler#abort_on_exception
/// @return [Boolean] whether what any fiber fails by is raised in the root fiber
/// @example
///   scheduler.abort_on_exception #=> false
unsafe extern "C" fn abort_on_exception(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    if unsafe { get(this).abort_on_exception } {
        TRUE
    } else {
        FALSE
    }
}

/// Defines the class, without its hooks.
pub unsafe fn define(module: VALUE) -> VALUE {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class =
            rb_sys::rb_define_class_under(module, c"FiberScheduler".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        let define = |name, function, arity| ruby::define_method(class, name, function, arity);
        define(c"initialize", initialize as *const (), -1);
        define(c"closed?", is_closed as *const (), 0);
        define(c"waiting", waiting as *const (), 0);
        ruby::define_private_method(class, c"waiting_on", waiting_on as *const (), 1);
        ruby::define_private_method(class, c"masked", masked as *const (), 1);
        ruby::define_private_method(class, c"scheduled", scheduled as *const (), 0);
        ruby::define_singleton_method(class, c"end_waits", end_waits as *const (), 2);
        // The rest is in lib/uringmachine/core_ext/io_close.rb.
        let closing = rb_sys::rb_define_module_under(module, c"Closing".as_ptr());
        ruby::define_singleton_method(closing, c"in_use?", is_in_use as *const (), 1);
        ruby::define_singleton_method(class, c"forget", forget as *const (), 1);
        define(c"transfer", transfer as *const (), 0);
        define(c"machine", machine as *const (), 0);
        define(c"abort_on_exception", abort_on_exception as *const (), 0);
        define(
            c"abort_on_exception=",
            set_abort_on_exception as *const (),
            1,
        );
        class
    }
}
