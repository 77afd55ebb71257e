//! The BIO that OpenSSL reads from and writes to: two queues in memory ([`Wire`]), which the ring fills and empties
//! between OpenSSL's calls. So no fiber is switched, and nothing is raised, inside of one.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ops::Deref;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::Arc;

use super::openssl::{self, BioMethod, Functions, RawBio, Ssl};
use super::wire::{Shared, Wire};
use super::{is_transient, kernel};
use crate::ruby::gvl::Gvl;

/// How OpenSSL knows our BIOs.
pub struct Kind {
    number: c_int,
    /// Never written to after it is made.
    method: AtomicPtr<BioMethod>,
}

/// Registers that.
pub fn make_kind(openssl: &Functions) -> Option<Kind> {
    // SSL_get_fd looks for a BIO with a descriptor.
    const TYPE_DESCRIPTOR: c_int = 0x0100;
    const TYPE_SOURCE_SINK: c_int = 0x0400;
    // SAFETY: the callbacks have the signatures that the functions take; the name is copied.
    unsafe {
        let index = (openssl.BIO_get_new_index)();
        if index < 0 {
            return None;
        }
        let number = index | TYPE_DESCRIPTOR | TYPE_SOURCE_SINK;
        let method = (openssl.BIO_meth_new)(number, c"uringmachine".as_ptr());
        if method.is_null() {
            return None;
        }
        (openssl.BIO_meth_set_read)(method, read);
        (openssl.BIO_meth_set_write)(method, write);
        (openssl.BIO_meth_set_ctrl)(method, control);
        (openssl.BIO_meth_set_destroy)(method, destroy);
        let method = AtomicPtr::new(method);
        Some(Kind { number, method })
    }
}

/// Gives an SSL a BIO of ours with a share of a wire, instead of those that it has; `None` if OpenSSL makes none.
pub fn give(ssl: &Ssl, wire: Shared) -> Option<()> {
    let openssl = ssl.openssl;
    // SAFETY: the BIO is new, and the SSL's from then on; it has the share until it is destroyed.
    unsafe {
        let bio = (openssl.BIO_new)(openssl.bio.method.load(Ordering::Relaxed));
        if bio.is_null() {
            return None;
        }
        (openssl.BIO_set_data)(bio, Arc::into_raw(wire).cast_mut().cast());
        (openssl.BIO_set_shutdown)(bio, 1);
        (openssl.BIO_set_init)(bio, 1);
        (openssl.SSL_set_bio)(ssl.pointer(), bio, bio);
    }
    Some(())
}

/// The wire of an SSL that was given one. It lives on frames of methods, as the SSL does, which keeps it.
#[derive(Clone, Copy)]
pub struct Attached(NonNull<Gvl<Wire>>);

impl Deref for Attached {
    type Target = Wire;

    #[inline]
    fn deref(&self) -> &Wire {
        // SAFETY: the BIO has a share of it as long as the SSL has the BIO, and nobody takes it away from that.
        unsafe { self.0.as_ref() }
    }
}

/// The wire of an SSL, if it was given one.
pub fn wire_of(ssl: &Ssl) -> Option<Attached> {
    let (openssl, bio) = (ssl.openssl, ssl.reads_from()?.as_ptr());
    // SAFETY: the BIO is the SSL's. One of our number has a share of a wire.
    unsafe {
        if (openssl.BIO_method_type)(bio) != openssl.bio.number {
            return None;
        }
        NonNull::new((openssl.BIO_get_data)(bio).cast()).map(Attached)
    }
}

/// Commands of a BIO with which OpenSSL asks for what the kernel does (openssl/bio.h).
const KERNEL_SENDS: c_int = 73;
const KERNEL_RECEIVES: c_int = 76;

/// Whether the kernel encrypts what an SSL sends, and decrypts what it receives, through the BIOs that it has.
pub fn kernel_of(ssl: &Ssl) -> (bool, bool) {
    let ask = |bio: Option<NonNull<RawBio>>, command| {
        bio.is_some_and(|bio| {
            // SAFETY: the BIO is the SSL's; the commands take no argument.
            unsafe { (ssl.openssl.BIO_ctrl)(bio.as_ptr(), command, 0, null_mut()) > 0 }
        })
    };
    (
        ask(ssl.writes_to(), KERNEL_SENDS),
        ask(ssl.reads_from(), KERNEL_RECEIVES),
    )
}

/// Flags of a BIO (openssl/bio.h).
const READ: c_int = 1;
const WRITE: c_int = 2;
const RETRY: c_int = 8;
const ALL: c_int = 15;

