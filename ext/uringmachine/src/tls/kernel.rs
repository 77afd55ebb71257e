//! Kernel TLS (Documentation/networking/tls.rst): after the handshake OpenSSL hands the keys to the socket,
//! and the kernel encrypts what is written to it and decrypts what is read. Splices and registered buffers
//! then work on an encrypted connection.
//!
//! OpenSSL asks its BIO for it, as it asks its own BIO for sockets (include/internal/ktls.h), and encrypts by
//! itself where the BIO refuses.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use crate::os::control_message::{self, ControlMessage};
use crate::os::fd::Fd;
use crate::os::{self, socket, transfer, Errno};

/// The header that OpenSSL expects in front of a record.
pub const HEADER: usize = 5;
/// The most plaintext in a record.
pub const RECORD: usize = 16 << 10;
/// The type of the records with the program's bytes.
pub const DATA: u8 = 23;

/// Names of linux/tcp.h and linux/tls.h.
const TCP_ULP: i32 = 31;
const SET_RECORD_TYPE: i32 = 1;
const GET_RECORD_TYPE: i32 = 2;
const SEND_KEYS: i32 = 1;
const RECEIVE_KEYS: i32 = 2;

/// What the kernel does for a connection.
#[derive(Default)]
pub struct Kernel {
    /// The socket would take keys. Until it has, nothing is received that OpenSSL has not asked for: what
    /// comes after the change of keys is the kernel's to decrypt.
    pub offered: bool,
    /// The kernel encrypts what is sent.
    pub sends: bool,
    /// The kernel decrypts what is received.
    pub receives: bool,
    /// The type of the record that OpenSSL writes next, if it is not the program's bytes.
    pub record: Option<u8>,
    /// How much OpenSSL has asked for in vain.
    pub asked: usize,
    /// Why the kernel could not decrypt a record: OpenSSL words the error, and tells the peer.
    pub failed: Option<Errno>,
    /// OpenSSL has told the peer of a new key, and the kernel has not got it: nothing may be sent with the old.
    /// OpenSSL before 3.2 does not hand over a second key, and Linux before 6.14 does not take one.
    pub stuck: bool,
    /// Which socket it is: the descriptor may be another's by the time that OpenSSL uses it.
    identity: (u64, u64),
}

impl Kernel {
    /// Asks the kernel whether a socket would take keys. It does not if it is no TCP socket, if it is not
    /// connected, or if the kernel has no TLS.
    pub fn of(fd: RawFd) -> Self {
        let asked = socket::set_option(fd, libc::SOL_TCP, TCP_ULP, b"tls");
        Self {
            offered: matches!(asked, Ok(()) | Err(Errno(libc::EEXIST))),
            identity: Fd(fd).identity().unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Whether a descriptor is still of the socket that was asked.
    pub fn is_same_socket(&self, fd: RawFd) -> bool {
        Fd(fd).identity() == Ok(self.identity)
    }
}

/// How long what tells the kernel a key is, by the number of the cipher (linux/tls.h).
pub fn keys_length(cipher: u16) -> Option<usize> {
    match cipher {
        // AES-GCM-128 and AES-CCM-128.
        51 | 53 => Some(40),
        // AES-GCM-256 and ChaCha20-Poly1305.
        52 | 54 => Some(56),
        _ => None,
    }
}

/// Hands the keys to the socket: what the kernel's option takes, made by OpenSSL.
pub fn set_keys(fd: RawFd, keys: &[u8], sends: bool) -> bool {
    let option = if sends { SEND_KEYS } else { RECEIVE_KEYS };
    socket::set_option(fd, libc::SOL_TLS, option, keys).is_ok()
}

/// Sends a record that is not the program's bytes, without waiting; the kernel takes all of it or nothing.
pub fn send_record(fd: RawFd, kind: u8, bytes: &[u8]) -> os::Result<usize> {
    let control = control_message::small(libc::SOL_TLS, SET_RECORD_TYPE, &[kind]);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    transfer::sendmsg(fd, &bytes, &control, flags)
}

/// Whether a record tells the peer of a new key (KeyUpdate, RFC 8446, 4.6.3).
pub fn is_key_update(kind: u8, bytes: &[u8]) -> bool {
    const HANDSHAKE: u8 = 22;
    const KEY_UPDATE: u8 = 24;
    kind == HANDSHAKE && bytes.first() == Some(&KEY_UPDATE)
}

/// The type of a record of so many bytes, by the control messages that have come with it; `None` if none has come,
/// which is the end.
pub fn record_type(control: &[u8], count: usize) -> Option<u8> {
    match control_message::first(control) {
        Some(ControlMessage {
            level: libc::SOL_TLS,
            kind: GET_RECORD_TYPE,
            data: [kind, ..],
        }) => Some(*kind),
        _ => (count > 0).then_some(DATA),
    }
}

/// The header of a record, as OpenSSL wants it before one that the kernel has decrypted.
pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    // TLS 1.2's version stands in the records of 1.3, too.
    [kind, 3, 3, high, low]
}

/// Whether OpenSSL is to say what is wrong with a record that has come (net/tls/tls_sw.c).
pub fn is_bad_record(errno: Errno) -> bool {
    matches!(errno.0, libc::EBADMSG | libc::EMSGSIZE | libc::EINVAL)
}
