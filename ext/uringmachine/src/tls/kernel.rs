//! Kernel TLS (Documentation/networking/tls.rst): after the handshake OpenSSL hands the keys to the socket,
//! and the kernel encrypts what is written to it and decrypts what is read. Splices and registered buffers
//! then work on an encrypted connection.
//!
//! OpenSSL asks its BIO for it, as it asks its own BIO for sockets (include/internal/ktls.h), and encrypts by
//! itself where the BIO refuses.

use nix::errno::Errno;

use std::ffi::{c_int, c_void};

/// The header that OpenSSL expects in front of a record.
pub const HEADER: usize = 5;
/// The most plaintext in a record.
pub const RECORD: usize = 16 << 10;
/// The type of the records with the program's bytes.
pub const DATA: u8 = 23;

/// Names of linux/tcp.h and linux/tls.h.
const TCP_ULP: c_int = 31;
const SET_RECORD_TYPE: c_int = 1;
const GET_RECORD_TYPE: c_int = 2;
const SEND_KEYS: c_int = 1;
const RECEIVE_KEYS: c_int = 2;

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
    /// The errno of a record that the kernel could not decrypt: OpenSSL words the error, and tells the peer.
    pub failed: c_int,
    /// OpenSSL has told the peer of a new key, and the kernel has not got it: nothing may be sent with the old.
    /// OpenSSL before 3.2 does not hand over a second key, and Linux before 6.14 does not take one.
    pub stuck: bool,
    /// Which socket it is: the descriptor may be another's by the time that OpenSSL uses it.
    identity: (u64, u64),
}

impl Kernel {
    /// Asks the kernel whether a socket would take keys. It does not if it is no TCP socket, if it is not
    /// connected, or if the kernel has no TLS.
    pub fn of(fd: c_int) -> Self {
        let name = c"tls";
        // SAFETY: the option takes a name.
        let result = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_TCP,
                TCP_ULP,
                name.as_ptr().cast(),
                name.to_bytes().len() as _,
            )
        };
        Self {
            offered: result == 0 || Errno::last_raw() == libc::EEXIST,
            identity: identity(fd).unwrap_or_default(),
            ..Self::default()
        }
    }

    pub fn is_same_socket(&self, fd: c_int) -> bool {
        identity(fd) == Some(self.identity)
    }
}

fn identity(fd: c_int) -> Option<(u64, u64)> {
    // SAFETY: an all-zero stat is valid, and fstat fills it.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut status) == 0).then_some((status.st_dev, status.st_ino))
    }
}

/// Hands the keys to the socket: `information` is what the kernel's option takes, made by OpenSSL.
///
/// # Safety
/// `information` points to one of the structs of linux/tls.h for a cipher.
pub unsafe fn set_keys(fd: c_int, information: *const c_void, sends: bool) -> bool {
    // SAFETY: every such struct begins with the version and the type of the cipher, which tells its length.
    unsafe {
        let length = match *information.cast::<u16>().add(1) {
            // AES-GCM-128 and AES-CCM-128.
            51 | 53 => 40,
            // AES-GCM-256 and ChaCha20-Poly1305.
            52 | 54 => 56,
            _ => return false,
        };
        let option = if sends { SEND_KEYS } else { RECEIVE_KEYS };
        libc::setsockopt(fd, libc::SOL_TLS, option, information, length) == 0
    }
}

/// Sends a record that is not the program's bytes, without waiting; the kernel takes all of it or nothing.
/// The count, or -1 with errno.
pub fn send_record(fd: c_int, kind: u8, bytes: &[u8]) -> isize {
    let mut message = Message::new();
    // SAFETY: the message points to the bytes and to itself, and the call ends before they do.
    unsafe {
        message.prepare(bytes.as_ptr().cast_mut(), bytes.len());
        let control = libc::CMSG_FIRSTHDR(&message.header);
        (*control).cmsg_level = libc::SOL_TLS;
        (*control).cmsg_type = SET_RECORD_TYPE;
        (*control).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(control) = kind;
        message.header.msg_controllen = libc::CMSG_LEN(1) as _;
        libc::sendmsg(fd, &message.header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    }
}

/// Whether a record tells the peer of a new key (KeyUpdate, RFC 8446, 4.6.3).
pub fn is_key_update(kind: u8, bytes: &[u8]) -> bool {
    const HANDSHAKE: u8 = 22;
    const KEY_UPDATE: u8 = 24;
    kind == HANDSHAKE && bytes.first() == Some(&KEY_UPDATE)
}

/// A msghdr with room for the type of a record. It stays where it is once it is prepared.
pub struct Message {
    pub header: libc::msghdr,
    bytes: libc::iovec,
    /// Room for one control message of a byte (CMSG_SPACE(1)), aligned.
    control: [u64; 3],
}

impl Message {
    pub fn new() -> Self {
        // SAFETY: all zeros are valid.
        unsafe { std::mem::zeroed() }
    }

    /// # Safety
    /// The message is not moved while the kernel uses its header.
    pub unsafe fn prepare(&mut self, pointer: *mut u8, length: usize) {
        self.bytes.iov_base = pointer.cast();
        self.bytes.iov_len = length;
        self.header.msg_iov = &raw mut self.bytes;
        self.header.msg_iovlen = 1;
        self.header.msg_control = (&raw mut self.control).cast();
        self.header.msg_controllen = size_of_val(&self.control) as _;
    }

    /// The type of the record that has come; `None` if none has, which is the end.
    pub fn record(&self, count: usize) -> Option<u8> {
        // SAFETY: the kernel has filled the header.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(&self.header);
            if !control.is_null()
                && (*control).cmsg_level == libc::SOL_TLS
                && (*control).cmsg_type == GET_RECORD_TYPE
            {
                return Some(*libc::CMSG_DATA(control));
            }
        }
        (count > 0).then_some(DATA)
    }
}

/// Whether OpenSSL is to say what is wrong with a record that has come (net/tls/tls_sw.c).
pub fn is_bad_record(errno: c_int) -> bool {
    matches!(errno, libc::EBADMSG | libc::EMSGSIZE | libc::EINVAL)
}
