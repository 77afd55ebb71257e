//! Sockets: made, bound, connected, accepted, received from and shut down.

use std::ffi::c_int;
use std::sync::Arc;

use magnus::{Error, RClass};
use uringmachine_runtime::lines::Work;
use uringmachine_runtime::operations::Accept;
use uringmachine_runtime::{opcode, types};

use super::address;
use super::transfer::receive;
use crate::lending::Destination;
use crate::machine::caller::{machine_method, number, Answer, Caller};
use crate::machine::inflow::{self, Flow};
use crate::machine::switch::Failure;
use crate::off_thread::resolver;
use crate::os::direct;
use crate::os::socket_address::{self, Address};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, Raise};

/// Makes a socket, close-on-exec.
///
/// @method UringMachine#socket(domain, type, protocol = 0, flags = 0)
/// @param domain [Integer] UM::AF_INET, UM::AF_INET6, UM::AF_UNIX …
/// @param type [Integer] UM::SOCK_STREAM, UM::SOCK_DGRAM …
/// @param protocol [Integer]
/// @param flags [Integer] more bits for type
/// @return [Integer] file descriptor
/// @raise [SystemCallError] as socket(2)
/// @example
///   fd = machine.socket(UM::AF_INET, UM::SOCK_STREAM, 0, 0)
fn socket(_: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the call touches no memory.
    unsafe {
        let domain = arguments.int(0, "domain")?;
        let kind = arguments.int(1, "type")? | libc::SOCK_CLOEXEC;
        let protocol = arguments.int_or(2, "protocol", 0)?;
        let flags = arguments.int_or(3, "flags", 0)?;
        // It never waits, and a system call of its own costs less than an operation.
        let fd = direct(libc::socket(domain, kind | flags, protocol))?;
        Ok(number(fd))
    }
}

/// Binds a socket to an address.
///
/// @method UringMachine#bind(fd, host, port = nil)
/// @param fd [Integer] file descriptor
/// @param host [String] IPv4 or IPv6 address, or a name that is looked up; the path of a UNIX socket, or, with
///   a zero byte first, its abstract name
/// @param port [Integer] 0 to 65535, 0 for any that is free; not for UNIX sockets
/// @return [Integer] 0
/// @raise [SystemCallError] as bind(2)
/// @raise [Socket::ResolutionError] if the name has no address
/// @raise [ArgumentError] if it has none of the socket's family
/// @example
///   machine.bind(fd, "127.0.0.1", 1234)
fn bind(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the address is on this frame.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let address = address::read(&caller, fd, &arguments, 1)?[0];
        direct(libc::bind(fd, address.as_ptr(), address.length()))?;
        Ok(number(0))
    }
}

/// Has a socket take connections.
///
/// @method UringMachine#listen(fd, backlog = UM::SOMAXCONN)
/// @param fd [Integer] file descriptor
/// @param backlog [Integer] the connections that may wait to be accepted
/// @return [Integer] 0
/// @raise [SystemCallError] as listen(2)
/// @example
///   machine.listen(fd, 128)
fn listen(_: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the call touches no memory.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let backlog = arguments.int_or(1, "backlog", libc::SOMAXCONN)?;
        direct(libc::listen(fd, backlog))?;
        Ok(number(0))
    }
}

/// Connects a socket. A name with several addresses is tried one address after the other as long as the
/// kernel refuses at once; `tcp_connect` makes a new socket for each.
///
/// @method UringMachine#connect(fd, host, port = nil)
/// @param fd [Integer] file descriptor
/// @param host [String] as for `bind`
/// @param port [Integer] 0 to 65535; not for UNIX sockets
/// @return [Integer] 0
/// @raise [SystemCallError] as connect(2)
/// @raise [Socket::ResolutionError] if the name has no address
/// @raise [ArgumentError] if it has none of the socket's family
/// @kernel 5.5
/// @example
///   machine.connect(fd, "::1", 1234)
fn connect(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the addresses are on this frame, which `operate` does not
    // leave before the kernel is done.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let addresses = address::read(&caller, fd, &arguments, 1)?;
        let mut result = Ok(0);
        for address in &addresses {
            let fd = types::Fd(fd);
            let entry = opcode::Connect::new(fd, address.as_ptr(), address.length()).build();
            result = caller.operate(entry);
            if !matches!(result, Err(Failure::Raise(Raise::Errno(_)))) {
                break;
            }
        }
        result?;
        Ok(number(0))
    }
}

