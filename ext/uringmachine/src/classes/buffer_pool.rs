//! UM::BufferPool: IO::Buffers in memory that is registered with the machine's ring.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use uringmachine_runtime::fixed_buffers::{Mapping, RegionId};

use crate::lending;
use crate::machine::caller::{answer, Caller};
use crate::machine::line::{self, Waiters};
use crate::machine::switch::Failure;
use crate::machine::{Core, Discarded, Discards};
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, arguments, duration, Outcome, Raise, NIL, VALUE};

/// What a pool holds.
///
/// Its buffers are slices of a root buffer, so that Ruby itself knows what is left of them: whatever was
/// transferred or sliced keeps the root, which keeps the pool, which keeps the memory; and the end of the root
/// ends them all.
struct Pool {
    /// The UM whose ring the memory is registered with; `NIL` for one that no machine has made.
    machine: VALUE,
    region: RegionId,
    size: usize,
    memory: Option<Arc<Mapping>>,
    /// The IO::Buffer of all the memory.
    root: VALUE,
    /// The buffers in the order of their places in the memory.
    buffers: Vec<VALUE>,
    /// The places of those that nobody has.
    free: VecDeque<usize>,
    waiters: Waiters,
    discards: Option<Discards>,
    closed: bool,
}

static TYPE: DataType = DataType::new::<Pool>(c"UM::BufferPool", mark, free);
static CLASS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    unsafe {
        let pool = data.cast::<Pool>();
        rb_sys::rb_gc_mark((*pool).machine);
        rb_sys::rb_gc_mark((*pool).root);
        for buffer in &(*pool).buffers {
            rb_sys::rb_gc_mark(*buffer);
        }
        (*pool).waiters.mark();
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead, and so is every view of its memory, which would keep it.
    let pool = unsafe { Box::from_raw(data.cast::<Pool>()) };
    // Any thread may collect it; only the machine's own may change the ring.
    if let (false, Some(discards)) = (pool.closed, &pool.discards) {
        discards.add(Discarded::Buffers(pool.region));
    }
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let pool = Box::new(Pool {
        machine: NIL,
        region: 0,
        size: 0,
        memory: None,
        root: NIL,
        buffers: Vec::new(),
        free: VecDeque::new(),
        waiters: Waiters::default(),
        discards: None,
        closed: false,
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(pool).cast()) }
}

unsafe fn get(value: VALUE) -> Result<*mut Pool, Raise> {
    // SAFETY: the type is checked; no reference is held across a wait.
    unsafe {
        let pool = TYPE.get(value).cast::<Pool>();
        if (*pool).machine == NIL {
            return Err(Raise::misuse(
                "uninitialized BufferPool: UM#register_buffers makes them",
            ));
        }
        if (*pool).closed {
            return Err(Raise::misuse("closed BufferPool"));
        }
        Ok(pool)
    }
}

/// Makes a pool of `count` buffers of `size` bytes.
pub unsafe fn make(machine: VALUE, core: *mut Core, count: u32, size: usize) -> Outcome {
    // SAFETY: the class is defined when the extension is loaded; the root is a view of the region's memory,
    // and keeps the pool, which has a share in it.
    unsafe {
        let mut registered = (*core).machine.register_buffers(count, size);
        if matches!(&registered, Err(error) if error.raw_os_error() == Some(libc::ENOBUFS)) {
            // Pools that nobody refers to may have the room.
            rb_sys::rb_gc();
            (*core).give_up_discarded();
            registered = (*core).machine.register_buffers(count, size);
        }
        let (region, memory) = match registered {
            Ok(region) => region,
            Err(error) => return Err(refused(&error, count, size)),
        };
        let object = allocate(CLASS.load(Ordering::Relaxed));
        let pool = TYPE.get(object).cast::<Pool>();
        (*pool).machine = machine;
        (*pool).region = region;
        (*pool).size = size;
        (*pool).discards = Some((*core).discards.clone());
        let (base, length) = (memory.base().cast(), count as usize * size);
        (*pool).memory = Some(memory);
        (*pool).root = ruby::protect(|| {
            let root = ruby::rb_io_buffer_new(base, length, ruby::IO_BUFFER_EXTERNAL);
            rb_sys::rb_ivar_set(root, ruby::id("@um_pool"), object);
            root
        })
        .map_err(Raise::Jump)?;
        for place in 0..count as usize {
            let buffer = slice(pool, place)?;
            (*pool).buffers.push(buffer);
            (*pool).free.push_back(place);
        }
        Ok(object)
    }
}

