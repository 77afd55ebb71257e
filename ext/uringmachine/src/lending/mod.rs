//! The memory of Strings and IO::Buffers that operations work on.
//!
//! What the kernel is given neither moves, shrinks nor goes while the kernel has it, whatever Ruby
//! does meanwhile. Small transfers go through memory of the machine's own and are copied. A large
//! one works on the object itself, which is then
//!
//! * pinned and kept, by the mark of the machine that lends it ([`Lending::holds`]);
//! * locked, so that nobody resizes, modifies or freezes it. Ruby's lock is a flag, so locks for
//!   several writes of one object are counted ([`locks`]);
//! * no slice of another IO::Buffer, whose lock does not keep that one from being freed: it is copied;
//! * too large to be embedded: compaction moves the bytes of a locked and pinned String too when they
//!   fit into its slot (gc.c, gc_update_object_references).
//!
//! A [`Source`] is lent to be read, a [`Destination`] to be written, both by the machine's methods; [`hooked::Lent`] is
//! what a hook of the scheduler was given. Each is given back when it is dropped, whatever ends the operation. A fiber
//! that never goes on keeps it for ever: a leak, never a dangling pointer.

pub mod destination;
pub mod hooked;
pub mod locks;
pub mod registered;
pub mod scratch;
pub mod source;
pub mod view;

use std::cell::RefMut;

use uringmachine_runtime::slab::{Key, Slab};
use uringmachine_runtime::OpKey;

use crate::ruby::arguments::no_buffer;
use crate::ruby::io_buffer::Buffer;
use crate::ruby::{is_string, string, Raise, Value, NIL};

pub use destination::Destination;
pub use locks::take_over;
use scratch::{Block, Scratch};
use source::Loan;
pub use source::Source;

/// Transfers of up to this many bytes are copied.
pub const COPIED: usize = scratch::SIZE;
/// More than any String in a slot of Ruby's heap has (gc.c: the largest slot has 640 bytes).
const NEVER_EMBEDDED: usize = 1024;
/// The most that one read or write moves (read(2), NOTES).
pub const MOST: usize = uringmachine_runtime::memory::MOST as usize;

/// Who lends memory to the kernel: a thread's machine.
pub trait Lender {
    /// The index of the registered buffer that so many bytes lie in.
    fn registered_index(&self, pointer: *const u8, length: usize) -> Option<u16>;
    /// Whether the kernel is done with an operation.
    fn is_over(&self, op: OpKey) -> bool;
    /// Whether the machine is the parent process's.
    fn is_forked(&self) -> bool;
    /// What it keeps for that.
    fn lending(&self) -> RefMut<'_, Lending>;
}

/// What a machine keeps of the memory it lends.
#[derive(Default)]
pub struct Lending {
    /// Memory of its own, for small transfers.
    pub scratch: Scratch,
    /// The same, for those who wait for a socket's bytes.
    pub waiting: Scratch<{ scratch::WAITING_SIZE }>,
    /// How many operations work on each registered buffer.
    pub in_use: registered::InUse,
    /// The objects that operations work on: for the collector, and for a child of fork.
    pub holds: Slab<Value>,
    /// What was left with the kernel when its fiber went on.
    pub loans: Vec<Loan>,
}

impl Lending {
    /// Lends nothing any more: in a child of fork.
    pub fn forsake(&mut self) {
        self.holds = Slab::default();
        self.loans = Vec::new();
        self.scratch = Scratch::default();
        self.waiting = Scratch::default();
    }

    fn hold(&mut self, object: Value) -> Option<Key> {
        (object != NIL).then(|| self.holds.insert(object))
    }

    fn let_go(&mut self, hold: Option<Key>) {
        if let Some(hold) = hold {
            self.holds.remove(hold);
        }
    }
}

/// Whose memory an operation works on.
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

/// Takes back what the kernel is done with.
pub fn take_back(lender: &impl Lender) {
    let mut place = 0;
    loop {
        let op = lender.lending().loans.get(place).map(Loan::op);
        let Some(op) = op else { return };
        if lender.is_over(op) {
            let loan = lender.lending().loans.swap_remove(place);
            loan.end(lender);
        } else {
            place += 1;
        }
    }
}

/// A String or an IO::Buffer.
#[derive(Clone, Copy)]
enum Holder {
    String(Value),
    Buffer(Buffer),
}

impl Holder {
    fn of(object: Value, name: &str) -> Result<Self, Raise> {
        if is_string(object) {
            return Ok(Self::String(object));
        }
        match Buffer::of(object) {
            Some(buffer) => Ok(Self::Buffer(buffer)),
            None => Err(no_buffer(object, name)),
        }
    }

    /// Where its bytes are, to be read, and how many.
    fn bytes(self) -> Result<(*const u8, usize), Raise> {
        match self {
            Self::String(string) => {
                let (pointer, length) = string::place(string);
                Ok((pointer.cast_const(), length))
            }
            Self::Buffer(buffer) => {
                let (_, bytes) = Buffer::to_be_read(buffer.value())?;
                Ok((bytes.base.cast_const(), bytes.length))
            }
        }
    }

    fn is_slice(self) -> bool {
        match self {
            Self::String(_) => false,
            Self::Buffer(buffer) => buffer.is_slice(buffer.bytes()),
        }
    }
}

/// Bytes at a place that somebody keeps, copied.
///
/// # Safety
/// As many bytes are there.
unsafe fn copied(pointer: *const u8, length: usize) -> Vec<u8> {
    if length == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, length) }.to_vec()
}

/// Copies of the bytes of an object, owned by whoever asks.
pub fn copy_of(object: Value, length: Option<usize>, name: &str) -> Result<Vec<u8>, Raise> {
    let (pointer, size) = Holder::of(object, name)?.bytes()?;
    let length = length.unwrap_or(size).min(size);
    // SAFETY: the bytes are the object's, and are copied before Ruby runs again.
    Ok(unsafe { copied(pointer, length) })
}