/// The wire of the BIO that is called, for as long as the call takes.
///
/// # Safety
/// OpenSSL has called one of the functions below with the BIO.
unsafe fn called<'a>(bio: *mut RawBio) -> &'a Wire {
    // SAFETY: only our BIOs have these functions, and each has a share of a wire until it is destroyed.
    unsafe { &*(openssl::known().BIO_get_data)(bio).cast::<Gvl<Wire>>() }
}

unsafe extern "C" fn read(bio: *mut RawBio, buffer: *mut c_char, length: c_int) -> c_int {
    let openssl = openssl::known();
    // SAFETY: OpenSSL calls with a BIO of ours, and has room for `length` bytes.
    unsafe {
        (openssl.BIO_clear_flags)(bio, ALL);
        let given = called(bio).give(length.max(0) as usize, |bytes| {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast(), bytes.len());
        });
        match given {
            Some(Ok(count)) => count as c_int,
            Some(Err(errno)) => {
                errno.set();
                -1
            }
            None => {
                (openssl.BIO_set_flags)(bio, READ | RETRY);
                -1
            }
        }
    }
}

unsafe extern "C" fn write(bio: *mut RawBio, bytes: *mut c_char, length: c_int) -> c_int {
    let openssl = openssl::known();
    // SAFETY: OpenSSL calls with a BIO of ours, and has `length` bytes.
    unsafe {
        (openssl.BIO_clear_flags)(bio, ALL);
        let bytes = match length {
            1.. => std::slice::from_raw_parts(bytes.cast(), length as usize),
            _ => &[],
        };
        match called(bio).take(bytes) {
            Ok(count) => count as c_int,
            Err(errno) => {
                if is_transient(errno) {
                    (openssl.BIO_set_flags)(bio, WRITE | RETRY);
                }
                errno.set();
                -1
            }
        }
    }
}

unsafe extern "C" fn control(
    bio: *mut RawBio,
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
    // SAFETY: OpenSSL calls with a BIO of ours.
    let wire = unsafe { called(bio) };
    match command {
        // Asked when a read brought nothing.
        EOF => {
            let state = wire.state();
            c_long::from(state.ended && state.inbound.is_empty())
        }
        // SAFETY: a look at the BIO.
        GET_CLOSE => c_long::from(unsafe { (openssl.BIO_get_shutdown)(bio) }),
        SET_CLOSE => {
            // SAFETY: a number of the BIO's.
            unsafe { (openssl.BIO_set_shutdown)(bio, number as c_int) };
            1
        }
        PENDING => wire.state().inbound.len() as c_long,
        PENDING_WRITES => {
            let state = wire.state();
            (state.outbound.len() + state.sending.len()) as c_long
        }
        // It goes out between OpenSSL's calls.
        FLUSH | DUP => 1,
        GET_FD => {
            if !pointer.is_null() {
                // SAFETY: it is the address of an int.
                unsafe { *pointer.cast::<c_int>() = wire.fd };
            }
            c_long::from(wire.fd)
        }
        // SAFETY: OpenSSL passes what the kernel's option takes, or nothing.
        SET_KEYS => match unsafe { keys(pointer) } {
            Some(keys) => c_long::from(wire.set_keys(keys, number != 0)),
            None => 0,
        },
        KERNEL_SENDS => c_long::from(wire.state().kernel.sends),
        KERNEL_RECEIVES => c_long::from(wire.state().kernel.receives),
        SET_RECORD | CLEAR_RECORD => {
            wire.state().kernel.record = (command == SET_RECORD).then_some(number as u8);
            0
        }
        _ => 0,
    }
}

/// What tells the kernel a key, if it is of a cipher that is known.
///
/// # Safety
/// There is one of the structs of linux/tls.h for a cipher, or nothing.
unsafe fn keys<'a>(information: *const c_void) -> Option<&'a [u8]> {
    if information.is_null() {
        return None;
    }
    // SAFETY: every such struct begins with the version and the number of the cipher, which tells its length.
    unsafe {
        let length = kernel::keys_length(*information.cast::<u16>().add(1))?;
        Some(std::slice::from_raw_parts(information.cast(), length))
    }
}

unsafe extern "C" fn destroy(bio: *mut RawBio) -> c_int {
    let openssl = openssl::known();
    // SAFETY: the share that `give` gave the BIO. What the kernel works on is on the frame of the fiber
    // that waits for it, never in the wire.
    unsafe {
        let wire = (openssl.BIO_get_data)(bio);
        if !wire.is_null() {
            (openssl.BIO_set_data)(bio, null_mut());
            drop(Arc::from_raw(wire.cast::<Gvl<Wire>>().cast_const()));
        }
    }
    1
}
