//! UM::FiberScheduler: the object, its life, and how fibers start and end. Its hooks are in
//! `hooks/`.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{TaskId, Wake};

use crate::arguments;
use crate::core::{Core, Pending};
use crate::errors;
use crate::hooks;
use crate::interrupts;
use crate::report;
use crate::sys::{self, Raise, FALSE, NIL, TRUE, VALUE};
use crate::{switch, turns, um, waits};

/// How long the end of a scheduler waits for the kernel to give memory back, in nanoseconds.
const SHUT_DOWN_LIMIT: u64 = 5_000_000_000;

/// What a UM::FiberScheduler holds.
pub struct Scheduler {
    /// The UM the scheduler runs on.
    machine: VALUE,
    core: *mut Core,
    closed: bool,
    abort_on_exception: bool,
    /// A child of fork gets a scheduler of its own.
    renews: bool,
    /// [`run_fiber`] as a Proc, the body of every fiber: to make one for each costs as much as the fiber.
    body: VALUE,
}

static TYPE: um::DataType = um::DataType::new::<Scheduler>(c"UM::FiberScheduler", mark, free);

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
            let thread = sys::rb_thread_current();
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
                    sys::class(c"FiberError"),
                    "fiber called across threads",
                ));
            }
            um::bind(self.machine)
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
                    && (*self.core).thread() != sys::rb_thread_current())
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
            !core.is_null() && (*core).thread() == sys::rb_thread_current() && (*core).is_usable();
        runs.then_some(core)
    }
}