/// A new buffer of what lies at a place.
unsafe fn slice(pool: *mut Pool, place: usize) -> Outcome {
    // SAFETY: the place lies within the root.
    unsafe {
        let size = (*pool).size;
        let range = [
            ruby::fixnum((place * size) as i64),
            ruby::fixnum(size as i64),
        ];
        ruby::protect(|| ruby::funcall((*pool).root, ruby::id("slice"), &range))
            .map_err(Raise::Jump)
    }
}

/// The error for memory that the kernel would not register.
fn refused(error: &std::io::Error, count: u32, size: usize) -> Raise {
    let bytes = count as usize * size;
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: a valid place for the answer.
            unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
            Raise::errno_with(
                libc::ENOMEM,
                &format!(
                    "{bytes} bytes cannot be locked; RLIMIT_MEMLOCK is {} bytes (ulimit -l)",
                    limit.rlim_cur
                ),
            )
        }
        Some(libc::ENOBUFS) => Raise::errno_with(
            libc::ENOBUFS,
            &format!("{count} more buffers than the ring's table has room for"),
        ),
        errno => Raise::errno(errno.unwrap_or(libc::EINVAL)),
    }
}

/// Takes a buffer that nobody has; waits while there is none. With a block, gives it to the block, and back
/// to the pool however the block ends.
///
/// @method UringMachine::BufferPool#acquire(timeout: nil, &block)
/// @param timeout [Numeric, nil] seconds to wait at the most
/// @yieldparam buffer [IO::Buffer]
/// @return [IO::Buffer, Object] the buffer, or what the block returns
/// @raise [IO::TimeoutError] after the timeout
/// @raise [UringMachine::Error] if the pool or its machine is closed, or they are the parent process's
/// @example
///   pool.acquire { |buffer| machine.read(fd, buffer, nil) }
unsafe extern "C" fn acquire(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        ruby::method(|| {
            let options = arguments::Arguments::new(argc, argv, 0..=1)?;
            let timeout = match options.optional(0) {
                None => NIL,
                Some(options) if ruby::is_hash(options) => {
                    let [timeout] = arguments::keywords(options, ["timeout"])?;
                    timeout.unwrap_or(NIL)
                }
                Some(_) => {
                    return Err(Raise::argument(
                        "wrong number of arguments (given 1, expected 0)",
                    ))
                }
            };
            let deadline = duration::named(timeout, "timeout")?.map(duration::from_now);
            let buffer = match take(this, deadline) {
                Ok(buffer) => buffer,
                Err(failure) => return answer(Err(failure)),
            };
            if rb_sys::rb_block_given_p() == 0 {
                return Ok(buffer);
            }
            let result = ruby::protect(|| rb_sys::rb_yield(buffer));
            let given = give(this, buffer);
            let value = result.map_err(Raise::Jump)?;
            given?;
            Ok(value)
        })
    }
}

unsafe fn take(this: VALUE, deadline: Option<u64>) -> Result<VALUE, Failure> {
    // SAFETY: the pool is on the caller's frame; see `switch`.
    unsafe {
        let mut again = false;
        loop {
            let pool = get(this)?;
            if !(*crate::machine::owner::core((*pool).machine)?).is_usable() {
                let text = "the pool's machine is closed, or belongs to the parent process";
                return Err(Raise::misuse(text).into());
            }
            if let Some(place) = (*pool).free.front().copied() {
                let buffer = whole(pool, place)?;
                (*pool).free.pop_front();
                return Ok(buffer);
            }
            let caller = Caller::new((*pool).machine)?;
            let line = || &raw mut (*pool).waiters;
            match line::wait(&caller, (*pool).machine, line, again, deadline) {
                Ok(true) => again = true,
                Ok(false) => {
                    let text = "no buffer of the pool was released in time";
                    return Err(Raise::new(ruby::io_timeout_error(), text).into());
                }
                Err(failure) => {
                    if !(*pool).free.is_empty() {
                        (*pool).waiters.wake_one();
                    }
                    return Err(failure);
                }
            }
        }
    }
}