/// Accepts a connection, close-on-exec. One that was accepted before, when an `accept_each` was left, comes first.
///
/// @method UringMachine#accept(fd)
/// @param fd [Integer] descriptor of a listening socket
/// @return [Integer] descriptor of the connection
/// @raise [SystemCallError] as accept(2)
/// @kernel 5.5
/// @example
///   connection = machine.accept(server)
fn accept(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the operation is given no memory.
    unsafe {
        let fd = types::Fd(arguments.fd(0, "fd")?);
        if let Some(flow) = caller.kept(fd.0)? {
            if let Some(connection) = (*flow.get()).descriptors.pop_front() {
                return Ok(number(connection));
            }
        }
        let accept = Accept {
            fd: fd.0,
            flags: libc::SOCK_CLOEXEC,
        };
        caller.descriptor(accept).map(number)
    }
}

/// Receives from a socket into a buffer, once. What has come before, and was not handed over when a loop was left
/// (`recv_each`, UM::IO), comes first.
///
/// @method UringMachine#recv(fd, buffer, maxlen, flags = 0)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] as for `read`
/// @param maxlen [Integer, nil] as for `read`
/// @param flags [Integer] UM::MSG_PEEK and the like; with UM::MSG_TRUNC a datagram may be longer than there is room
///   for: the number returned is its length then
/// @return [Integer] bytes received; 0 at the end, and for an empty datagram
/// @raise [SystemCallError] as recv(2); Errno::EMSGSIZE for a datagram that is longer than there is room for
/// @raise [UringMachine::Error] if the buffer is no buffer, or in use by another operation
/// @kernel 5.6
/// @example
///   machine.recv(fd, buffer, 8192, 0) #=> 5
fn recv(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: `fill` keeps the memory in place.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let maxlen = super::transfer::length(&arguments, 2, "maxlen")?;
        let flags = arguments.int_or(3, "flags", 0)?;
        let buffer = arguments.get(1);
        let room = || Destination::new(caller.core, buffer, maxlen, 0, "buffer");
        let fd = types::Fd(fd);
        let receives =
            |pointer, length| opcode::Recv::new(fd, pointer, length).flags(flags).build();
        if flags & libc::MSG_TRUNC != 0 || !caller.reads_plainly(fd.0) {
            caller.told(fd.0)?;
            if let Some(flow) = kept(&caller, fd.0, flags)? {
                let rest =
                    (flags & libc::MSG_WAITALL != 0).then_some(&receives as &dyn Fn(_, _) -> _);
                let peeks = flags & libc::MSG_PEEK != 0;
                return caller.fill_from(&flow, room()?, peeks, rest).map(number);
            }
            if flags & libc::MSG_TRUNC != 0 || (*caller.core).is_of_messages(fd.0) {
                return receive(&caller, fd.0, room()?, flags, None).map(number);
            }
        }
        let destination = room()?;
        let fixed = destination.fixed.filter(|_| flags == 0);
        let count = caller.fill(destination, |pointer, length| match fixed {
            Some(index) => opcode::ReadFixed::new(fd, pointer, length, index)
                .offset(arguments::CURRENT)
                .build(),
            None => receives(pointer, length),
        })?;
        Ok(number(count))
    }
}

