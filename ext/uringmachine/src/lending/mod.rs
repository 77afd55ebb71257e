//! The memory of Strings and IO::Buffers that operations work on.
//!
//! What the kernel is given neither moves, shrinks nor goes while the kernel has it, whatever Ruby
//! does meanwhile. Small transfers go through memory of the machine's own and are copied. A large
//! one works on the object itself, which is then
//!
//! * pinned and kept, by the mark of the task that waits ([`crate::machine::Waiter::held`]);
//! * locked, so that nobody resizes, modifies or freezes it. Ruby's lock is a flag, so locks for
//!   several writes of one object are counted here;
//! * no slice of another IO::Buffer, whose lock does not keep that one from being freed: it is copied;
//! * too large to be embedded: compaction moves the bytes of a locked and pinned String too when they
//!   fit into its slot (gc.c, gc_update_object_references).

pub mod registered;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uringmachine_runtime::slab::{Key, Slab};
use uringmachine_runtime::OpKey;

use crate::os::per_process::PerProcess;
use crate::ruby::arguments::no_buffer;
use crate::ruby::{self, errors, io_buffer, Raise, NIL, VALUE};

/// Transfers of up to this many bytes are copied.
pub const COPIED: usize = 4096;
/// More than any String in a slot of Ruby's heap has (gc.c: the largest slot has 640 bytes).
const NEVER_EMBEDDED: usize = 1024;
/// The most that one read or write moves (read(2), NOTES).
pub const MOST: usize = 0x7fff_f000;
/// What is read into a String when no length is given.
const DEFAULT_LENGTH: usize = 16 << 10;

type Block = Box<[u8; COPIED]>;

/// Blocks of memory for small transfers, kept for reuse.
#[derive(Default)]
pub struct Scratch {
    free: Vec<Block>,
}

impl Scratch {
    fn take(&mut self) -> Block {
        self.free.pop().unwrap_or_else(|| Box::new([0; COPIED]))
    }

    fn give(&mut self, block: Block) {
        const KEPT: usize = 64;
        if self.free.len() < KEPT {
            self.free.push(block);
        }
    }
}

/// Who lends memory to the kernel: a thread's machine.
pub trait Lender {
    /// The index of the registered buffer that so many bytes lie in.
    fn registered_index(&self, pointer: *const u8, length: usize) -> Option<u16>;
    /// Whether the kernel is done with an operation.
    fn is_over(&self, op: OpKey) -> bool;
    /// Whether the machine is the parent process's.
    fn is_forked(&self) -> bool;
    /// What it keeps for that.
    fn lending(&mut self) -> &mut Lending;
}

/// What a machine keeps of the memory it lends.
#[derive(Default)]
pub struct Lending {
    /// Memory of its own, for small transfers.
    pub scratch: Scratch,
    /// How many operations work on each registered buffer.
    pub in_use: registered::InUse,
    /// Objects of operations that work on several, for the collector.
    pub holds: Slab<Vec<VALUE>>,
    /// What was left with the kernel when its fiber went on.
    pub loans: Vec<Loan>,
}

enum Backing {
    /// Memory of the machine's own.
    Block(Block),
    /// As a block, but larger.
    Copy(Vec<u8>),
    /// The object's, locked once by this use.
    Locked,
    /// The object's, which nobody can modify.
    Frozen,
}

/// Where an operation reads from: the bytes of an object.
pub struct Source {
    object: VALUE,
    backing: Backing,
    pub pointer: *const u8,
    pub length: usize,
    /// The index of the registered buffer that the bytes lie in.
    pub fixed: Option<u16>,
}

impl Source {
    /// The first `length` bytes of a String or an IO::Buffer, all if `None`.
    pub unsafe fn new(
        lender: *mut impl Lender,
        object: VALUE,
        length: Option<usize>,
        name: &str,
    ) -> Result<Self, Raise> {
        // SAFETY: the bytes are those of the object, and are copied or locked before Ruby runs again.
        unsafe {
            let (pointer, size) = bytes_of(object, name)?;
            let length = length.unwrap_or(size).min(size);
            let fixed = if ruby::is_string(object) {
                None
            } else {
                (*lender).registered_index(pointer, length)
            };
            if fixed.is_some() && lock(object) {
                (*lender).lending().in_use.begin(fixed);
                return Ok(Self {
                    object,
                    backing: Backing::Locked,
                    pointer,
                    length,
                    fixed,
                });
            }
            if length <= COPIED {
                let mut block = (*lender).lending().scratch.take();
                std::ptr::copy_nonoverlapping(pointer, block.as_mut_ptr(), length);
                return Ok(Self {
                    object: NIL,
                    pointer: block.as_ptr(),
                    backing: Backing::Block(block),
                    length,
                    fixed: None,
                });
            }
            let backing = if ruby::is_string(object) && ruby::is_frozen(object) {
                Backing::Frozen
            } else if !is_slice(object) && lock(object) {
                Backing::Locked
            } else {
                // A slice, or somebody else has locked it, and may unlock it before the kernel is done.
                Backing::Copy(std::slice::from_raw_parts(pointer, length).to_vec())
            };
            let (object, pointer) = match &backing {
                Backing::Copy(copy) => (NIL, copy.as_ptr()),
                _ => (object, pointer),
            };
            Ok(Self {
                object,
                backing,
                pointer,
                length,
                fixed: None,
            })
        }
    }

