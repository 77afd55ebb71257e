//! UringMachine, alias UM: the class whose instances own a machine, and the wrapping of Rust data in
//! Ruby objects.

use std::ffi::{c_int, c_void, CStr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uringmachine_runtime::ring::{DEFAULT_ENTRIES, MAX_ENTRIES};
use uringmachine_runtime::{Features, Machine, SetupError};

use crate::arguments;
use crate::core::Core;
use crate::durations;
use crate::errors;
use crate::interrupts;
use crate::native;
use crate::splicing;
use crate::sys::{self, Raise, NIL, TRUE, VALUE};
use crate::tls;
use crate::waits;

/// A Ruby data type, made at compile time.
pub struct DataType(rb_sys::rb_data_type_t);

// SAFETY: the struct is never written to after it is made.
unsafe impl Sync for DataType {}

type DataFn = unsafe extern "C" fn(*mut c_void);

impl DataType {
    pub const fn new<T>(name: &'static CStr, mark: DataFn, free: DataFn) -> Self {
        unsafe extern "C" fn size<T>(_: *const c_void) -> u64 {
            std::mem::size_of::<T>() as u64
        }
        // SAFETY: an all-zero type is a valid one without functions.
        let mut data_type: rb_sys::rb_data_type_t = unsafe { std::mem::zeroed() };
        data_type.wrap_struct_name = name.as_ptr();
        data_type.function.dmark = Some(mark);
        data_type.function.dfree = Some(free);
        data_type.function.dsize = Some(size::<T>);
        Self(data_type)
    }

    /// The same, with a function that finds the objects anew that a compaction has moved.
    const fn compacting(mut self, compact: DataFn) -> Self {
        self.0.function.dcompact = Some(compact);
        self
    }

    /// Makes an object of `class` that owns `data`.
    pub unsafe fn wrap(&'static self, class: VALUE, data: *mut c_void) -> VALUE {
        // SAFETY: the caller gives `data` away.
        unsafe { rb_sys::rb_data_typed_object_wrap(class, data, &self.0) }
    }

    /// The data of an object of this type, `None` for any other.
    #[inline]
    pub unsafe fn find(&'static self, value: VALUE) -> Option<*mut c_void> {
        // SAFETY: a check of the type, which does not raise; then the data are had without a raise too.
        unsafe {
            (rb_sys::rb_typeddata_is_kind_of(value, &self.0) != 0)
                .then(|| rb_sys::rb_check_typeddata(value, &self.0))
        }
    }

    /// The data of an object of this type; raises TypeError for any other.
    #[inline]
    pub unsafe fn get(&'static self, value: VALUE) -> *mut c_void {
        // SAFETY: the check is what this call does.
        unsafe { rb_sys::rb_check_typeddata(value, &self.0) }
    }
}

static TYPE: DataType = DataType::new::<Um>(c"UringMachine", mark, free);
static CLASS: AtomicU64 = AtomicU64::new(0);
/// The fiber that forked this process, which is its root fiber now; 0 in one that was not forked.
static FORKER: AtomicU64 = AtomicU64::new(0);

/// What a UM holds.
struct Um {
    core: Option<Box<Core>>,
    size: u32,
    sqpoll: bool,
    sidecar: bool,
}

/// The machines there are.
static MACHINES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    object: VALUE,
    core: *mut Core,
}

// SAFETY: a core is used under the GVL only, by the collector too.
unsafe impl Send for Entry {}

