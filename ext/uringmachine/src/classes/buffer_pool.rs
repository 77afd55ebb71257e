//! UM::BufferPool: IO::Buffers in memory that is registered with the machine's ring.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData, Value};
use uringmachine_runtime::mapping::Mapping;
use uringmachine_runtime::registered_buffers::RegionId;

use crate::lending;
use crate::machine::caller::{answer, call, Answer, Caller};
use crate::machine::line::{self, Waiters};
use crate::machine::{owner, Core, Discarded, Discards};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::method::{as_value, raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, Outcome, Raise, NIL, VALUE};

/// What a pool holds. Nothing that runs Ruby, or allocates, is called while any of it is borrowed.
///
/// Its buffers are slices of a root buffer, so that Ruby itself knows what is left of them: whatever was
/// transferred or sliced keeps the root, which keeps the pool, which keeps the memory; and the end of the root
/// ends them all.
#[derive(Default, TypedData)]
#[magnus(class = "UringMachine::BufferPool", mark, size)]
pub struct Pool {
    state: Cell<State>,
    /// Of a pool that a machine has made.
    region: OnceCell<Region>,
    /// The IO::Buffer of all the memory; false before there is one.
    root: Cell<VALUE>,
    /// The buffers in the order of their places in the memory.
    buffers: RefCell<Vec<VALUE>>,
    /// The places of those that nobody has.
    free: RefCell<VecDeque<usize>>,
    waiters: RefCell<Waiters>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// No machine has made it, or one is about to.
    #[default]
    Unmade,
    Open,
    Closed,
}

/// The memory of a pool.
struct Region {
    /// The UM whose ring it is registered with.
    machine: VALUE,
    id: RegionId,
    /// The bytes of a buffer.
    size: usize,
    memory: Arc<Mapping>,
    discards: Discards,
}

impl DataTypeFunctions for Pool {
    /// The object is dead, and so is every view of its memory, which would keep it. Unmapping enters the kernel, so
    /// this is not done in the middle of a collection.
    fn free(self: Box<Self>) {
        // Any thread may collect it; only the machine's own may change the ring.
        if let (Some(region), true) = (self.region.get(), self.state.get() != State::Closed) {
            region.discards.add(Discarded::Buffers(region.id));
        }
    }

    fn mark(&self, marker: &Marker) {
        if let Some(region) = self.region.get() {
            marker.mark(as_value(region.machine));
        }
        marker.mark(as_value(self.root.get()));
        // SAFETY: the collector runs while neither is borrowed, and changes neither.
        let (buffers, waiters) = unsafe { (&*self.buffers.as_ptr(), &*self.waiters.as_ptr()) };
        for buffer in buffers {
            marker.mark(as_value(*buffer));
        }
        waiters.mark();
    }
}

impl Pool {
    /// The memory of a pool that is open, else the error to raise.
    fn region(&self) -> Result<&Region, Raise> {
        match (self.state.get(), self.region.get()) {
            (State::Open, Some(region)) => Ok(region),
            (State::Closed, _) => Err(Raise::misuse("closed BufferPool")),
            _ => Err(Raise::misuse(
                "uninitialized BufferPool: UM#register_buffers makes them",
            )),
        }
    }

    /// The buffer at a place.
    fn at(&self, place: usize) -> VALUE {
        self.buffers.borrow()[place]
    }

    /// A new buffer of what lies at a place.
    fn slice(&self, region: &Region, place: usize) -> Outcome {
        let range = [
            ruby::fixnum((place * region.size) as i64),
            ruby::fixnum(region.size as i64),
        ];
        // SAFETY: the root is an IO::Buffer, marked by the pool; what is raised is stopped.
        unsafe { ruby::protect(|| ruby::funcall(self.root.get(), ruby::id("slice"), &range)) }
            .map_err(Raise::Jump)
    }