/// The buffer at a place.
unsafe fn at(pool: *mut Pool, place: usize) -> VALUE {
    // SAFETY: the pool is alive, and nothing that could change it runs meanwhile.
    let buffers = unsafe { &(*pool).buffers };
    buffers[place]
}

/// The buffer at a place as it was made, a new one if the program has freed, transferred or resized the old one.
unsafe fn whole(pool: *mut Pool, place: usize) -> Outcome {
    let (mut base, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: an IO::Buffer; the accessor does not raise. The place lies within the memory.
    unsafe {
        let known = at(pool, place);
        ruby::rb_io_buffer_get_bytes(known, &mut base, &mut size);
        let (mut start, mut length) = (std::ptr::null_mut(), 0);
        ruby::rb_io_buffer_get_bytes((*pool).root, &mut start, &mut length);
        if base == start.byte_add(place * (*pool).size) && size == (*pool).size {
            return Ok(known);
        }
        let buffer = slice(pool, place)?;
        let buffers = &mut (*pool).buffers;
        buffers[place] = buffer;
        Ok(buffer)
    }
}

/// Gives a buffer back. One that was freed or transferred meanwhile makes room for a new one of the same memory.
///
/// @method UringMachine::BufferPool#release(buffer)
/// @param buffer [IO::Buffer] one that `acquire` has returned
/// @return [UringMachine::BufferPool] self
/// @raise [UringMachine::Error] if the buffer is not the pool's, is released already, or an operation works on it
/// @example
///   pool.release(buffer)
unsafe extern "C" fn release(this: VALUE, buffer: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            give(this, buffer)?;
            Ok(this)
        })
    }
}

unsafe fn give(this: VALUE, buffer: VALUE) -> Result<(), Raise> {
    // SAFETY: the type is checked; the buffer is one of the pool's, so an IO::Buffer.
    unsafe {
        let pool = get(this)?;
        let mut buffers = (*pool).buffers.iter();
        let Some(place) = buffers.position(|known| *known == buffer) else {
            return Err(Raise::misuse("buffer is not of this pool"));
        };
        if (*pool).free.contains(&place) {
            return Err(Raise::misuse("buffer has been released already"));
        }
        if is_in_use(pool, place) {
            return Err(Raise::misuse("buffer is in use by an operation"));
        }
        (*pool).free.push_back(place);
        (*pool).waiters.wake_one();
        Ok(())
    }
}

/// Whether a buffer of the pool's is locked, or an operation works on any part of what lies at its place.
unsafe fn is_in_use(pool: *mut Pool, place: usize) -> bool {
    // SAFETY: an IO::Buffer. The machine's UM lives as long as the pool.
    unsafe {
        let index = (*pool).region as usize + place;
        let core = crate::machine::owner::core((*pool).machine).ok();
        let core = core.filter(|core| (**core).is_usable());
        if let Some(core) = core.filter(|core| !(**core).lending.loans.is_empty()) {
            lending::take_back(&mut *core);
        }
        lending::is_locked(at(pool, place))
            || core.is_some_and(|core| (*core).lending.in_use.has(index as u16))
    }
}

/// Takes the memory out of the ring and gives it back. The buffers are null afterwards, and their slices invalid.
///
/// @method UringMachine::BufferPool#close
/// @return [nil]
/// @raise [UringMachine::Error] if a buffer has not been released or is in use, or the pool is closed already
/// @example
///   pool.close
unsafe extern "C" fn close(this: VALUE) -> VALUE {
    // SAFETY: the type is checked; no buffer is locked. A view that another thread works on keeps the memory.
    unsafe {
        ruby::method(|| {
            let pool = get(this)?;
            let caller = Caller::new((*pool).machine)?;
            let count = (*pool).buffers.len();
            if (*pool).free.len() < count {
                return Err(Raise::misuse("a buffer of the pool has not been released"));
            }
            if (0..count).any(|place| is_in_use(pool, place)) {
                return Err(Raise::misuse("a buffer of the pool is in use"));
            }
            // Slices of the buffers, and what they were transferred to, are slices of the root.
            ruby::protect(|| {
                for place in 0..count {
                    ruby::rb_io_buffer_free(at(pool, place));
                }
                ruby::rb_io_buffer_free((*pool).root)
            })
            .map_err(Raise::Jump)?;
            (*pool).closed = true;
            (*pool).waiters.wake_all();
            (*caller.core).machine.unregister_buffers((*pool).region);
            if let Some(memory) = &(*pool).memory {
                memory.discard();
            }
            Ok(NIL)
        })
    }
}

