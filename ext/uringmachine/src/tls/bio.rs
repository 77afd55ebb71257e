//! The BIO that OpenSSL reads from and writes to: two queues in memory, which the ring fills and empties
//! between OpenSSL's calls. So no fiber is switched, and nothing is raised, inside of one.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use uringmachine_runtime::TaskId;

use super::kernel::{self, Kernel};
use super::openssl::{self, Bio, OpenSsl, Ssl};
use super::transport::{is_transient, Sent};
use crate::machine::line::Waiters;
use crate::machine::Core;
use crate::ruby::typed_data::DataType;
use crate::ruby::VALUE;

/// Bytes between OpenSSL and a descriptor.
#[derive(Default)]
pub struct Queue {
    bytes: Vec<u8>,
    /// How many of them are gone.
    start: usize,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > self.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Drops bytes from the front, and the memory with the last of them if it is much.
    pub fn skip(&mut self, count: usize) {
        const KEPT: usize = 32 << 10;
        self.start += count;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        }
    }

    pub fn clear(&mut self) {
        self.skip(self.len());
    }
}

/// A fiber in the middle of an operation on the descriptor.
#[derive(Clone, Copy)]
pub struct Party {
    pub core: *mut Core,
    /// The UM of the core.
    pub machine: VALUE,
    pub task: TaskId,
}

/// What a BIO of ours holds. Guarded by the GVL; no reference to it lives across a call into Ruby or
/// OpenSSL.
#[derive(Default)]
pub struct Wire {
    /// What has come and OpenSSL has not read.
    pub inbound: Queue,
    /// What OpenSSL has written and nobody has begun to send.
    pub outbound: Queue,
    /// What is being sent, or was when its fiber was interrupted: it goes out before `outbound`.
    pub sending: Queue,
    /// Whether a whole record is in `inbound` that the program does not know of: see [`is_held`].
    held: bool,
    /// The peer will send no more.
    pub ended: bool,
    pub fd: c_int,
    pub is_socket: bool,
    pub kernel: Kernel,
    /// Memory to receive into, while nobody does.
    pub spare: Vec<u8>,
    /// How much to receive at once.
    pub appetite: usize,
    /// The last receive filled its memory, so more is likely there.
    pub hungry: bool,
    /// OpenSSL is at work: one of its callbacks may have switched to another fiber.
    pub busy: bool,
    /// Whoever receives: one at a time, or bytes would change their order.
    pub receiver: Option<Party>,
    pub sender: Option<Party>,
    /// A fiber is in the middle of a write: writes do not mix.
    pub writing: bool,
    pub receivers: Waiters,
    pub senders: Waiters,
    pub writers: Waiters,
}

impl Wire {
    /// Whether everything has been sent.
    pub fn is_flushed(&self) -> bool {
        self.sending.is_empty() && self.outbound.is_empty()
    }
}

/// Descriptors of which a whole record has been received that OpenSSL has not read. The kernel does not call them
/// readable, so the scheduler's hooks ask here.
/// Each with the address of its wire.
static HELD: Mutex<Vec<(c_int, usize)>> = Mutex::new(Vec::new());
/// How many they are.
static HELD_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether a record is there to be read from the connection over a descriptor.
#[inline]
pub fn is_held(fd: c_int) -> bool {
    is_any_held() && held().iter().any(|(held, _)| *held == fd)
}

/// Whether [`is_held`] is true of any descriptor.
#[inline]
pub fn is_any_held() -> bool {
    HELD_COUNT.load(Ordering::Relaxed) > 0
}

/// A descriptor is being closed: its number may soon be another's.
pub fn forget(fd: c_int) {
    if is_held(fd) {
        change_held(|list| list.retain(|(held, _)| *held != fd));
    }
}

fn held() -> MutexGuard<'static, Vec<(c_int, usize)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change_held(change: impl FnOnce(&mut Vec<(c_int, usize)>)) {
    let mut list = held();
    change(&mut list);
    HELD_COUNT.store(list.len(), Ordering::Relaxed);
}