    /// The buffer at a place as it was made, a new one if the program has freed, transferred or resized the old one.
    fn whole(&self, region: &Region, place: usize) -> Outcome {
        let known = self.at(place);
        let (mut base, mut size) = (std::ptr::null_mut(), 0);
        let (mut start, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: two IO::Buffers; the accessor does not raise.
        unsafe {
            ruby::rb_io_buffer_get_bytes(known, &mut base, &mut size);
            ruby::rb_io_buffer_get_bytes(self.root.get(), &mut start, &mut length);
        }
        if base == start.wrapping_byte_add(place * region.size) && size == region.size {
            return Ok(known);
        }
        let buffer = self.slice(region, place)?;
        self.buffers.borrow_mut()[place] = buffer;
        Ok(buffer)
    }

    /// Whether a buffer of the pool's is locked, or an operation works on any part of what lies at its place.
    fn is_in_use(&self, region: &Region, place: usize) -> bool {
        // SAFETY: the machine's UM lives as long as the pool; the buffer is an IO::Buffer.
        unsafe {
            let core = owner::core(region.machine).ok();
            let core = core.filter(|core| (**core).is_usable());
            if let Some(core) = core.filter(|core| !(**core).lending.loans.is_empty()) {
                lending::take_back(&mut *core);
            }
            let index = region.id as usize + place;
            lending::is_locked(self.at(place))
                || core.is_some_and(|core| (*core).lending.in_use.has(index as u16))
        }
    }

    /// Has a buffer be nobody's.
    fn put_back(&self, place: usize) {
        self.free.borrow_mut().push_back(place);
        self.waiters.borrow_mut().wake_one();
    }

    fn give(&self, buffer: VALUE) -> Result<(), Raise> {
        let region = self.region()?;
        let place = self.buffers.borrow().iter().position(|b| *b == buffer);
        let Some(place) = place else {
            return Err(Raise::misuse("buffer is not of this pool"));
        };
        if self.free.borrow().contains(&place) {
            return Err(Raise::misuse("buffer has been released already"));
        }
        if self.is_in_use(region, place) {
            return Err(Raise::misuse("buffer is in use by an operation"));
        }
        self.put_back(place);
        Ok(())
    }
}

/// Makes a pool of `count` buffers of `size` bytes. It is the program's to use when all of it is made.
fn make(ruby: &Ruby, machine: VALUE, core: *mut Core, count: u32, size: usize) -> Outcome {
    // SAFETY: making an object may raise, stopped here.
    let object = unsafe { ruby::protect(|| ruby.obj_wrap(Pool::default()).as_raw()) };
    let object = object.map_err(Raise::Jump)?;
    let Some(pool) = This::<Pool>::find(object) else {
        unreachable!("an object of another class was made");
    };
    let (id, memory) = register(core, count, size)?;
    let (base, length) = (memory.base().cast(), count as usize * size);
    let region = pool.region.get_or_init(|| Region {
        machine,
        id,
        size,
        memory,
        // SAFETY: the core is alive while one of its fibers runs a method.
        discards: unsafe { (*core).discards.clone() },
    });
    // SAFETY: the root is a view of the region's memory, and keeps the pool, which has a share in that; what is raised
    // is stopped.
    let root = unsafe {
        ruby::protect(|| {
            let root = ruby::rb_io_buffer_new(base, length, ruby::IO_BUFFER_EXTERNAL);
            rb_sys::rb_ivar_set(root, ruby::id("@um_pool"), object);
            root
        })
    };
    pool.root.set(root.map_err(Raise::Jump)?);
    for place in 0..count as usize {
        let buffer = pool.slice(region, place)?;
        pool.buffers.borrow_mut().push(buffer);
        pool.free.borrow_mut().push_back(place);
    }
    pool.state.set(State::Open);
    pool.keep();
    Ok(object)
}

/// Registers memory with a machine's ring.
fn register(core: *mut Core, count: u32, size: usize) -> Result<(RegionId, Arc<Mapping>), Raise> {
    // SAFETY: the core is alive while one of its fibers runs a method; no reference to it is held across the collection.
    unsafe {
        let mut registered = (*core).driver.register_buffers(count, size);
        if matches!(&registered, Err(error) if error.raw_os_error() == Some(libc::ENOBUFS)) {
            // Pools that nobody refers to may have the room.
            rb_sys::rb_gc();
            (*core).give_up_discarded();
            registered = (*core).driver.register_buffers(count, size);
        }
        registered.map_err(|error| refused(&error, count, size))
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
fn acquire(ruby: &Ruby, pool: This<Pool>, arguments: &[Value]) -> Result<Value, Error> {
    settle(ruby, || {
        let deadline = deadline(&Arguments::of(raw(arguments), 0..=1)?)?;
        let buffer = match take(pool, deadline) {
            Ok(buffer) => buffer,
            Err(failure) => return answer(Err(failure)),
        };
        if !ruby.block_given() {
            return Ok(buffer);
        }
        // SAFETY: the block of the method that runs; what it raises is stopped.
        let result = unsafe { ruby::protect(|| rb_sys::rb_yield(buffer)) };
        let given = pool.give(buffer);
        pool.keep();
        let value = result.map_err(Raise::Jump)?;
        given?;
        Ok(value)
    })
}

/// When `acquire` is to give up.
fn deadline(arguments: &Arguments) -> Result<Option<u64>, Raise> {
    let timeout = match arguments.optional(0) {
        None => NIL,
        // SAFETY: a type check, and the keywords of what is a Hash.
        Some(options) if { ruby::is_hash(options) } => unsafe {
            let [timeout] = arguments::keywords(options, ["timeout"])?;
            timeout.unwrap_or(NIL)
        },
        Some(_) => {
            return Err(Raise::argument(
                "wrong number of arguments (given 1, expected 0)",
            ))
        }
    };
    Ok(duration::named(timeout, "timeout")?.map(duration::from_now))
}

/// Takes a buffer that nobody has, or waits for one.
fn take(pool: This<Pool>, deadline: Option<u64>) -> Answer {
    let mut again = false;
    loop {
        let region = pool.region()?;
        // SAFETY: the UM is marked by the pool, and so its core is alive.
        if !unsafe { (*owner::core(region.machine)?).is_usable() } {
            let text = "the pool's machine is closed, or belongs to the parent process";
            return Err(Raise::misuse(text).into());
        }
        let place = pool.free.borrow_mut().pop_front();
        if let Some(place) = place {
            let buffer = pool.whole(region, place);
            if buffer.is_err() {
                pool.put_back(place);
            }
            pool.keep();
            return Ok(buffer?);
        }
        // SAFETY: see `switch`; the pool is on the caller's frame, and not borrowed.
        let waited = unsafe {
            let caller = Caller::new(region.machine)?;
            let line = || pool.waiters.as_ptr();
            line::wait(&caller, region.machine, line, again, deadline)
        };
        match waited {
            Ok(true) => again = true,
            Ok(false) => {
                let text = "no buffer of the pool was released in time";
                // SAFETY: the class is a constant of IO.
                let class = unsafe { ruby::io_timeout_error() };
                return Err(Raise::new(class, text).into());
            }
            Err(failure) => {
                // It may have been woken for a buffer that it now leaves to another.
                if !pool.free.borrow().is_empty() {
                    pool.waiters.borrow_mut().wake_one();
                }
                return Err(failure);
            }
        }
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
fn release(ruby: &Ruby, pool: This<Pool>, buffer: Value) -> Result<Value, Error> {
    settle(ruby, || {
        pool.give(buffer.as_raw())?;
        Ok(pool.value())
    })
}

/// Takes the memory out of the ring and gives it back. The buffers are null afterwards, and their slices invalid.
///
/// @method UringMachine::BufferPool#close
/// @return [nil]
/// @raise [UringMachine::Error] if a buffer has not been released or is in use, or the pool is closed already
/// @example
///   pool.close
fn close(ruby: &Ruby, pool: This<Pool>) -> Result<Value, Error> {
    settle(ruby, || {
        let region = pool.region()?;
        // SAFETY: the UM is marked by the pool.
        let caller = unsafe { Caller::new(region.machine) }?;
        let count = pool.buffers.borrow().len();
        if pool.free.borrow().len() < count {
            return Err(Raise::misuse("a buffer of the pool has not been released"));
        }
        if (0..count).any(|place| pool.is_in_use(region, place)) {
            return Err(Raise::misuse("a buffer of the pool is in use"));
        }
        // Slices of the buffers, and what they were transferred to, are slices of the root.
        // SAFETY: IO::Buffers, none of them locked; what is raised is stopped.
        unsafe {
            ruby::protect(|| {
                for place in 0..count {
                    ruby::rb_io_buffer_free(pool.at(place));
                }
                ruby::rb_io_buffer_free(pool.root.get())
            })
        }
        .map_err(Raise::Jump)?;
        pool.state.set(State::Closed);
        pool.waiters.borrow_mut().wake_all();
        // SAFETY: the core is alive while one of its fibers runs a method. A view that another thread works on keeps
        // the memory.
        unsafe { (*caller.core).driver.unregister_buffers(region.id) };
        region.memory.discard();
        pool.keep();
        Ok(NIL)
    })
}

/// @method UringMachine::BufferPool#closed?
/// @return [Boolean]
/// @example
///   pool.closed? #=> false
fn is_closed(pool: This<Pool>) -> bool {
    pool.state.get() == State::Closed
}

/// @method UringMachine::BufferPool#available
/// @return [Integer] the buffers that nobody has
/// @example
///   pool.available #=> 16
fn available(ruby: &Ruby, pool: This<Pool>) -> Result<Value, Error> {
    settle(ruby, || {
        pool.region()?;
        Ok(ruby::fixnum(pool.free.borrow().len() as i64))
    })
}

/// @method UringMachine::BufferPool#size
/// @return [Integer] the bytes of a buffer
/// @example
///   pool.size #=> 65536
fn size(ruby: &Ruby, pool: This<Pool>) -> Result<Value, Error> {
    settle(ruby, || Ok(ruby::fixnum(pool.region()?.size as i64)))
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
fn register_buffers(ruby: &Ruby, machine: Value, options: Value) -> Result<Value, Error> {
    call(ruby, machine, &[options], 1..=1, |caller, arguments| {
        let (count, size) = count_and_size(arguments.get(0))?;
        Ok(make(ruby, machine.as_raw(), caller.core, count, size)?)
    })
}

/// How many buffers, of how many bytes each, `register_buffers` is to make.
fn count_and_size(options: VALUE) -> Result<(u32, usize), Raise> {
    let missing = || Raise::argument("missing keywords: count:, size:");
    // SAFETY: a type check.
    if !{ ruby::is_hash(options) } {
        return Err(missing());
    }
    // SAFETY: a Hash.
    let [count, size] = unsafe { arguments::keywords(options, ["count", "size"]) }?;
    let (Some(count), Some(size)) = (count, size) else {
        return Err(missing());
    };
    let count = arguments::long(count, "count")?;
    let size = arguments::long(size, "size")?;
    if !(1..=4096).contains(&count) {
        return Err(arguments::out_of_range("count", count));
    }
    if !(1..=1 << 30).contains(&size) {
        return Err(arguments::out_of_range("size", size));
    }
    Ok((count as u32, (size as usize).next_multiple_of(4096)))
}

/// Defines the class, and the machine's method that makes them.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let class = module.define_class("BufferPool", ruby.class_object())?;
    class.define_alloc_func::<Pool>();
    class.define_method("acquire", method!(acquire, -1))?;
    class.define_method("release", method!(release, 1))?;
    class.define_method("close", method!(close, 0))?;
    class.define_method("closed?", method!(is_closed, 0))?;
    class.define_method("available", method!(available, 0))?;
    class.define_method("size", method!(size, 0))?;
    module.define_method("register_buffers", method!(register_buffers, 1))?;
    Ok(())
}