/// The list, for as long as nothing of Ruby's is called that may make an object: that may have to wait until all
/// Ractors let the collector run, and one that waits for the list does not. The collector itself looks into the list.
fn machines() -> MutexGuard<'static, Vec<Entry>> {
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
            if (**core).machine.has_waited_operations() && !(**core).is_forked() {
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

static ROOT: DataType =
    DataType::new::<()>(c"UringMachine root", mark_busy, keep).compacting(find_moved);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    if let Some(core) = unsafe { &(*data.cast::<Um>()).core } {
        core.mark();
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead, so no fiber waits in its machine.
    let um = unsafe { Box::from_raw(data.cast::<Um>()) };
    if let Some(core) = um.core {
        give_up(core);
    }
}

/// Ends a core that nobody can use any more.
fn give_up(mut core: Box<Core>) {
    let place: *mut Core = &raw mut *core;
    machines().retain(|entry| entry.core != place);
    if core.is_forked() {
        core.machine.forsake();
        return;
    }
    native::give_up_all(place);
    if core.machine.is_at_rest() {
        core.machine.drop_results();
        return;
    }
    // SAFETY: a plain accessor. Only the thread that a ring belongs to may enter it, and no Ruby runs
    // while it does.
    let own = core.thread() == unsafe { sys::rb_thread_current() };
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
    _id: sys::ID,
    _class: VALUE,
) {
    // SAFETY: a plain accessor.
    let thread = unsafe { sys::rb_thread_current() };
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
            core.pipes = splicing::Pipes::default();
            native::give_up_all(place);
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

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let um = Box::new(Um {
        core: None,
        size: 0,
        sqpoll: false,
        sidecar: false,
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(um).cast()) }
}

unsafe fn get<'a>(value: VALUE) -> &'a mut Um {
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
        if (*core).thread() == sys::rb_thread_current() && !(*core).is_forked() {
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
        let thread = sys::rb_thread_current();
        // A ring is entered by the native thread that has enabled it, and by no other.
        sys::rb_thread_lock_native_thread();
        (*core).bind(thread)?;
        // Once for a thread. The main thread ends with its process.
        sys::rb_thread_remove_event_hook(thread, end_of_thread);
        sys::rb_thread_add_event_hook(thread, end_of_thread, sys::EVENT_THREAD_END, NIL);
        sys::protect(|| {
            interrupts::watch();
            used_by(thread, true, |map| {
                static USES: AtomicU64 = AtomicU64::new(0);
                let number = USES.fetch_add(1, Ordering::Relaxed);
                sys::funcall(map, sys::id("[]="), &[value, sys::fixnum(number as i64)])
            })
        })
        .map_err(Raise::Jump)?;
        Ok(core)
    }
}

/// Does something with the machines that a thread uses, a WeakMap that the thread keeps, with numbers that grow: a
/// machine that a program has lost is not to be found. `NIL` if the thread has none and none is to be made. May raise.
unsafe fn used_by(thread: VALUE, make: bool, body: impl FnOnce(VALUE) -> VALUE) -> VALUE {
    // SAFETY: plain calls of Ruby methods; nothing here needs dropping.
    unsafe {
        // No variable of a program's: it has no `@`. A frozen thread keeps none.
        let variable = sys::id("__um_machines");
        let mut map = rb_sys::rb_attr_get(thread, variable);
        if map == NIL {
            if !make || sys::is_frozen(thread) {
                return NIL;
            }
            map = sys::funcall(sys::class(c"ObjectSpace::WeakMap"), sys::id("new"), &[]);
            rb_sys::rb_ivar_set(thread, variable, map);
        }
        body(map)
    }
}

/// The UM of this thread, and its core, that a fiber waits in, by itself or in a fiber that it has resumed.
pub unsafe fn waited_in_by(fiber: VALUE) -> Option<(VALUE, *mut Core)> {
    // SAFETY: as `mark_busy`; plain accessors.
    unsafe {
        let thread = sys::rb_thread_current();
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
        let thread = sys::rb_thread_current();
        machines().iter().any(|entry| {
            let core = &*entry.core;
            core.thread() == thread && core.has_started(fiber)
        })
    }
}

/// Calls `look` for each core that this thread may look into: those of its Ractor, whose lock it has, that are in use.
unsafe fn each_within_reach(mut look: impl FnMut(*mut Core)) {
    // SAFETY: the cores in the list are alive. It is not locked while `look` runs, which may run the collector.
    unsafe {
        let thread = sys::rb_thread_current();
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
            let near =
                owner == thread || home == *ractor.get_or_insert_with(|| sys::current_ractor());
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
    let mut in_use = tls::is_held(fd);
    // SAFETY: as `forget`.
    unsafe { each_within_reach(|core| in_use = in_use || (*core).uses(fd)) };
    in_use
}

/// Before a descriptor is closed, or becomes another file's: has the machines let go of its file, and ends what fibers
/// do with it.
pub unsafe fn end_waits(fd: RawFd) -> EndedWaits {
    tls::forget(fd);
    let mut ended = EndedWaits::default();
    // SAFETY: as `forget`.
    unsafe {
        each_within_reach(|core| {
            let own = (*core).thread() == sys::rb_thread_current();
            let is_waited_for = !(*core).waits.on(fd).is_empty();
            if own {
                if is_waited_for {
                    waits::end_on(core, fd, waits::closed());
                    ended.here = true;
                }
                (*core).let_go_of(fd);
            } else {
                if is_waited_for {
                    waits::interrupt_on(core, fd, waits::closed());
                    ended.elsewhere = true;
                }
                if (*core).machine.forget_file(fd) {
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
        if sys::is_a(blocker, sys::class(c"Thread::Mutex")) {
            // Its lock is free, unless somebody was quicker: its unlocking wakes the next, be it a thread.
            let passed = sys::protect(|| {
                if sys::truthy(rb_sys::rb_mutex_trylock(blocker)) {
                    rb_sys::rb_mutex_unlock(blocker);
                }
                NIL
            });
            if passed.is_err() {
                sys::take_exception();
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

/// Keeps the machine of a UM for ever.
pub unsafe fn leak(value: VALUE) {
    // SAFETY: the type is checked.
    if let Some(mut core) = unsafe { get(value).core.take() } {
        let place: *mut Core = &raw mut *core;
        machines().retain(|entry| entry.core != place);
        std::mem::forget(core);
    }
}

/// The class.
pub fn class() -> VALUE {
    CLASS.load(Ordering::Relaxed)
}

/// UM.new without arguments.
pub unsafe fn new_default() -> Result<VALUE, Raise> {
    // SAFETY: the class is defined when the extension is loaded; a fresh object has no core.
    unsafe {
        let object = allocate(CLASS.load(Ordering::Relaxed));
        set_up(object, DEFAULT_ENTRIES, None, false)?;
        Ok(object)
    }
}

unsafe fn set_up(
    object: VALUE,
    size: u32,
    sqpoll: Option<u32>,
    sidecar: bool,
) -> Result<(), Raise> {
    // SAFETY: a collection frees the descriptors of machines that nobody refers to.
    let core = unsafe {
        match new_core(size, sqpoll) {
            Err(error) if matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE)) => {
                rb_sys::rb_gc();
                new_core(size, sqpoll)
            }
            result => result,
        }
    };
    let mut core = core.map_err(errors::from_setup)?;
    machines().push(Entry {
        object,
        core: &raw mut *core,
    });
    // SAFETY: the object is one of ours, without a core until now.
    let um = unsafe { get(object) };
    um.core = Some(core);
    um.size = size;
    um.sqpoll = sqpoll.is_some();
    um.sidecar = sidecar;
    Ok(())
}

/// Makes a core with the features the environment leaves.
fn new_core(entries: u32, sqpoll: Option<u32>) -> Result<Box<Core>, SetupError> {
    Machine::new(entries, Features::from_environment(), sqpoll)
        .map(|machine| Box::new(Core::new(machine)))
}

/// Makes a machine. It belongs to the thread that uses it first.
///
/// @method UringMachine.new(size: 256, sqpoll: false, sidecar: false)
/// @param size [Integer] entries of the submission queue, 1 to 32768; a full queue is submitted, so a
///   small one costs no more than system calls
/// @param sqpoll [Boolean, Numeric] whether a thread of the kernel submits; a number is the seconds after
///   which it goes to sleep, true is one second
/// @param sidecar [Boolean] taken for programs written for uringmachine 1.0, and without effect: waiting
///   directly costs less (docs/benchmarks.md)
/// @return [UringMachine]
/// @raise [UringMachine::UnsupportedError] if the kernel or the sandbox refuses io_uring
/// @raise [Errno::EMFILE] and the like, if a resource is short
/// @raise [ArgumentError] for an option that is unknown or out of range
/// @kernel 6.1
/// @example
///   machine = UM.new
///   machine.sleep(0.01)
unsafe extern "C" fn initialize(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        sys::method(|| {
            let (mut entries, mut sqpoll, mut sidecar) = (DEFAULT_ENTRIES, None, false);
            match argc {
                0 => {}
                1 if sys::is_hash(*argv) => {
                    let names = ["size", "sqpoll", "sidecar"];
                    let [size, poll, car] = arguments::keywords(*argv, names)?;
                    if let Some(size) = size {
                        entries = read_size(size)?;
                    }
                    sqpoll = poll.map_or(Ok(None), read_sqpoll)?;
                    sidecar = car.is_some_and(sys::truthy);
                }
                _ => {
                    return Err(Raise::argument(&format!(
                        "wrong number of arguments (given {argc}, expected 0)"
                    )))
                }
            };
            if get(this).core.is_some() {
                return Err(Raise::misuse("already initialized"));
            }
            set_up(this, entries, sqpoll, sidecar)?;
            Ok(this)
        })
    }
}

fn read_size(size: VALUE) -> Result<u32, Raise> {
    match arguments::long(size, "size")? {
        entries if (1..=i64::from(MAX_ENTRIES)).contains(&entries) => Ok(entries as u32),
        entries => Err(Raise::argument(&format!(
            "size {entries} is not within 1..{MAX_ENTRIES}"
        ))),
    }
}

/// Milliseconds until the kernel's thread goes to sleep.
fn read_sqpoll(value: VALUE) -> Result<Option<u32>, Raise> {
    match value {
        sys::FALSE | NIL => Ok(None),
        TRUE => Ok(Some(1000)),
        seconds => {
            let nanoseconds = durations::named(seconds, "sqpoll")?.unwrap_or(0);
            Ok(Some(
                u32::try_from(nanoseconds / 1_000_000)
                    .unwrap_or(u32::MAX)
                    .max(1),
            ))
        }
    }
}

/// @method UringMachine#size
/// @return [Integer] the entries of the submission queue that were asked for
/// @example
///   UM.new(size: 64).size #=> 64
unsafe extern "C" fn size(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    sys::fixnum(i64::from(unsafe { get(this).size }))
}

/// @method UringMachine#sqpoll_mode?
/// @return [Boolean] whether a thread of the kernel submits
/// @example
///   UM.new.sqpoll_mode? #=> false
unsafe extern "C" fn is_sqpoll(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    sys::boolean(unsafe { get(this).sqpoll })
}

/// @method UringMachine#sidecar_mode?
/// @return [Boolean] whether a sidecar was asked for; there is none
/// @example
///   UM.new.sidecar_mode? #=> false
unsafe extern "C" fn is_sidecar(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    sys::boolean(unsafe { get(this).sidecar })
}

/// Notes that a sidecar is wanted; there is none.
///
/// @method UringMachine#sidecar_start
/// @return [UringMachine] self
/// @example
///   UM.new.sidecar_start.sidecar_mode? #=> true
unsafe extern "C" fn sidecar_start(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { get(this).sidecar = true };
    this
}

/// Notes that no sidecar is wanted.
///
/// @method UringMachine#sidecar_stop
/// @return [UringMachine] self
/// @example
///   UM.new(sidecar: true).sidecar_stop.sidecar_mode? #=> false
unsafe extern "C" fn sidecar_stop(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { get(this).sidecar = false };
    this
}

/// The machine that the current thread took into use last.
///
/// @method UringMachine.current
/// @return [UringMachine, nil] nil if the thread has used none
/// @example
///   UM.current #=> nil
unsafe extern "C" fn current(_class: VALUE) -> VALUE {
    // SAFETY: the list is on this frame; nothing here needs dropping.
    unsafe {
        used_by(sys::rb_thread_current(), false, |map| {
            let list = sys::funcall(map, sys::id("keys"), &[]);
            let is_usable = |machine: &VALUE| {
                let core = &(*TYPE.get(*machine).cast::<Um>()).core;
                core.as_ref().is_some_and(|core| core.is_usable())
            };
            let machine = (0..rb_sys::RARRAY_LEN(list) as i64)
                .map(|place| rb_sys::rb_ary_entry(list, place as _))
                .filter(is_usable)
                .max_by_key(|machine| {
                    sys::as_fixnum(sys::funcall(map, sys::id("[]"), &[*machine]))
                });
            std::hint::black_box(list);
            machine.unwrap_or(NIL)
        })
    }
}

/// @method UringMachine#owned?
/// @return [Boolean] whether the current thread may use the machine: it does already, or nobody does yet. Not
///   once it is closed, by the end of its scheduler
/// @example
///   UM.new.owned? #=> true
unsafe extern "C" fn is_owned(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        sys::method(|| {
            let core = core(this)?;
            let thread = (*core).thread();
            let free = thread == NIL || thread == sys::rb_thread_current();
            Ok(sys::boolean(free && (*core).is_usable()))
        })
    }
}

/// Asks whether the kernel and the sandbox allow io_uring. Never raises.
///
/// @method UringMachine.supported?
/// @return [Boolean]
/// @example
///   abort UM.unsupported_reason unless UM.supported?
unsafe extern "C" fn is_supported(_class: VALUE) -> VALUE {
    sys::boolean(Machine::<()>::new(1, Features::from_environment(), None).is_ok())
}

/// Says why io_uring cannot be had.
///
/// @method UringMachine.unsupported_reason
/// @return [String, nil] the cause and the remedy; nil if io_uring can be had
/// @example
///   UM.unsupported_reason #=> nil
unsafe extern "C" fn unsupported_reason(_class: VALUE) -> VALUE {
    match Machine::<()>::new(1, Features::from_environment(), None) {
        Ok(_) => NIL,
        Err(error) => {
            let text = error.to_string();
            // SAFETY: the text is copied.
            unsafe { rb_sys::rb_utf8_str_new(text.as_ptr().cast(), text.len() as _) }
        }
    }
}

/// Ends the process if `fiber`, which ends, is the one that forked it: there is no other that could go on.
/// Ruby would do so too, but with the fiber gone that the scheduler's end runs on, and with status 0.
/// `result` is what [`sys::protect`] returned.
pub unsafe fn end_of_forker(fiber: VALUE, result: &Result<VALUE, c_int>) {
    if fiber == FORKER.load(Ordering::Relaxed) {
        // SAFETY: nothing of the frames below is needed any more.
        unsafe { sys::ruby_stop(result.err().unwrap_or(0)) };
    }
}

/// Leaves the parent's machines to the parent. The child of a fork calls it.
unsafe extern "C" fn forsake(_class: VALUE) -> VALUE {
    // SAFETY: a plain accessor.
    FORKER.store(unsafe { sys::rb_fiber_current() }, Ordering::Relaxed);
    let mut place = 0;
    loop {
        // To unlock what an operation has locked is a call into Ruby: the list is not locked for it.
        let core = match machines().get(place) {
            Some(entry) => entry.core,
            None => return NIL,
        };
        place += 1;
        // SAFETY: the cores in the list are alive, and no fiber of a child's parent runs in one.
        unsafe {
            if (*core).is_forked() {
                (*core).forsake();
            }
        }
    }
}

/// Defines the class and its alias.
pub unsafe fn define() -> VALUE {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class(c"UringMachine".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_const(rb_sys::rb_cObject, c"UM".as_ptr(), class);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        CLASS.store(class, Ordering::Relaxed);
        let root = ROOT.wrap(rb_sys::rb_cObject, std::ptr::dangling_mut::<u8>().cast());
        rb_sys::rb_gc_register_mark_object(root);
        sys::define_method(class, c"initialize", initialize as *const (), -1);
        sys::define_method(class, c"size", size as *const (), 0);
        sys::define_method(class, c"owned?", is_owned as *const (), 0);
        sys::define_method(class, c"sqpoll_mode?", is_sqpoll as *const (), 0);
        sys::define_method(class, c"sidecar_mode?", is_sidecar as *const (), 0);
        sys::define_method(class, c"sidecar_start", sidecar_start as *const (), 0);
        sys::define_method(class, c"sidecar_stop", sidecar_stop as *const (), 0);
        sys::define_singleton_method(class, c"current", current as *const (), 0);
        sys::define_singleton_method(class, c"forsake", forsake as *const (), 0);
        sys::funcall(
            class,
            sys::id("private_class_method"),
            &[rb_sys::rb_id2sym(sys::id("forsake"))],
        );
        sys::define_singleton_method(class, c"supported?", is_supported as *const (), 0);
        sys::define_singleton_method(
            class,
            c"unsupported_reason",
            unsupported_reason as *const (),
            0,
        );
        class
    }
}