/// See lib/uringmachine/schedulers.rb.
#[cold]
unsafe fn find_behind(scheduler: VALUE) -> Option<*mut c_void> {
    // SAFETY: what may raise is stopped here.
    unsafe {
        let error = sys::current_error();
        let itself = sys::id("uring_scheduler");
        let found =
            sys::protect(|| rb_sys::rb_check_funcall(scheduler, itself, 0, std::ptr::null()));
        match found {
            Ok(found) if found != sys::UNDEF => TYPE.find(found),
            Ok(_) => None,
            Err(_) => {
                sys::put_error_back(error);
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
        sys::method(|| {
            let (options, argc) = match argc {
                0 => (None, 0),
                _ => match *argv.add(argc as usize - 1) {
                    last if sys::is_hash(last) => (Some(last), argc - 1),
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
                um::new_default()?
            } else {
                machine
            };
            let core = um::core(machine)?;
            if (*core).thread() != NIL && (*core).thread() != sys::rb_thread_current() {
                return Err(Raise::argument("machine belongs to another thread"));
            }
            let body = sys::protect(|| {
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
    let is = |name| value == unsafe { rb_sys::rb_id2sym(sys::id(name)) };
    match (is("discard"), is("renew")) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ => Err(Raise::argument("fork must be :discard or :renew")),
    }
}

/// Gives a child of fork its scheduler: none, or, if this one was made with `fork: :renew`, a fresh one of the
/// same class on a machine of the same size, which is installed. The child of every fork that goes through
/// Ruby (fork, IO.popen("-"), Process.daemon) calls it, by the fiber that forked, after the parent's ring has
/// been left alone. That fiber is the child's only one, and its root: it blocks, as the main program does, and
/// what it gives to Fiber.schedule runs under the new scheduler. Classes of one's own may override it.
///
/// @method UringMachine::FiberScheduler#process_fork
/// @return [UringMachine::FiberScheduler, nil] the child's scheduler
/// @raise [UringMachine::Error] in the process that the scheduler belongs to
/// @raise [Errno::EMFILE] and the like, if a resource is short
/// @example
///   def process_fork
///     super&.tap { |scheduler| scheduler.abort_on_exception = true }
///   end
unsafe extern "C" fn process_fork(this: VALUE) -> VALUE {
    // SAFETY: the type is checked; what may raise is protected.
    unsafe {
        sys::method(|| {
            let scheduler = get(this);
            if scheduler.core.is_null() || !(*scheduler.core).is_forked() {
                return Err(Raise::misuse("process_fork is for a child of fork"));
            }
            if !scheduler.renews {
                return Ok(NIL);
            }
            sys::protect(|| renew(this)).map_err(Raise::Jump)
        })
    }
}

/// A scheduler as `this` for the child, installed. May longjmp.
unsafe fn renew(this: VALUE) -> VALUE {
    // SAFETY: plain calls of Ruby methods; nothing here needs dropping.
    unsafe {
        let parents = get(this).machine;
        let size = um::size_of(parents) as i64;
        let sqpoll = sys::funcall(parents, sys::id("sqpoll_mode?"), &[]);
        let options = [("size", sys::fixnum(size)), ("sqpoll", sqpoll)];
        let machine = new_with(um::class(), &[], &options);
        let renew = rb_sys::rb_id2sym(sys::id("renew"));
        let new = new_with(rb_sys::rb_obj_class(this), &[machine], &[("fork", renew)]);
        if get(this).abort_on_exception {
            sys::funcall(new, sys::id("abort_on_exception="), &[TRUE]);
        }
        sys::rb_fiber_scheduler_set(new);
        new
    }
}

/// `class.new` with keywords. May longjmp.
unsafe fn new_with(class: VALUE, arguments: &[VALUE], options: &[(&str, VALUE)]) -> VALUE {
    // SAFETY: the arguments are on this frame.
    unsafe {
        let hash = rb_sys::rb_hash_new();
        for (name, value) in options {
            rb_sys::rb_hash_aset(hash, rb_sys::rb_id2sym(sys::id(name)), *value);
        }
        let mut list = [NIL; 2];
        list[..arguments.len()].copy_from_slice(arguments);
        list[arguments.len()] = hash;
        let count = arguments.len() as c_int + 1;
        let keywords = rb_sys::RB_PASS_KEYWORDS as c_int;
        rb_sys::rb_funcallv_kw(class, sys::id("new"), count, list.as_ptr(), keywords)
    }
}

/// Starts a fiber at once and returns it when it first waits, or ends. Fiber.schedule calls it.
///
/// @method UringMachine::FiberScheduler#fiber(storage: nil, &block)
/// @param storage [Hash, true, nil] as of Fiber.new
/// @return [Fiber]
/// @raise [ArgumentError] without a block
/// @example
///   Fiber.schedule { sleep 1 }
unsafe extern "C" fn fiber(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch` on frames and unwinding.
    unsafe {
        sys::method(|| {
            if rb_sys::rb_block_given_p() == 0 {
                return Err(Raise::argument(
                    "tried to create Proc object without a block",
                ));
            }
            let core = get(this).core()?;
            let block = rb_sys::rb_block_proc();
            let fiber = new_fiber(get(this).body, storage(argc, argv)?)?;
            let me = (*core).current_task();
            let task = (*core).add(fiber, true);
            // Whoever started the fiber goes on as soon as it waits.
            let wait = (*core).machine.tasks.begin_wait(me);
            (*core).machine.tasks.wake_first(wait, Wake::Complete);
            let is_root = (*core).root.is_none() && !(*core).waiter(me).scheduled;
            if is_root {
                (*core).root = Some(me);
            }
            (*core).current = task;
            (*core).starting = block;
            let result = switch::wait(core, me, Some((fiber, this)));
            if is_root {
                (*core).root = None;
            }
            (*core).finish_wait(me);
            match result {
                Ok(_) => Ok(fiber),
                Err(state) => Err(Raise::Jump(state)),
            }
        })
    }
}

/// The `storage:` of `Fiber.schedule(storage: …)`, as Fiber.new takes it.
unsafe fn storage(argc: c_int, argv: *const VALUE) -> Result<Option<VALUE>, Raise> {
    if argc == 0 {
        return Ok(None);
    }
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        let options = *argv;
        if argc > 1 || rb_sys::rb_obj_is_kind_of(options, rb_sys::rb_cHash) != TRUE {
            return Err(Raise::argument(&format!(
                "wrong number of arguments (given {argc}, expected 0)"
            )));
        }
        let key = rb_sys::rb_id2sym(sys::id("storage"));
        let storage = rb_sys::rb_hash_lookup2(options, key, sys::UNDEF);
        Ok((storage != sys::UNDEF).then_some(storage))
    }
}

/// A fiber that does not block, with a body.
unsafe fn new_fiber(body: VALUE, storage: Option<VALUE>) -> Result<VALUE, Raise> {
    // SAFETY: may raise, stopped here; the Hash is on the frame.
    unsafe {
        static NEW: OnceLock<(VALUE, sys::ID)> = OnceLock::new();
        let (class, new) = match NEW.get() {
            Some(found) => *found,
            None => {
                // A look-up may wait for other Ractors: none of them waits for it.
                let found = (sys::class(c"Fiber"), sys::id("new"));
                *NEW.get_or_init(|| found)
            }
        };
        sys::protect(|| match storage {
            None => rb_sys::rb_funcall_with_block(class, new, 0, std::ptr::null(), body),
            Some(storage) => {
                let options = rb_sys::rb_hash_new();
                rb_sys::rb_hash_aset(options, rb_sys::rb_id2sym(sys::id("storage")), storage);
                let keywords = rb_sys::RB_PASS_KEYWORDS as c_int;
                rb_sys::rb_funcall_with_block_kw(class, new, 1, &options, body, keywords)
            }
        })
        .map_err(Raise::Jump)
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
        let result = sys::protect(|| {
            interrupts::catch_unwinding(|| {
                rb_sys::rb_proc_call_with_block(block, 0, std::ptr::null(), NIL)
            })
        });
        std::hint::black_box(block);
        um::end_of_forker(sys::rb_fiber_current(), &result);
        let mut result = result.map_err(|state| switch::unwinding(state));
        crate::machine::tell_listeners(sys::rb_fiber_current());
        let scheduler = get(this);
        let core = scheduler.core;
        if !core.is_null() && !(*core).is_forked() {
            if let Some(task) = (*core).find(sys::rb_fiber_current()) {
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
                    if let Some(task) = (*core).find(sys::rb_fiber_current()) {
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
        let abort = sys::id("abort_on_exception");
        sys::truthy(sys::funcall(sys::rb_thread_current(), abort, &[]))
            || sys::truthy(sys::funcall(rb_sys::rb_cThread, abort, &[]))
    }
}

/// Runs until no fiber waits in the machine.
unsafe fn run_all(core: *mut Core) -> Result<(), Raise> {
    // SAFETY: see `switch`.
    unsafe {
        let me = (*core).current_task();
        let outer = (*core).root.replace(me);
        let mut ended = Ok(());
        while (*core).machine.tasks.waiting() > 0 {
            // The root waits for nothing but control: every fiber that ends gives it back.
            if let Err(raise) = switch::run_others(core, me) {
                ended = Err(raise);
                break;
            }
        }
        (*core).root = outer;
        (*core).finish_wait(me);
        ended
    }
}

/// Drives the fibers until none waits.
///
/// @method UringMachine::FiberScheduler#run
/// @return [true]
/// @example
///   scheduler.run
unsafe extern "C" fn run(this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        sys::method(|| {
            let core = get(this).core()?;
            run_all(core)?;
            Ok(TRUE)
        })
    }
}

/// Waits for the fibers, or unwinds them if the thread is being ended, and gives the ring back. Ruby calls
/// it when the scheduler is replaced, and at the thread's end.
///
/// @method UringMachine::FiberScheduler#scheduler_close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   Fiber.set_scheduler(nil) # calls it
unsafe extern "C" fn scheduler_close(this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        sys::method(|| {
            let scheduler = get(this);
            if scheduler.closed {
                return Err(Raise::new(
                    rb_sys::rb_eRuntimeError,
                    "Scheduler already closed!",
                ));
            }
            if scheduler.core.is_null() || (*scheduler.core).is_forked() {
                scheduler.closed = true;
                return Ok(NIL);
            }
            let core = match scheduler.core() {
                Ok(core) => core,
                Err(raise) => {
                    scheduler.closed = true;
                    return Err(raise);
                }
            };
            let ended = if thread_is_ending() {
                terminate_all(core)
            } else {
                match run_all(core) {
                    Ok(()) => Ok(()),
                    Err(raise) => Err(unwind_all(core, raise)),
                }
            };
            get(this).closed = true;
            if (*core).machine.shut_down(SHUT_DOWN_LIMIT) {
                (*core).machine.close();
            } else {
                // The kernel may still write to what the machine knows: it must never be freed.
                um::leak(get(this).machine);
            }
            ended.map(|()| NIL)
        })
    }
}

/// Whether the thread is unwinding for good: killed, or by a signal or an exit.
unsafe fn thread_is_ending() -> bool {
    // SAFETY: plain accessors.
    unsafe {
        let error = sys::current_error();
        if sys::as_fixnum(error).is_some() {
            return true;
        }
        error != NIL
            && (rb_sys::rb_obj_is_kind_of(error, rb_sys::rb_eSystemExit) == TRUE
                || rb_sys::rb_obj_is_kind_of(error, rb_sys::rb_eSignal) == TRUE)
    }
}

/// The thread was interrupted while it waited for its fibers: unwinds them, then goes on unwinding.
unsafe fn unwind_all(core: *mut Core, raise: Raise) -> Raise {
    // SAFETY: see `switch`.
    unsafe {
        let first = match raise {
            Raise::Jump(state) => switch::unwinding(state),
            raise => raise,
        };
        match (terminate_all(core), first) {
            // A kill cannot be kept while others run; the later one stands for it.
            (Err(later), Raise::Jump(_)) => later,
            (_, first) => first,
        }
    }
}

/// Unwinds every fiber, so that its ensure blocks run, and waits for those to their end, whatever interrupts. What their
/// ensure blocks start is waited for.
unsafe fn terminate_all(core: *mut Core) -> Result<(), Raise> {
    /// More interrupts than anybody sends: it is the machine that fails.
    const MOST: usize = 1000;
    // SAFETY: see `switch`.
    unsafe {
        (*core).ending = true;
        for task in unwindable(core) {
            (*core).interrupt(task, Pending::Unwind);
        }
        let mut later = None;
        // Fibers of the program's own have no body of ours that an unwinding could end in.
        let mut killed = Vec::new();
        while let Some((task, fiber)) = next_to_kill(core, &killed) {
            killed.push(task);
            let me = (*core).current_task();
            let outer = (*core).root.replace(me);
            let result = sys::protect(|| crate::machine::kill(fiber));
            (*core).current = me;
            (*core).root = outer;
            if let Err(state) = result {
                later.get_or_insert(switch::unwinding(state));
            }
        }
        for _ in 0..MOST {
            match run_all(core) {
                Ok(()) => break,
                Err(Raise::Jump(state)) => drop(later.get_or_insert(switch::unwinding(state))),
                Err(raise) => drop(later.get_or_insert(raise)),
            }
        }
        (*core).ending = false;
        match later.or((*core).late.take()) {
            Some(raise) => Err(raise),
            None => Ok(()),
        }
    }
}

/// The tasks of the fibers that a machine has started, and that can be told to end.
unsafe fn unwindable(core: *mut Core) -> Vec<TaskId> {
    // SAFETY: as above.
    unsafe {
        let current = sys::rb_fiber_current();
        (*core)
            .machine
            .tasks
            .iter()
            .filter(|(_, _, waiter)| waiter.unwinds() && waiter.fiber != current)
            .map(|(task, _, _)| task)
            .collect()
    }
}

unsafe fn next_to_kill(core: *mut Core, killed: &[TaskId]) -> Option<(TaskId, VALUE)> {
    // SAFETY: see `switch`.
    unsafe {
        let current = sys::rb_fiber_current();
        (*core)
            .machine
            .tasks
            .iter()
            .find(|(task, state, waiter)| {
                *state != State::Running
                    && waiter.fiber != current
                    && !waiter.unwinds()
                    && !killed.contains(task)
            })
            .map(|(task, _, waiter)| (task, waiter.fiber))
    }
}

/// Closes the scheduler: as `Fiber.set_scheduler(nil)` where it is installed.
///
/// @method UringMachine::FiberScheduler#close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   scheduler.close
unsafe extern "C" fn close(this: VALUE) -> VALUE {
    // SAFETY: plain accessors; set_scheduler calls scheduler_close and may raise, with nothing here
    // to drop.
    unsafe {
        // What is installed may be an object that delegates to this one.
        let installed = sys::rb_fiber_scheduler_get();
        let itself = sys::id("uring_scheduler");
        if installed == this
            || (installed != NIL
                && rb_sys::rb_respond_to(installed, itself) != 0
                && sys::funcall(installed, itself, &[]) == this)
        {
            return sys::rb_fiber_scheduler_set(NIL);
        }
        sys::funcall(this, sys::id("scheduler_close"), &[])
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
        sys::method(|| {
            if !sys::is_hash(mask) {
                // Ruby's own says what is wrong with it.
                return sys::protect(|| rb_sys::rb_yield(NIL)).map_err(Raise::Jump);
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
        sys::boolean(um::is_in_use((*file).fd))
    }
}

/// UM::FiberScheduler.end_waits(io, side): before an IO is closed, or becomes another file's, ends what fibers do with
/// its descriptor: see `waits`. Says who is yet to be told: `:others` for fibers of other threads, which have to end
/// what they do by themselves, `:own` for fibers of this one, nil for nobody. A side (:read or :write) is that of an IO
/// with a descriptor for each; nil is all of it.
unsafe extern "C" fn end_waits(_class: VALUE, io: VALUE, side: VALUE) -> VALUE {
    // SAFETY: may raise, for an IO that is closed, with nothing here to drop; then the GVL is held.
    unsafe {
        let fd = sys::rb_io_descriptor(io);
        let writer = rb_sys::rb_io_get_write_io(io);
        sys::method(|| {
            let is = |name| side == NIL || side == rb_sys::rb_id2sym(sys::id(name));
            let mut waited = um::EndedWaits::default();
            if writer != io && is("write") {
                waited.add(um::end_waits(sys::rb_io_descriptor(writer)));
            }
            if if writer == io {
                side == NIL
            } else {
                is("read")
            } {
                waited.add(um::end_waits(fd));
            }
            Ok(match waited {
                um::EndedWaits {
                    elsewhere: true, ..
                } => rb_sys::rb_id2sym(sys::id("others")),
                um::EndedWaits { here: true, .. } => rb_sys::rb_id2sym(sys::id("own")),
                _ => NIL,
            })
        })
    }
}

/// UM::FiberScheduler.forget(fd): forgets what a descriptor was, which is closed, or another file's now.
unsafe extern "C" fn forget(_class: VALUE, fd: VALUE) -> VALUE {
    if let Some(fd) = sys::as_fixnum(fd) {
        // SAFETY: the GVL is held.
        unsafe {
            um::forget(fd as i32);
            um::found(fd as i32);
        }
    }
    NIL
}

/// UM::FiberScheduler#waiting_on(io) { }: runs the block so that the fiber raises IOError if the IO is closed
/// meanwhile, as Ruby's own hooks are run.
unsafe extern "C" fn waiting_on(this: VALUE, io: VALUE) -> VALUE {
    // SAFETY: see `switch`; what raises is protected.
    unsafe {
        sys::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            let fd = sys::rb_io_descriptor(io);
            let mut result = Ok(NIL);
            let waited = waits::during(core, me, io, fd, &mut || {
                result = sys::protect(|| rb_sys::rb_yield(NIL));
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
        sys::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            if let Some(root) = (*core).root {
                if root != me {
                    let fiber = (*core).waiter(root).fiber;
                    (*core).current = root;
                    let result = sys::protect(|| sys::transfer(fiber, &[]));
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
    unsafe { get(this).abort_on_exception = sys::truthy(value) };
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

/// Defines the class and its hooks.
pub unsafe fn define(module: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class =
            rb_sys::rb_define_class_under(module, c"FiberScheduler".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        let define = |name, function, arity| sys::define_method(class, name, function, arity);
        define(c"initialize", initialize as *const (), -1);
        define(c"fiber", fiber as *const (), -1);
        define(c"process_fork", process_fork as *const (), 0);
        define(c"run", run as *const (), 0);
        define(c"close", close as *const (), 0);
        define(c"scheduler_close", scheduler_close as *const (), 0);
        define(c"closed?", is_closed as *const (), 0);
        define(c"waiting", waiting as *const (), 0);
        sys::define_private_method(class, c"waiting_on", waiting_on as *const (), 1);
        sys::define_private_method(class, c"masked", masked as *const (), 1);
        sys::define_private_method(class, c"scheduled", scheduled as *const (), 0);
        sys::define_singleton_method(class, c"end_waits", end_waits as *const (), 2);
        // The rest is in lib/uringmachine/closing.rb.
        let closing = rb_sys::rb_define_module_under(module, c"Closing".as_ptr());
        sys::define_singleton_method(closing, c"in_use?", is_in_use as *const (), 1);
        sys::define_singleton_method(class, c"forget", forget as *const (), 1);
        define(c"transfer", transfer as *const (), 0);
        define(c"machine", machine as *const (), 0);
        define(c"abort_on_exception", abort_on_exception as *const (), 0);
        define(
            c"abort_on_exception=",
            set_abort_on_exception as *const (),
            1,
        );
        hooks::define(class);
    }
}