/// What is to be received first, unless the flags ask for something else: urgent data, errors.
unsafe fn kept(caller: &Caller, fd: i32, flags: i32) -> Result<Option<Arc<Flow>>, Failure> {
    if flags & (libc::MSG_OOB | libc::MSG_ERRQUEUE) != 0 {
        return Ok(None);
    }
    // SAFETY: see `switch`.
    unsafe { caller.kept(fd) }
}

/// Receives a message, and who sent it.
///
/// @method UringMachine#recvfrom(fd, buffer, maxlen, flags = 0)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] as for `read`
/// @param maxlen [Integer, nil] as for `read`
/// @param flags [Integer]
/// @return [Array(Integer, Array(String, Integer))] bytes received, and the sender as `[host, port]`: a path for
///   UNIX sockets, nil if it has no address
/// @raise [SystemCallError] as recvfrom(2); Errno::EMSGSIZE for a datagram that is longer than there is room for,
///   unless flags have UM::MSG_TRUNC, or UM::MSG_PEEK
/// @raise [UringMachine::Error] if the buffer is no buffer, or in use by another operation
/// @kernel 5.3
/// @example
///   machine.recvfrom(fd, buffer, 1500) #=> [4, ["127.0.0.1", 40312]]
fn recvfrom(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the message and the address are on this frame.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let maxlen = super::transfer::length(&arguments, 2, "maxlen")?;
        let flags = arguments.int_or(3, "flags", 0)?;
        let mut address = Address::empty();
        let room = || Destination::new(caller.core, arguments.get(1), maxlen, 0, "buffer");
        caller.told(fd)?;
        let count = match kept(&caller, fd, flags)? {
            Some(flow) => {
                // Of a stream, which tells no senders.
                *address.length_mut() = 0;
                caller.fill_from(&flow, room()?, flags & libc::MSG_PEEK != 0, None)?
            }
            None => receive(&caller, fd, room()?, flags, Some(&mut address))?,
        };
        let answer = rb_sys::rb_ary_new();
        rb_sys::rb_ary_push(answer, number(count));
        rb_sys::rb_ary_push(answer, address.to_ruby());
        Ok(answer)
    }
}

/// Shuts down part or all of a connection, after what was given to `write_async` before.
///
/// @method UringMachine#shutdown(fd, how)
/// @param fd [Integer] file descriptor
/// @param how [Integer] UM::SHUT_RD, UM::SHUT_WR or UM::SHUT_RDWR
/// @return [Integer] 0
/// @raise [SystemCallError] as shutdown(2)
/// @example
///   machine.shutdown(fd, UM::SHUT_WR)
fn shutdown(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the call touches no memory.
    unsafe {
        let (fd, how) = (arguments.fd(0, "fd")?, arguments.int(1, "how")?);
        let shut_down = || Ok(direct(libc::shutdown(fd, how))?);
        if how == libc::SHUT_RD {
            shut_down()?;
        } else {
            caller.after_work(fd, shut_down)?;
        }
        Ok(number(0))
    }
}

/// Has a connection shut down without waiting for it, after what was given to `write_async` before. It is submitted with
/// the machine's next operations. If it fails, the next operation on the descriptor raises the error.
///
/// @method UringMachine#shutdown_async(fd, how)
/// @param fd [Integer] file descriptor
/// @param how [Integer] as for `shutdown`
/// @return [Integer] fd
/// @kernel 5.11
/// @example
///   machine.shutdown_async(fd, UM::SHUT_WR)
fn shutdown_async(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: a shutdown points to nothing.
    unsafe {
        let (fd, how) = (arguments.fd(0, "fd")?, arguments.int(1, "how")?);
        (*caller.core).driver.add_work(fd, Work::Shutdown(how));
        Ok(arguments.get(0))
    }
}