    /// What must be marked while the operation runs, or `NIL`.
    pub fn held(&self) -> VALUE {
        self.object
    }

    /// Gives the memory back. The kernel is done with it.
    pub unsafe fn release(self, lender: *mut impl Lender) {
        // SAFETY: the lock is this source's; `lender` is alive.
        unsafe {
            (*lender).lending().in_use.end(self.fixed);
            match self.backing {
                Backing::Block(block) => (*lender).lending().scratch.give(block),
                // In a child of fork [`take_over`] has done that.
                Backing::Locked if !(*lender).is_forked() => unlock(self.object),
                Backing::Locked | Backing::Copy(_) | Backing::Frozen => {}
            }
        }
    }
}

/// Memory that the kernel has for longer than the operation it was given for.
pub struct Loan {
    op: OpKey,
    hold: Key,
    source: Source,
}

impl Source {
    /// Leaves the memory with the kernel until it is done with it. The object is marked by the core meanwhile.
    pub unsafe fn lend(self, lender: *mut impl Lender, op: OpKey) {
        // SAFETY: `lender` is alive.
        unsafe {
            let hold = (*lender).lending().holds.insert(vec![self.held()]);
            let source = self;
            (*lender).lending().loans.push(Loan { op, hold, source });
        }
    }
}

/// Takes back what the kernel is done with.
pub fn take_back(lender: &mut impl Lender) {
    let mut place = 0;
    while let Some(op) = lender.lending().loans.get(place).map(|loan| loan.op) {
        if !lender.is_over(op) {
            place += 1;
            continue;
        }
        let loan = lender.lending().loans.swap_remove(place);
        lender.lending().holds.remove(loan.hold);
        // SAFETY: the kernel is done with the memory.
        unsafe { loan.source.release(lender) };
    }
}

/// The bytes of a String or an IO::Buffer, to be read.
unsafe fn bytes_of(object: VALUE, name: &str) -> Result<(*const u8, usize), Raise> {
    // SAFETY: the type is checked; the accessor may raise, stopped here.
    unsafe {
        if ruby::is_string(object) {
            let bytes = ruby::string_bytes(&object);
            return Ok((bytes.as_ptr(), bytes.len()));
        }
        if !ruby::is_io_buffer(object) {
            return Err(no_buffer(object, name));
        }
        let (mut base, mut size) = (std::ptr::null(), 0);
        let (base_slot, size_slot) = (&raw mut base, &raw mut size);
        ruby::protect(|| {
            ruby::rb_io_buffer_get_bytes_for_reading(object, base_slot, size_slot);
            NIL
        })
        .map_err(Raise::Jump)?;
        Ok((base.cast(), size))
    }
}

/// Copies of the bytes of an object, owned by whoever asks.
pub unsafe fn copy_of(object: VALUE, length: Option<usize>, name: &str) -> Result<Vec<u8>, Raise> {
    // SAFETY: the bytes are copied before Ruby runs again.
    unsafe {
        let (pointer, size) = bytes_of(object, name)?;
        let length = length.unwrap_or(size).min(size);
        if length == 0 {
            return Ok(Vec::new());
        }
        Ok(std::slice::from_raw_parts(pointer, length).to_vec())
    }
}

/// Where an operation writes to: the memory of an object.
pub struct Destination {
    object: VALUE,
    backing: Backing,
    offset: usize,
    is_string: bool,
    pub pointer: *mut u8,
    pub length: usize,
    /// The index of the registered buffer that the room lies in.
    pub fixed: Option<u16>,
}

