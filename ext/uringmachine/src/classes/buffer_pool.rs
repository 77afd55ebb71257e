//! UM::BufferPool: IO::Buffers in memory that is registered with the machine's ring.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::typed_data::Obj;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};
use uringmachine_runtime::mapping::Mapping;
use uringmachine_runtime::registered_buffers::RegionId;

use crate::lending::{locks, take_back, view};
use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::discards::{Discarded, Discards};
use crate::machine::line::Line;
use crate::machine::owner::{self, Um};
use crate::machine::Machine;
use crate::os::limits;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::io_buffer::Buffer;
use crate::ruby::this::This;
use crate::ruby::{
    block_given, call, classes, collect_garbage, duration, fixnum, id, is_hash, set_variable,
    yield_, Outcome, Raise, Value, FALSE, NIL,
};

/// What a pool holds. Nothing that runs Ruby, or allocates, is called while any of it is borrowed.
///
/// Its buffers are slices of a root buffer, so that Ruby itself knows what is left of them: whatever was
/// transferred or sliced keeps the root, which keeps the pool, which keeps the memory; and the end of the root
/// ends them all.
#[derive(TypedData)]
#[magnus(class = "UringMachine::BufferPool", mark, size)]
pub struct Pool {
    state: Cell<State>,
    /// Of a pool that a machine has made.
    region: OnceCell<Region>,
    /// The IO::Buffer of all the memory; false before there is one.
    root: Cell<Value>,
    /// The buffers in the order of their places in the memory.
    buffers: RefCell<Vec<Value>>,
    /// The places of those that nobody has.
    free: RefCell<VecDeque<usize>>,
    line: Line,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            state: Cell::default(),
            region: OnceCell::new(),
            root: Cell::new(FALSE),
            buffers: RefCell::default(),
            free: RefCell::default(),
            line: Line::default(),
        }
    }
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
    um: Value,
    machine: Arc<Machine>,
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
            marker.mark(region.um.to_magnus());
        }
        marker.mark(self.root.get().to_magnus());
        for buffer in self.buffers.borrow().iter() {
            marker.mark(buffer.to_magnus());
        }
        self.line.mark();
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
    fn at(&self, place: usize) -> Value {
        self.buffers.borrow()[place]
    }

    /// A new buffer of what lies at a place.
    fn slice(&self, region: &Region, place: usize) -> Outcome {
        let range = [
            fixnum((place * region.size) as i64),
            fixnum(region.size as i64),
        ];
        call(self.root.get(), "slice", &range)
    }

    /// The buffer at a place as it was made, a new one if the program has freed, transferred or resized the old one.
    fn whole(&self, region: &Region, place: usize) -> Outcome {
        let known = self.at(place);
        if view::is_part(known, self.root.get(), place * region.size, region.size) {
            return Ok(known);
        }
        let buffer = self.slice(region, place)?;
        self.buffers.borrow_mut()[place] = buffer;
        Ok(buffer)
    }

    /// Whether a buffer of the pool's is locked, or an operation works on any part of what lies at its place.
    fn is_in_use(&self, region: &Region, place: usize) -> bool {
        let machine = &*region.machine;
        let is_usable = machine.is_usable();
        // First, since what was left with the kernel is locked.
        let has_loans = is_usable && !machine.parts().lending.loans.is_empty();
        if has_loans {
            take_back(machine);
        }
        let index = region.id as usize + place;
        locks::is_locked(self.at(place))
            || is_usable && machine.parts().lending.in_use.has(index as u16)
    }

    /// Has a buffer be nobody's.
    fn put_back(&self, place: usize) {
        self.free.borrow_mut().push_back(place);
        self.line.wake_one();
    }

    fn give(&self, buffer: Value) -> Result<(), Raise> {
        let region = self.region()?;
        let place = self.buffers.borrow().iter().position(|b| *b == buffer);
        let Some(place) = place else {
            return Err(Raise::misuse("buffer is not of this pool"));
        };
        let is_free = self.free.borrow().contains(&place);
        if is_free {
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
fn make(ruby: &Ruby, um: This<Um>, count: u32, size: usize) -> Outcome {
    let machine = um.own()?;
    let object: Obj<Pool> = ruby.obj_wrap(Pool::default());
    let pool = &*object;
    let object = Value::from(object.as_value());
    let (registered, memory) = register(machine, count, size)?;
    let region = pool.region.get_or_init(|| Region {
        um: um.value(),
        machine: machine.share(),
        id: registered,
        size,
        memory,
        discards: machine.parts().discards.clone(),
    });
    // The root is a view of the region's memory, and keeps the pool, which has a share in that. Ruby may refuse to make it:
    // the region is the pool's by now, and goes with it.
    let root = view::of_mapping(&region.memory, count as usize * size)?;
    set_variable(root.value(), id("@um_pool"), object)?;
    pool.root.set(root.value());
    for place in 0..count as usize {
        let buffer = pool.slice(region, place)?;
        pool.buffers.borrow_mut().push(buffer);
        pool.free.borrow_mut().push_back(place);
    }
    pool.state.set(State::Open);
    Ok(object)
}

/// Registers memory with a machine's ring.
fn register(machine: &Machine, count: u32, size: usize) -> Result<(RegionId, Arc<Mapping>), Raise> {
    let mut registered = machine.parts().driver.register_buffers(count, size);
    if matches!(&registered, Err(error) if error.raw_os_error() == Some(libc::ENOBUFS)) {
        // Pools that nobody refers to may have the room.
        collect_garbage();
        machine.give_up_discarded();
        registered = machine.parts().driver.register_buffers(count, size);
    }
    registered.map_err(|error| refused(&error, count, size))
}

/// The error for memory that the kernel would not register.
fn refused(error: &std::io::Error, count: u32, size: usize) -> Raise {
    let bytes = count as usize * size;
    match error.raw_os_error() {
        Some(libc::ENOMEM) => Raise::errno_with(
            libc::ENOMEM,
            &format!(
                "{bytes} bytes cannot be locked; RLIMIT_MEMLOCK is {} bytes (ulimit -l)",
                limits::locked_memory()
            ),
        ),
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
fn acquire(pool: This<Pool>, arguments: &[magnus::Value]) -> Outcome {
    let deadline = deadline(&Arguments::of(arguments, 0..=1)?)?;
    let buffer = match take(pool, deadline) {
        Ok(buffer) => buffer,
        Err(failure) => return answer(Err(failure)),
    };
    if !block_given() {
        return Ok(buffer);
    }
    let result = yield_(buffer);
    let given = pool.give(buffer);
    pool.keep();
    let value = result?;
    given?;
    Ok(value)
}

/// When `acquire` is to give up.
fn deadline(arguments: &Arguments) -> Result<Option<u64>, Raise> {
    let timeout = match arguments.optional(0) {
        None => NIL,
        Some(options) if is_hash(options) => {
            let [timeout] = arguments::keywords(options, ["timeout"])?;
            timeout.unwrap_or(NIL)
        }
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
        if !region.machine.is_usable() {
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
        let um = owner::find(region.um)?;
        match pool
            .line
            .wait(&Caller::new(&um)?, "UM::BufferPool", again, deadline)
        {
            Ok(true) => again = true,
            Ok(false) => {
                let text = "no buffer of the pool was released in time";
                return Err(Raise::new(classes::io_timeout_error(), text).into());
            }
            Err(failure) => {
                // It may have been woken for a buffer that it now leaves to another.
                let has_any = !pool.free.borrow().is_empty();
                if has_any {
                    pool.line.wake_one();
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
fn release(pool: This<Pool>, buffer: Value) -> Result<This<Pool>, Raise> {
    pool.give(buffer)?;
    Ok(pool)
}

/// Takes the memory out of the ring and gives it back. The buffers are null afterwards, and their slices invalid.
///
/// @method UringMachine::BufferPool#close
/// @return [nil]
/// @raise [UringMachine::Error] if a buffer has not been released or is in use, or the pool is closed already
/// @example
///   pool.close
fn close(pool: This<Pool>) -> Result<(), Raise> {
    let region = pool.region()?;
    let um = owner::find(region.um)?;
    let caller = Caller::new(&um)?;
    let count = pool.buffers.borrow().len();
    if pool.free.borrow().len() < count {
        return Err(Raise::misuse("a buffer of the pool has not been released"));
    }
    if (0..count).any(|place| pool.is_in_use(region, place)) {
        return Err(Raise::misuse("a buffer of the pool is in use"));
    }
    // Slices of the buffers, and what they were transferred to, are slices of the root.
    let buffers = (0..count).map(|place| pool.at(place));
    for buffer in buffers.chain([pool.root.get()]).filter_map(Buffer::of) {
        buffer.free()?;
    }
    pool.state.set(State::Closed);
    pool.line.wake_all();
    // A view that another thread works on keeps the memory.
    caller.machine.parts().driver.unregister_buffers(region.id);
    region.memory.discard();
    pool.keep();
    Ok(())
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
fn available(pool: This<Pool>) -> Result<usize, Raise> {
    pool.region()?;
    Ok(pool.free.borrow().len())
}

/// @method UringMachine::BufferPool#size
/// @return [Integer] the bytes of a buffer
/// @example
///   pool.size #=> 65536
fn size(pool: This<Pool>) -> Result<usize, Raise> {
    Ok(pool.region()?.size)
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
fn register_buffers(ruby: &Ruby, um: This<Um>, options: Value) -> Outcome {
    um.own()?;
    let (count, size) = count_and_size(options)?;
    make(ruby, um, count, size)
}

/// How many buffers, of how many bytes each, `register_buffers` is to make.
fn count_and_size(options: Value) -> Result<(u32, usize), Raise> {
    let missing = || Raise::argument("missing keywords: count:, size:");
    if !is_hash(options) {
        return Err(missing());
    }
    let [count, size] = arguments::keywords(options, ["count", "size"])?;
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
