//! What the kernel is asked to do, what its completion carries, and what that leads to.

use std::os::fd::RawFd;

use io_uring::opcode;
use io_uring::squeue::Entry;

use crate::slab::Key;
use crate::tasks::WaitId;

/// What the kernel is asked to do, with the memory that it does it on.
///
/// It stays in one place, the stack of the task that waits for it say, from its submission to its last completion:
/// see [`Driver::start`](crate::Driver::start). After that it may be asked for an entry again.
///
/// # Safety
/// Whatever the entry points to lies in the operation, or in memory that the operation keeps valid and unmoved. It does
/// so until the operation is moved, changed or dropped.
pub unsafe trait Operation {
    /// The entry that has the kernel do it.
    fn entry(&mut self) -> Entry;
}

/// An operation on no memory: nobody has to keep it while it is under way.
///
/// # Safety
/// The entry points to nothing.
pub unsafe trait WithoutMemory: Operation {}

/// Names one operation; its bits are the `user_data` of its entry.
pub type OpKey = Key;

/// The result of an operation: what its completion carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The count or descriptor, or -errno.
    pub result: i32,
    /// The completion's IORING_CQE_F_* flags.
    pub flags: u32,
}

/// What a completion led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nobody waits for it.
    None,
    /// It ends this wait.
    Wakes(WaitId),
    /// It ends an operation of work that nobody waits for: see [`InFlight::take_job`](crate::in_flight::InFlight::take_job).
    Works,
    /// It ends this wait, if there is one, and the multishot has more than it wants: it is to be
    /// cancelled.
    Floods(Option<WaitId>),
}

/// No descriptor.
pub(crate) const NO_DESCRIPTOR: RawFd = -1;

/// The descriptor that an operation reads, writes, polls or changes the file of, so that the close of the one ends the
/// other; a negative number if there is none. (Others have a directory there, or nothing, or are about the descriptor
/// itself.)
#[inline]
pub fn descriptor_of(entry: &Entry) -> RawFd {
    const DESCRIPTOR: usize = 4;
    if ON_A_FILE >> code_of(entry) & 1 == 0 {
        return NO_DESCRIPTOR;
    }
    // SAFETY: an Entry is a struct io_uring_sqe, with the 32-bit `fd` at byte 4 (linux/io_uring.h).
    unsafe {
        let bytes = std::ptr::from_ref(entry).cast::<u8>();
        bytes.add(DESCRIPTOR).cast::<RawFd>().read()
    }
}

/// The descriptor that an operation takes bytes from, if that is another one than that of [`descriptor_of`]: the close of
/// that ends it too. A negative number if there is none.
#[inline]
pub fn source_of(entry: &Entry) -> RawFd {
    const SOURCE: usize = 44;
    const FROM_A_FILE: u128 = 1 << opcode::Splice::CODE | 1 << opcode::Tee::CODE;
    if FROM_A_FILE >> code_of(entry) & 1 == 0 {
        return NO_DESCRIPTOR;
    }
    // SAFETY: an Entry is a struct io_uring_sqe, with the 32-bit `splice_fd_in` at byte 44 (linux/io_uring.h).
    unsafe {
        let bytes = std::ptr::from_ref(entry).cast::<u8>();
        bytes.add(SOURCE).cast::<RawFd>().read()
    }
}

/// Whether the result of an operation with this code is a new descriptor.
pub(crate) fn opens(code: u8) -> bool {
    const OPENERS: u128 = 1 << opcode::Accept::CODE
        | 1 << opcode::OpenAt::CODE
        | 1 << opcode::OpenAt2::CODE
        | 1 << opcode::Socket::CODE;
    OPENERS >> code & 1 == 1
}

/// More codes than there are.
pub(crate) const CODES: usize = 64;

macro_rules! names {
    ($($operation:ident $name:literal,)*) => {
        /// What an operation is called, as in the manual (io_uring_enter(2)), in small letters.
        pub fn name_of(code: u8) -> &'static str {
            match code {
                $(opcode::$operation::CODE => $name,)*
                _ => "other",
            }
        }
    };
}

names! {
    Accept "accept",
    AsyncCancel "cancel",
    Close "close",
    Connect "connect",
    Fadvise "fadvise",
    Fallocate "fallocate",
    Fsync "fsync",
    Ftruncate "ftruncate",
    LinkAt "link",
    MkDirAt "mkdir",
    OpenAt "open",
    OpenAt2 "open",
    PollAdd "poll",
    Read "read",
    ReadFixed "read_fixed",
    ReadMulti "read_multishot",
    Readv "readv",
    Recv "recv",
    RecvMsg "recvmsg",
    RenameAt "rename",
    Send "send",
    SendMsg "sendmsg",
    SendZc "send_zc",
    Shutdown "shutdown",
    Socket "socket",
    Splice "splice",
    Statx "statx",
    SymlinkAt "symlink",
    Tee "tee",
    UnlinkAt "unlink",
    WaitId "waitid",
    Write "write",
    WriteFixed "write_fixed",
    Writev "writev",
}

#[inline]
pub(crate) fn code_of(entry: &Entry) -> u8 {
    // SAFETY: a struct io_uring_sqe begins with the 8-bit `opcode`.
    unsafe { *std::ptr::from_ref(entry).cast::<u8>() }
}

/// The operations of [`descriptor_of`], a bit each.
const ON_A_FILE: u128 = {
    let codes = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::ReadMulti::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendZc::CODE,
        opcode::RecvMsg::CODE,
        opcode::SendMsg::CODE,
        opcode::Accept::CODE,
        opcode::Connect::CODE,
        opcode::PollAdd::CODE,
        opcode::Fsync::CODE,
        opcode::Splice::CODE,
        opcode::Tee::CODE,
        opcode::Shutdown::CODE,
        opcode::Fallocate::CODE,
        opcode::Fadvise::CODE,
        opcode::Ftruncate::CODE,
    ];
    let mut bits = 0;
    let mut place = 0;
    while place < codes.len() {
        bits |= 1 << codes[place];
        place += 1;
    }
    bits
};