impl Destination {
    /// Room for `length` bytes in a String or an IO::Buffer, at `offset`; a negative offset counts
    /// from the end, -1 being it. The object is made large enough, and locked.
    pub unsafe fn new(
        lender: *mut impl Lender,
        object: VALUE,
        length: Option<usize>,
        offset: i64,
        name: &str,
    ) -> Result<Self, Raise> {
        // SAFETY: the types are checked; what may raise is protected.
        unsafe {
            if ruby::is_string(object) {
                return Self::in_string(lender, object, length, offset);
            }
            if !ruby::is_io_buffer(object) {
                return Err(no_buffer(object, name));
            }
            let (mut base, mut size) = (std::ptr::null_mut::<c_void>(), 0);
            let (base_slot, size_slot) = (&raw mut base, &raw mut size);
            let get = || {
                ruby::protect(|| {
                    ruby::rb_io_buffer_get_bytes_for_writing(object, base_slot, size_slot);
                    NIL
                })
                .map_err(Raise::Jump)
            };
            get()?;
            let offset = place(offset, size)?;
            let length = length.unwrap_or(size - offset).min(MOST);
            if offset + length > size {
                // Ruby would give a slice memory of its own, of which nobody else would see anything.
                if is_slice(object) {
                    let class = ruby::class(c"IO::Buffer::AccessError");
                    return Err(Raise::new(class, "a slice cannot be resized"));
                }
                ruby::protect(|| {
                    ruby::rb_io_buffer_resize(object, offset + length);
                    NIL
                })
                .map_err(Raise::Jump)?;
                get()?;
            }
            ruby::protect(|| ruby::rb_io_buffer_lock(object)).map_err(Raise::Jump)?;
            let place = base.cast::<u8>().add(offset);
            // Registered memory is pinned: the kernel may write to it whatever becomes of the buffer.
            let fixed = (*lender).registered_index(place, length);
            let (backing, pointer) = if fixed.is_none() && is_slice(object) {
                let mut copy = vec![0_u8; length];
                let pointer = copy.as_mut_ptr();
                (Backing::Copy(copy), pointer)
            } else {
                (Backing::Locked, place)
            };
            (*lender).lending().in_use.begin(fixed);
            Ok(Self {
                object,
                backing,
                offset,
                is_string: false,
                pointer,
                length,
                fixed,
            })
        }
    }

    unsafe fn in_string(
        lender: *mut impl Lender,
        object: VALUE,
        length: Option<usize>,
        offset: i64,
    ) -> Result<Self, Raise> {
        // SAFETY: as in `new`.
        unsafe {
            let size = rb_sys::RSTRING_LEN(object) as usize;
            let offset = place(offset, size)?;
            let length = length.unwrap_or(DEFAULT_LENGTH).min(MOST);
            let small = length <= COPIED;
            let wanted = if small {
                size
            } else {
                (offset + length).max(NEVER_EMBEDDED)
            };
            let locked = ruby::protect(|| {
                make_room(object, wanted);
                rb_sys::rb_str_locktmp(object)
            });
            if let Err(state) = locked {
                return Err(in_use(state));
            }
            let (backing, pointer) = if small {
                let mut block = (*lender).lending().scratch.take();
                let pointer = block.as_mut_ptr();
                (Backing::Block(block), pointer)
            } else {
                let pointer = rb_sys::RSTRING_PTR(object).cast::<u8>().cast_mut();
                (Backing::Locked, pointer.add(offset))
            };
            Ok(Self {
                object,
                backing,
                offset,
                is_string: true,
                pointer,
                length,
                fixed: None,
            })
        }
    }

    /// What must be marked while the operation runs.
    pub fn held(&self) -> VALUE {
        self.object
    }