/// @method UringMachine::BufferPool#closed?
/// @return [Boolean]
/// @example
///   pool.closed? #=> false
unsafe extern "C" fn is_closed(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    ruby::boolean(unsafe { (*TYPE.get(this).cast::<Pool>()).closed })
}

/// @method UringMachine::BufferPool#available
/// @return [Integer] the buffers that nobody has
/// @example
///   pool.available #=> 16
unsafe extern "C" fn available(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::fixnum((*get(this)?).free.len() as i64))) }
}

/// @method UringMachine::BufferPool#size
/// @return [Integer] the bytes of a buffer
/// @example
///   pool.size #=> 65536
unsafe extern "C" fn size(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::fixnum((*get(this)?).size as i64))) }
}

/// Registers memory with the machine's ring: pinned once, it costs less to read to and write from. A buffer of
/// the pool, or a slice of one, is used so wherever it is given to `read`, `write`, `recv` or `send` of the
/// machine, or to IO::Buffer#read and its kin on a file under a UM::FiberScheduler, without being asked. With
/// another machine it is plain memory.
///
/// @method UringMachine#register_buffers(count:, size:)
/// @param count [Integer] how many buffers, 1 to 4096 for all pools of a machine
/// @param size [Integer] bytes of each; rounded up to whole pages
/// @return [UringMachine::BufferPool]
/// @raise [Errno::ENOMEM] if RLIMIT_MEMLOCK is too low; it says how low
/// @raise [Errno::ENOBUFS] if there is no room for as many
/// @raise [ArgumentError] if count or size is out of range
/// @raise [TypeError] if count or size is no Integer
/// @kernel 5.19
/// @example
///   pool = machine.register_buffers(count: 16, size: 65_536)
///   pool.acquire { |buffer| machine.read(fd, buffer, nil) }
unsafe extern "C" fn register_buffers(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        crate::machine::caller::method(argc, argv, this, 1..=1, |caller, arguments| {
            let options = arguments.get(0);
            if !ruby::is_hash(options) {
                return Err(Raise::argument("missing keywords: count:, size:").into());
            }
            let [count, size] = arguments::keywords(options, ["count", "size"])?;
            let (Some(count), Some(size)) = (count, size) else {
                return Err(Raise::argument("missing keywords: count:, size:").into());
            };
            let (count, size) = (
                arguments::long(count, "count")?,
                arguments::long(size, "size")?,
            );
            if !(1..=4096).contains(&count) {
                return Err(arguments::out_of_range("count", count).into());
            }
            if !(1..=1 << 30).contains(&size) {
                return Err(arguments::out_of_range("size", size).into());
            }
            let size = (size as usize).next_multiple_of(4096);
            Ok(make(this, caller.core, count as u32, size)?)
        })
    }
}

/// Defines the class, and the machine's method that makes them.
pub unsafe fn define(module: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let name = c"BufferPool".as_ptr();
        let class = rb_sys::rb_define_class_under(module, name, rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        CLASS.store(class, Ordering::Relaxed);
        ruby::define_method(class, c"acquire", acquire as *const (), -1);
        ruby::define_method(class, c"release", release as *const (), 1);
        ruby::define_method(class, c"close", close as *const (), 0);
        ruby::define_method(class, c"closed?", is_closed as *const (), 0);
        ruby::define_method(class, c"available", available as *const (), 0);
        ruby::define_method(class, c"size", size as *const (), 0);
        let method = register_buffers as *const ();
        ruby::define_method(module, c"register_buffers", method, -1);
    }
}