/// @method UringMachine#getsockopt(fd, level, option)
/// @param fd [Integer] file descriptor
/// @param level [Integer] UM::SOL_SOCKET, UM::IPPROTO_TCP …
/// @param option [Integer] UM::SO_REUSEADDR …
/// @return [Integer]
/// @raise [SystemCallError] as getsockopt(2)
/// @example
///   machine.getsockopt(fd, UM::SOL_SOCKET, UM::SO_ERROR) #=> 0
fn getsockopt(_: Caller, arguments: Arguments) -> Answer {
    let (level, option) = (arguments.int(1, "level")?, arguments.int(2, "option")?);
    let value = socket_address::option(arguments.fd(0, "fd")?, level, option)?;
    Ok(number(value))
}

/// @method UringMachine#setsockopt(fd, level, option, value)
/// @param fd [Integer] file descriptor
/// @param level [Integer] UM::SOL_SOCKET, UM::IPPROTO_TCP …
/// @param option [Integer] UM::SO_REUSEADDR …
/// @param value [Integer, Boolean, String] a String holds the struct the option takes
/// @return [Integer] 0
/// @raise [SystemCallError] as setsockopt(2)
/// @example
///   machine.setsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR, true)
fn setsockopt(_: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the value lives across the call.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let (level, option) = (arguments.int(1, "level")?, arguments.int(2, "option")?);
        let value = arguments.get(3);
        let number_value;
        let bytes = if ruby::is_string(value) {
            ruby::string_bytes(&value)
        } else {
            number_value = match value {
                ruby::TRUE => 1,
                ruby::FALSE => 0,
                value => arguments::int(value, "value")?,
            }
            .to_ne_bytes();
            &number_value
        };
        direct(libc::setsockopt(
            fd,
            level,
            option,
            bytes.as_ptr().cast(),
            bytes.len() as libc::socklen_t,
        ))?;
        Ok(number(0))
    }
}

/// @method UringMachine#sockname(fd)
/// @param fd [Integer] file descriptor
/// @return [Array(String, Integer), String, nil] the socket's own address: `[host, port]`, or the path of a UNIX
///   socket
/// @raise [SystemCallError] as getsockname(2)
/// @example
///   machine.sockname(fd) #=> ["127.0.0.1", 1234]
fn sockname(caller: Caller, arguments: Arguments) -> Answer {
    name(caller, arguments, libc::getsockname)
}

/// @method UringMachine#peername(fd)
/// @param fd [Integer] file descriptor
/// @return [Array(String, Integer), String, nil] the peer's address, as `sockname` returns it
/// @raise [SystemCallError] as getpeername(2)
/// @example
///   machine.peername(fd) #=> ["127.0.0.1", 40312]
fn peername(caller: Caller, arguments: Arguments) -> Answer {
    name(caller, arguments, libc::getpeername)
}

type GetName = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;

fn name(_: Caller, arguments: Arguments, get: GetName) -> Answer {
    // SAFETY: the address has the length given.
    unsafe {
        let mut address = Address::empty();
        let pointer = address.as_mut_ptr();
        direct(get(arguments.fd(0, "fd")?, pointer, address.length_mut()))?;
        Ok(address.to_ruby())
    }
}

/// Room for the control message of one descriptor (cmsg(3)).
#[repr(C, align(8))]
pub struct Control(pub [u8; 24]);