impl Wire {
    /// Notes whether a whole record is left, before the program goes on.
    pub fn note_held(&mut self) {
        let bytes = self.inbound.as_slice();
        let holds = match bytes.get(3..5) {
            Some(length) => {
                bytes.len() >= 5 + usize::from(u16::from_be_bytes([length[0], length[1]]))
            }
            None => false,
        };
        if holds != self.held {
            self.held = holds;
            let (fd, address) = (self.fd, std::ptr::from_ref(self).addr());
            change_held(|list| match holds {
                true => list.push((fd, address)),
                false => list.retain(|(_, wire)| *wire != address),
            });
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.inbound.clear();
        self.note_held();
    }
}

static KEEPER: DataType = DataType::new::<Wire>(c"UM::TLS wire", mark, free);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: the keeper owns a share of the wire.
    unsafe {
        let wire = data.cast::<Wire>();
        for line in [&(*wire).receivers, &(*wire).senders, &(*wire).writers] {
            line.mark();
        }
        for party in [(*wire).receiver, (*wire).sender].into_iter().flatten() {
            rb_sys::rb_gc_mark(party.machine);
        }
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the share that `make` gave the keeper.
    drop(unsafe { Arc::from_raw(data.cast::<Wire>().cast_const()) });
}

/// Makes a BIO, and a Ruby object that marks what its wire refers to and must live as long as the
/// SSLSocket.
pub unsafe fn make(openssl: &OpenSsl, wire: Wire) -> Option<(*mut Bio, VALUE)> {
    // SAFETY: the BIO and the keeper own a share each.
    unsafe {
        let bio = (openssl.BIO_new)(openssl.bio_method);
        if bio.is_null() {
            return None;
        }
        #[allow(clippy::arc_with_non_send_sync)]
        let wire = Arc::new(wire);
        (openssl.BIO_set_data)(bio, Arc::into_raw(wire.clone()).cast_mut().cast());
        (openssl.BIO_set_shutdown)(bio, 1);
        (openssl.BIO_set_init)(bio, 1);
        let keeper = KEEPER.wrap(
            rb_sys::rb_cObject,
            Arc::into_raw(wire).cast_mut().cast::<c_void>(),
        );
        Some((bio, keeper))
    }
}

/// The wire of a BIO, if the BIO is one of ours.
pub unsafe fn wire_of(openssl: &OpenSsl, bio: *mut Bio) -> *mut Wire {
    // SAFETY: a BIO of our type has a wire.
    unsafe {
        if bio.is_null() || (openssl.BIO_method_type)(bio) != openssl.bio_type {
            return std::ptr::null_mut();
        }
        (openssl.BIO_get_data)(bio).cast()
    }
}

/// Registers the type of our BIOs.
pub unsafe fn make_method(openssl: &mut OpenSsl) -> Option<()> {
    // SSL_get_fd looks for a BIO with a descriptor.
    const TYPE_DESCRIPTOR: c_int = 0x0100;
    const TYPE_SOURCE_SINK: c_int = 0x0400;
    // SAFETY: the callbacks have the signatures that the functions take.
    unsafe {
        let index = (openssl.BIO_get_new_index)();
        if index < 0 {
            return None;
        }
        openssl.bio_type = index | TYPE_DESCRIPTOR | TYPE_SOURCE_SINK;
        let method = (openssl.BIO_meth_new)(openssl.bio_type, c"uringmachine".as_ptr());
        if method.is_null() {
            return None;
        }
        (openssl.BIO_meth_set_read)(method, read);
        (openssl.BIO_meth_set_write)(method, write);
        (openssl.BIO_meth_set_ctrl)(method, control);
        (openssl.BIO_meth_set_destroy)(method, destroy);
        openssl.bio_method = method;
        Some(())
    }
}

/// Flags of a BIO (openssl/bio.h).
const READ: c_int = 1;
const WRITE: c_int = 2;
const RETRY: c_int = 8;
const ALL: c_int = 15;

unsafe extern "C" fn read(bio: *mut Bio, buffer: *mut c_char, length: c_int) -> c_int {
    let openssl = openssl::known();
    // SAFETY: OpenSSL has `length` bytes of room; the wire is its BIO's.
    unsafe {
        (openssl.BIO_clear_flags)(bio, ALL);
        let wire = &mut *(openssl.BIO_get_data)(bio).cast::<Wire>();
        let count = wire.inbound.len().min(length.max(0) as usize);
        if count > 0 {
            let bytes = wire.inbound.as_slice().as_ptr();
            std::ptr::copy_nonoverlapping(bytes, buffer.cast(), count);
            wire.inbound.skip(count);
            return count as c_int;
        }
        if wire.ended {
            return 0;
        }
        if wire.kernel.failed != 0 {
            Errno::set_raw(std::mem::take(&mut wire.kernel.failed));
            return -1;
        }
        wire.kernel.asked = length.max(0) as usize;
        (openssl.BIO_set_flags)(bio, READ | RETRY);
        -1
    }
}

unsafe extern "C" fn write(bio: *mut Bio, bytes: *mut c_char, length: c_int) -> c_int {
    let openssl = openssl::known();
    // SAFETY: OpenSSL has `length` bytes; the wire is its BIO's.
    unsafe {
        (openssl.BIO_clear_flags)(bio, ALL);
        let wire = &mut *(openssl.BIO_get_data)(bio).cast::<Wire>();
        let length = length.max(0);
        let bytes = std::slice::from_raw_parts(bytes.cast(), length as usize);
        if wire.kernel.stuck {
            Errno::set_raw(libc::EKEYREJECTED);
            return -1;
        }
        if let Some(kind) = wire.kernel.record {
            let count = write_record(wire, kind, bytes);
            if count < 0 && is_transient(Errno::last_raw()) {
                (openssl.BIO_set_flags)(bio, WRITE | RETRY);
            }
            return count;
        }
        wire.outbound.push(bytes);
        length
    }
}

/// Sends a record which the kernel is to encrypt and which is not the program's bytes, after all that has
/// been written before it. Without waiting: the fiber waits between OpenSSL's calls, and OpenSSL writes again.
unsafe fn write_record(wire: &mut Wire, kind: u8, bytes: &[u8]) -> c_int {
    if !wire.kernel.is_same_socket(wire.fd) {
        Errno::set_raw(libc::EBADF);
        return -1;
    }
    let fd = wire.fd;
    match wire.send_now(fd) {
        Sent::All => {}
        Sent::Part => {
            Errno::set_raw(libc::EAGAIN);
            return -1;
        }
        Sent::None => {
            Errno::set_raw(libc::EPIPE);
            return -1;
        }
    }
    let count = kernel::send_record(wire.fd, kind, bytes);
    if count >= 0 {
        wire.kernel.record = None;
        wire.kernel.stuck = kernel::is_key_update(kind, bytes);
    }
    count as c_int
}

/// OpenSSL offers the keys of a direction. Refused, it goes on by itself: so while bytes of that direction are
/// on their way that the kernel would take for its own to encrypt or decrypt.
unsafe fn set_keys(wire: &mut Wire, sends: bool, information: *const c_void) -> bool {
    if !wire.kernel.offered || information.is_null() || !wire.kernel.is_same_socket(wire.fd) {
        return false;
    }
    let fd = wire.fd;
    let is_clear = if sends {
        wire.send_now(fd) == Sent::All
    } else {
        wire.inbound.is_empty() && wire.receiver.is_none()
    };
    // SAFETY: OpenSSL passes what the kernel's option takes.
    if !is_clear || !unsafe { kernel::set_keys(fd, information, sends) } {
        return false;
    }
    if sends {
        wire.kernel.sends = true;
        wire.kernel.stuck = false;
    } else {
        wire.kernel.receives = true;
    }
    true
}

/// Commands of a BIO with which OpenSSL asks for what the kernel does (openssl/bio.h).
const KERNEL_SENDS: c_int = 73;
const KERNEL_RECEIVES: c_int = 76;

/// Whether the kernel encrypts what an SSL sends, and decrypts what it receives, through the BIOs that it has.
pub unsafe fn kernel_of(openssl: &OpenSsl, ssl: *const Ssl) -> (bool, bool) {
    // SAFETY: the commands take no argument; an SSL without BIOs has none to ask.
    unsafe {
        let ask = |bio: *mut Bio, command| {
            !bio.is_null() && (openssl.BIO_ctrl)(bio, command, 0, std::ptr::null_mut()) > 0
        };
        (
            ask((openssl.SSL_get_wbio)(ssl), KERNEL_SENDS),
            ask((openssl.SSL_get_rbio)(ssl), KERNEL_RECEIVES),
        )
    }
}

unsafe extern "C" fn control(
    bio: *mut Bio,
    command: c_int,
    number: c_long,
    pointer: *mut c_void,
) -> c_long {
    const EOF: c_int = 2;
    const GET_CLOSE: c_int = 8;
    const SET_CLOSE: c_int = 9;
    const PENDING: c_int = 10;
    const FLUSH: c_int = 11;
    const DUP: c_int = 12;
    const PENDING_WRITES: c_int = 13;
    const GET_FD: c_int = 105;
    // Of kernel TLS, as those below.
    const SET_KEYS: c_int = 72;
    const SET_RECORD: c_int = 74;
    const CLEAR_RECORD: c_int = 75;
    let openssl = openssl::known();
    // SAFETY: the wire is the BIO's; GET_FD takes the address of an int, or NULL.
    unsafe {
        let wire = &mut *(openssl.BIO_get_data)(bio).cast::<Wire>();
        match command {
            // Asked when a read brought nothing.
            EOF => c_long::from(wire.ended && wire.inbound.is_empty()),
            GET_CLOSE => c_long::from((openssl.BIO_get_shutdown)(bio)),
            SET_CLOSE => {
                (openssl.BIO_set_shutdown)(bio, number as c_int);
                1
            }
            PENDING => wire.inbound.len() as c_long,
            PENDING_WRITES => (wire.outbound.len() + wire.sending.len()) as c_long,
            // It goes out between OpenSSL's calls.
            FLUSH | DUP => 1,
            GET_FD => {
                if !pointer.is_null() {
                    *pointer.cast::<c_int>() = wire.fd;
                }
                c_long::from(wire.fd)
            }
            SET_KEYS => c_long::from(set_keys(wire, number != 0, pointer)),
            KERNEL_SENDS => c_long::from(wire.kernel.sends),
            KERNEL_RECEIVES => c_long::from(wire.kernel.receives),
            SET_RECORD => {
                wire.kernel.record = Some(number as u8);
                0
            }
            CLEAR_RECORD => {
                wire.kernel.record = None;
                0
            }
            _ => 0,
        }
    }
}

unsafe extern "C" fn destroy(bio: *mut Bio) -> c_int {
    let openssl = openssl::known();
    // SAFETY: the share that `make` gave the BIO. What the kernel works on is on the frame of the fiber
    // that waits for it, never in the wire.
    unsafe {
        let wire = (openssl.BIO_get_data)(bio);
        if !wire.is_null() {
            (openssl.BIO_set_data)(bio, std::ptr::null_mut());
            drop(Arc::from_raw(wire.cast::<Wire>().cast_const()));
        }
    }
    1
}
