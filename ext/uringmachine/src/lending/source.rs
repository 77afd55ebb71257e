//! Where an operation reads from: the bytes of an object.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use uringmachine_runtime::memory::Memory;
use uringmachine_runtime::slab::Key;
use uringmachine_runtime::OpKey;

use super::{copied, locks, Backing, Holder, Lender, COPIED, MOST};
use crate::ruby::{is_frozen, Raise, Value, NIL};

/// The bytes of an object, lent to be read until it is dropped.
pub struct Source<'a, L: Lender> {
    lender: &'a L,
    lent: ManuallyDrop<Lent>,
}

/// What is lent.
struct Lent {
    object: Value,
    hold: Option<Key>,
    backing: Backing,
    pointer: *const u8,
    length: usize,
    /// The index of the registered buffer that the bytes lie in.
    registered: Option<u16>,
}

// SAFETY: the bytes are of a block, a copy or an object that nobody changes or frees while it is lent; they are not in the
// value itself, so its being moved does not matter.
unsafe impl<L: Lender> Memory for Source<'_, L> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.lent.pointer
    }

    #[inline]
    fn length(&self) -> u32 {
        self.lent.length.min(MOST) as u32
    }

    #[inline]
    fn registered(&self) -> Option<u16> {
        self.lent.registered
    }
}

impl<'a, L: Lender> Source<'a, L> {
    /// The first `length` bytes of a String or an IO::Buffer, all if `None`.
    pub fn new(
        lender: &'a L,
        object: Value,
        length: Option<usize>,
        name: &str,
    ) -> Result<Self, Raise> {
        let holder = Holder::of(object, name)?;
        let (pointer, size) = holder.bytes()?;
        let length = length.unwrap_or(size).min(size);
        let registered = match holder {
            Holder::String(_) => None,
            Holder::Buffer(_) => lender.registered_index(pointer, length),
        };
        // What a registered buffer's lock does not keep, its registration does; but who has locked it may change it.
        let registered = registered.filter(|_| locks::lock(object));
        // SAFETY: the bytes are the object's, and Ruby has not run since they were found: `lock` does not change them.
        let lent = unsafe {
            match registered {
                Some(_) => Lent::of_object(object, Backing::Locked, pointer, length, registered),
                None if length <= COPIED => Lent::in_block(lender, pointer, length),
                None => Lent::in_place(holder, object, pointer, length),
            }
        };
        let mut lent = lent;
        {
            let mut lending = lender.lending();
            lending.in_use.begin(registered);
            lent.hold = lending.hold(lent.object);
        }
        Ok(Self {
            lender,
            lent: ManuallyDrop::new(lent),
        })
    }

    /// How many bytes there are, which may be more than one operation moves.
    pub fn size(&self) -> usize {
        self.lent.length
    }

    /// The bytes in pieces that an operation takes: one, unless there are very many.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let (start, size) = (self.lent.pointer, self.lent.length);
        let registered = self.lent.registered;
        (0..size).step_by(MOST).map(move |place| Piece {
            pointer: start.wrapping_add(place),
            length: (size - place).min(MOST) as u32,
            registered,
            source: PhantomData,
        })
    }

    /// Leaves the memory with the kernel until it is done with an operation that the fiber waits for no more.
    pub fn leave_with(mut self, op: OpKey) {
        // SAFETY: the value is forgotten.
        let lent = unsafe { ManuallyDrop::take(&mut self.lent) };
        self.lender.lending().loans.push(Loan { op, lent });
        std::mem::forget(self);
    }
}

/// Some of the bytes of a source.
#[derive(Clone, Copy)]
pub struct Piece<'s> {
    pointer: *const u8,
    length: u32,
    registered: Option<u16>,
    source: PhantomData<&'s ()>,
}

// SAFETY: as of the source, which is borrowed.
unsafe impl Memory for Piece<'_> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.pointer
    }

    #[inline]
    fn length(&self) -> u32 {
        self.length
    }

    #[inline]
    fn registered(&self) -> Option<u16> {
        self.registered
    }
}

impl<L: Lender> Drop for Source<'_, L> {
    fn drop(&mut self) {
        // SAFETY: once.
        unsafe { ManuallyDrop::take(&mut self.lent) }.give_back(self.lender);
    }
}

impl Lent {
    fn of_object(
        object: Value,
        backing: Backing,
        pointer: *const u8,
        length: usize,
        registered: Option<u16>,
    ) -> Self {
        Self {
            object,
            hold: None,
            backing,
            pointer,
            length,
            registered,
        }
    }

    /// # Safety
    /// As many bytes are there.
    unsafe fn in_block(lender: &impl Lender, pointer: *const u8, length: usize) -> Self {
        let mut block = lender.lending().scratch.take();
        if length > 0 {
            // SAFETY: the caller's promise; a block has room for as many.
            unsafe { std::ptr::copy_nonoverlapping(pointer, block.as_mut_ptr(), length) };
        }
        let place = block.as_ptr();
        Self::of_object(NIL, Backing::Block(block), place, length, None)
    }

    /// # Safety
    /// As many bytes of the object are there.
    unsafe fn in_place(holder: Holder, object: Value, pointer: *const u8, length: usize) -> Self {
        let backing = match holder {
            Holder::String(string) if is_frozen(string) => Backing::Frozen,
            _ if !holder.is_slice() && locks::lock(object) => Backing::Locked,
            _ => {
                // A slice, or somebody else has locked it, and may unlock it before the kernel is done.
                // SAFETY: the caller's promise.
                let copy = unsafe { copied(pointer, length) };
                let place = copy.as_ptr();
                return Self::of_object(NIL, Backing::Copy(copy), place, length, None);
            }
        };
        Self::of_object(object, backing, pointer, length, None)
    }

    /// Gives the memory back. The kernel is done with it.
    fn give_back(self, lender: &impl Lender) {
        let is_forked = lender.is_forked();
        {
            let mut lending = lender.lending();
            lending.in_use.end(self.registered);
            lending.let_go(self.hold);
            if let Backing::Block(block) = self.backing {
                lending.scratch.give(block);
                return;
            }
        }
        // In a child of fork `take_over` has done that.
        if matches!(self.backing, Backing::Locked) && !is_forked {
            locks::unlock(self.object);
        }
    }
}

/// Memory that the kernel has for longer than the fiber waited for its operation.
pub struct Loan {
    op: OpKey,
    lent: Lent,
}

impl Loan {
    /// The operation that works on it.
    pub fn op(&self) -> OpKey {
        self.op
    }

    /// The kernel is done with it.
    pub(super) fn end(self, lender: &impl Lender) {
        self.lent.give_back(lender);
    }
}