/// Receives a descriptor that the process at the other end of a UNIX socket has sent; close-on-exec.
///
/// @method UringMachine#recv_fd(sockfd)
/// @param sockfd [Integer] descriptor of the UNIX socket
/// @return [Integer] the descriptor
/// @raise [Errno::EINVAL] if the message has no descriptor
/// @raise [Errno::EMSGSIZE] if a datagram has more than one byte: its descriptor is closed
/// @raise [EOFError] if the peer has closed the connection
/// @raise [SystemCallError] as recvmsg(2)
/// @kernel 5.3
/// @example
///   fd = machine.recv_fd(socket)
fn recv_fd(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: all the message points to is on this frame.
    unsafe {
        let socket = arguments.fd(0, "sockfd")?;
        let (mut byte, mut control) = (0_u8, Control([0; 24]));
        let mut piece = one_byte(&mut byte);
        let mut message = message_of(&mut piece, &mut control);
        // Not more: the alignment leaves room for a second descriptor, which would be nobody's.
        message.msg_controllen = libc::CMSG_LEN(4) as _;
        caller.told(socket)?;
        // What a stream receives meanwhile would lose its descriptor.
        drop(caller.kept(socket)?);
        let entry = opcode::RecvMsg::new(types::Fd(socket), &raw mut message)
            .flags(libc::MSG_CMSG_CLOEXEC as u32)
            .build();
        // The kernel shortens the length to what it has put there.
        let result = caller.operate(entry);
        let received = match result {
            Ok(_) | Err(_) if message.msg_controllen as u32 >= libc::CMSG_LEN(4) => {
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                let is_descriptor = !header.is_null()
                    && (*header).cmsg_level == libc::SOL_SOCKET
                    && (*header).cmsg_type == libc::SCM_RIGHTS;
                is_descriptor.then(|| libc::CMSG_DATA(header).cast::<c_int>().read_unaligned())
            }
            _ => None,
        };
        let is_cut = message.msg_flags & libc::MSG_TRUNC != 0;
        match (result, received) {
            (Ok(_), Some(fd)) if is_cut => {
                libc::close(fd);
                Err(Raise::errno(libc::EMSGSIZE).into())
            }
            (Ok(_), Some(fd)) => Ok(number(fd)),
            (Ok(_), None) if is_cut => Err(Raise::errno(libc::EMSGSIZE).into()),
            (Ok(0), None) if !(*caller.core).is_of_messages(socket) || inflow::is_end(socket) => {
                Err(Raise::new(rb_sys::rb_eEOFError, "end of file reached").into())
            }
            (Ok(_), None) => Err(Raise::errno(libc::EINVAL).into()),
            (Err(failure), None) => Err(failure),
            (Err(failure), Some(fd)) => {
                // It came while the wait was being ended: nobody will get it.
                libc::close(fd);
                Err(failure)
            }
        }
    }
}

pub fn one_byte(byte: &mut u8) -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::from_mut(byte).cast(),
        iov_len: 1,
    }
}

pub fn message_of(piece: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: an all-zero message is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    message
}

/// The addresses of a host, by the system's resolver: /etc/hosts, DNS and whatever nsswitch.conf(5) names, in
/// the order of getaddrinfo(3).
fn addresses_of(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        let name = arguments.c_string(0, "hostname")?;
        let found = resolver::resolve(caller.core, caller.me, name.clone())?;
        if found.is_empty() {
            return Err(socket_address::unresolved(&name.to_string_lossy()).into());
        }
        let list = rb_sys::rb_ary_new();
        for address in &found {
            let text = rb_sys::rb_utf8_str_new(address.as_ptr().cast(), address.len() as _);
            rb_sys::rb_ary_push(list, text);
        }
        Ok(list)
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "socket", 2..=4, socket);
    machine_method!(class, "bind", 2..=3, bind);
    machine_method!(class, "listen", 1..=2, listen);
    machine_method!(class, "connect", 2..=3, connect);
    machine_method!(class, "accept", 1..=1, accept);
    machine_method!(class, "recv", 2..=4, recv);
    machine_method!(class, "recvfrom", 2..=4, recvfrom);
    machine_method!(class, "shutdown", 2..=2, shutdown);
    machine_method!(class, "shutdown_async", 2..=2, shutdown_async);
    machine_method!(class, "getsockopt", 3..=3, getsockopt);
    machine_method!(class, "setsockopt", 4..=4, setsockopt);
    machine_method!(class, "sockname", 1..=1, sockname);
    machine_method!(class, "peername", 1..=1, peername);
    machine_method!(class, "recv_fd", 1..=1, recv_fd);
    machine_method!(class, private "system_addresses", 1..=1, addresses_of);
    Ok(())
}