    /// Copies what has come to the slice, if it is still one.
    unsafe fn fill_slice(&self, bytes: &[u8]) -> Result<(), Raise> {
        let (mut base, mut size) = (std::ptr::null_mut::<c_void>(), 0);
        let (base_slot, size_slot) = (&raw mut base, &raw mut size);
        // SAFETY: as in `new`; the place is within the bytes that the buffer has now.
        unsafe {
            ruby::protect(|| {
                ruby::rb_io_buffer_get_bytes_for_writing(self.object, base_slot, size_slot);
                NIL
            })
            .map_err(Raise::Jump)?;
            if self.offset + bytes.len() > size {
                return Err(Raise::misuse("buffer has become too small"));
            }
            let place = base.cast::<u8>().add(self.offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
        }
        Ok(())
    }

    /// Gives the memory back with the `count` bytes the kernel has put there, or as many as there was room
    /// for: what it answers may be more (MSG_TRUNC). `None` leaves a String as it was.
    pub unsafe fn finish(
        self,
        lender: *mut impl Lender,
        count: Option<usize>,
    ) -> Result<(), Raise> {
        let count = count.map(|count| count.min(self.length));
        // SAFETY: the lock is this destination's; the kernel is done with the memory.
        unsafe {
            if (*lender).is_forked() {
                // Nothing has come, and [`take_over`] has taken the lock off.
                (*lender).lending().in_use.end(self.fixed);
                return Ok(());
            }
            if !self.is_string {
                (*lender).lending().in_use.end(self.fixed);
                ruby::rb_io_buffer_unlock(self.object);
                return match (&self.backing, count) {
                    (Backing::Copy(copy), Some(count)) => self.fill_slice(&copy[..count]),
                    _ => Ok(()),
                };
            }
            rb_sys::rb_str_unlocktmp(self.object);
            let wanted = self.offset + count.unwrap_or(0);
            let filled = match (self.backing, count) {
                (Backing::Block(block), Some(count)) => {
                    let result = ruby::protect(|| {
                        make_room(self.object, wanted);
                        NIL
                    });
                    if result.is_ok() {
                        let place = place_in(self.object, self.offset);
                        std::ptr::copy_nonoverlapping(block.as_ptr(), place, count);
                        rb_sys::rb_str_set_len(self.object, wanted as _);
                    }
                    (*lender).lending().scratch.give(block);
                    result
                }
                (Backing::Block(block), None) => {
                    (*lender).lending().scratch.give(block);
                    Ok(NIL)
                }
                (_, Some(count)) => ruby::protect(|| {
                    if make_room(self.object, wanted) {
                        // A copy was made meanwhile, which shares the memory, and keeps it: nothing that could
                        // collect it runs before its bytes are here.
                        let place = place_in(self.object, self.offset);
                        std::ptr::copy_nonoverlapping(self.pointer, place, count);
                    }
                    rb_sys::rb_str_set_len(self.object, wanted as _);
                    NIL
                }),
                (_, None) => Ok(NIL),
            };
            filled.map(drop).map_err(Raise::Jump)
        }
    }
}

/// Makes a String one that can be changed, with room for `wanted` bytes; says whether it had too little, so
/// that its memory is another now, with no more than its own bytes in it. One that has more keeps it:
/// rb_str_modify_expand alone would give back what is over. May raise.
unsafe fn make_room(string: VALUE, wanted: usize) -> bool {
    // SAFETY: the caller has a String.
    unsafe {
        if rb_sys::rb_str_capacity(string) as usize >= wanted {
            rb_sys::rb_str_modify(string);
            return false;
        }
        let size = rb_sys::RSTRING_LEN(string) as usize;
        rb_sys::rb_str_modify_expand(string, (wanted - size) as _);
        true
    }
}

/// Where the bytes of a String are from `offset` on.
unsafe fn place_in(string: VALUE, offset: usize) -> *mut u8 {
    // SAFETY: the caller has a String that has so many bytes, or room for them.
    unsafe {
        let start = rb_sys::RSTRING_PTR(string).cast::<u8>().cast_mut();
        start.add(offset)
    }
}

/// Whether an object is an IO::Buffer that is a part of another.
pub unsafe fn is_slice(object: VALUE) -> bool {
    // SAFETY: the object is a String or an IO::Buffer; the accessor does not raise.
    unsafe {
        if ruby::is_string(object) {
            return false;
        }
        let (mut base, mut size) = (std::ptr::null_mut(), 0);
        let flags = ruby::rb_io_buffer_get_bytes(object, &mut base, &mut size);
        flags & ruby::IO_BUFFER_OWNER == 0 && !base.is_null() && io_buffer::has_source(object)
    }
}

/// Whether a String or an IO::Buffer is locked.
pub unsafe fn is_locked(object: VALUE) -> bool {
    // SAFETY: the object is a String or an IO::Buffer; the accessors do not raise.
    unsafe {
        if ruby::is_string(object) {
            return flags_of(object) & STRING_LOCK.load(Ordering::Relaxed) != 0;
        }
        let (mut base, mut size) = (std::ptr::null_mut(), 0);
        ruby::rb_io_buffer_get_bytes(object, &mut base, &mut size) & ruby::IO_BUFFER_LOCKED != 0
    }
}

unsafe fn flags_of(object: VALUE) -> VALUE {
    // SAFETY: what is no immediate begins with an RBasic.
    unsafe { (*(object as *const rb_sys::RBasic)).flags }
}

/// The flag of a String that is locked, which no header names.
static STRING_LOCK: AtomicU64 = AtomicU64::new(0);

/// Finds out how Ruby locks a String: what locking one changes. Called once, when the extension is loaded.
pub unsafe fn find_string_lock() {
    // SAFETY: a new String, which nobody else has; with no memory to be had, nothing here needs dropping.
    unsafe {
        let string = rb_sys::rb_str_new(std::ptr::null(), 0);
        let before = flags_of(string);
        rb_sys::rb_str_locktmp(string);
        STRING_LOCK.store(before ^ flags_of(string), Ordering::Relaxed);
        rb_sys::rb_str_unlocktmp(string);
    }
}

/// The error for a String that could not be locked: frozen, or locked by somebody else.
unsafe fn in_use(state: std::ffi::c_int) -> Raise {
    // SAFETY: called right after the unwinding was stopped.
    match unsafe { ruby::take_exception() } {
        Some(error) if unsafe { ruby::is_a(error, rb_sys::rb_eFrozenError) } => {
            Raise::Exception(error)
        }
        Some(error) if unsafe { ruby::is_a(error, rb_sys::rb_eRuntimeError) } => Raise::new(
            errors::error_class(),
            "buffer is in use by another operation",
        ),
        Some(error) => Raise::Exception(error),
        None => Raise::Jump(state),
    }
}

/// The place that an offset means in a buffer of that size.
fn place(offset: i64, size: usize) -> Result<usize, Raise> {
    let place = if offset < 0 {
        offset + size as i64 + 1
    } else {
        offset
    };
    match usize::try_from(place) {
        Ok(place) if place <= size => Ok(place),
        _ => Err(Raise::argument(&format!(
            "buffer_offset {offset} is outside the buffer of {size} bytes"
        ))),
    }
}

/// How many operations have locked an object. Behind a lock of its own, since Ractors have a GVL
/// each; a process of its own has none of its parent's operations.
static LOCKS: PerProcess<Mutex<HashMap<VALUE, u32>>> = PerProcess::new();

/// The list, for as long as nothing of Ruby's is called: whoever makes an object may have to wait until all Ractors
/// let the collector run, and one that waits for the list does not.
fn locks() -> MutexGuard<'static, HashMap<VALUE, u32>> {
    LOCKS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks an object for one more operation that reads it; false if somebody else has locked it.
pub unsafe fn lock(object: VALUE) -> bool {
    // SAFETY: the object is a String or an IO::Buffer, and this thread's: nobody else looks at it meanwhile. A raise
    // is stopped.
    unsafe {
        if is_locked(object) {
            return match locks().get_mut(&object) {
                Some(count) => {
                    *count += 1;
                    true
                }
                None => false,
            };
        }
        let locked = ruby::protect(|| {
            if ruby::is_string(object) {
                rb_sys::rb_str_locktmp(object)
            } else {
                ruby::rb_io_buffer_lock(object)
            }
        });
        if locked.is_err() {
            ruby::take_exception();
            return false;
        }
    }
    // What is known of its address is of an object that was collected, with a fiber that never went on.
    locks().insert(object, 1);
    true
}

/// Takes a lock back, in a child of fork too one that the parent took.
pub unsafe fn unlock(object: VALUE) {
    let mut locks = locks();
    if let Some(count) = locks.get_mut(&object) {
        *count -= 1;
        if *count > 0 {
            return;
        }
        locks.remove(&object);
    }
    drop(locks);
    // SAFETY: it was locked by `lock`, and by nobody else since.
    unsafe { take_off(object) };
}

/// Unlocks, in a child of fork, what an operation of the parent's works on: in the child none does. Whatever
/// an operation holds and is locked was locked for it: see [`Source::held`] and [`Destination::held`].
pub fn take_over(held: VALUE) {
    // SAFETY: the object is marked, so it is alive.
    unsafe {
        if (ruby::is_string(held) || ruby::is_io_buffer(held)) && is_locked(held) {
            take_off(held);
        }
    }
}

unsafe fn take_off(object: VALUE) {
    // SAFETY: a String or an IO::Buffer; a raise, of one that is not locked, is stopped.
    unsafe {
        let unlocked = ruby::protect(|| {
            if ruby::is_string(object) {
                rb_sys::rb_str_unlocktmp(object)
            } else {
                ruby::rb_io_buffer_unlock(object)
            }
        });
        if unlocked.is_err() {
            ruby::take_exception();
        }
    }
}
