//! Sockets: made, bound, connected, accepted, received from and shut down.

use std::sync::Arc;

use magnus::{Error, RClass};
use uringmachine_runtime::lines::Work;
use uringmachine_runtime::operations::{Accept, Connect, Recv};

use super::address;
use super::transfer::{length, receive, receive_from};
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::handover::Rest;
use crate::machine::inflow::Flow;
use crate::machine::operate::Failure;
use crate::off_thread::resolver;
use crate::os::{socket, socket_address};
use crate::ruby::arguments::Arguments;
use crate::ruby::{self, collections, number, string, Raise, NIL};

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
    let domain = arguments.int(0, "domain")?;
    let kind = arguments.int(1, "type")? | libc::SOCK_CLOEXEC;
    let protocol = arguments.int_or(2, "protocol", 0)?;
    let flags = arguments.int_or(3, "flags", 0)?;
    // It never waits, and a system call of its own costs less than an operation.
    let fd = socket::socket(domain, kind | flags, protocol)?;
    Ok(number(fd))
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
    let fd = arguments.fd(0, "fd")?;
    let addresses = address::read(&caller, fd, &arguments, 1)?;
    socket::bind(fd, &addresses[0])?;
    Ok(number(0))
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
    let fd = arguments.fd(0, "fd")?;
    let backlog = arguments.int_or(1, "backlog", libc::SOMAXCONN)?;
    socket::listen(fd, backlog)?;
    Ok(number(0))
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
    let fd = arguments.fd(0, "fd")?;
    let addresses = address::read(&caller, fd, &arguments, 1)?;
    let mut result = Ok(0);
    for address in &addresses {
        let address = address.bytes();
        result = caller.result(Connect { fd, address });
        if !matches!(result, Err(Failure::Raise(Raise::Errno(_)))) {
            break;
        }
    }
    result?;
    Ok(number(0))
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
    let fd = arguments.fd(0, "fd")?;
    if let Some(flow) = caller.kept(fd)? {
        let connection = flow.get().descriptors.pop_front();
        if let Some(connection) = connection {
            return Ok(number(connection));
        }
    }
    let accept = Accept {
        fd,
        flags: libc::SOCK_CLOEXEC,
    };
    caller.descriptor(accept).map(number)
}

/// Receives from a socket into a buffer, once. What has come before, and was not handed over when a loop was left
/// (`recv_each`, UM::IO), comes first.
///
/// @method UringMachine#recv(fd, buffer, maxlen = nil, flags = 0)
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
    let fd = arguments.fd(0, "fd")?;
    let maxlen = length(&arguments, 2, "maxlen")?;
    let flags = arguments.int_or(3, "flags", 0)?;
    let room = || caller.room(arguments.get(1), maxlen, 0, "buffer");
    if flags & libc::MSG_TRUNC != 0 || !caller.reads_plainly(fd) {
        caller.told(fd)?;
        if let Some(flow) = kept(&caller, fd, flags)? {
            let rest = (flags & libc::MSG_WAITALL != 0).then_some(Rest { fd, flags });
            let peeks = flags & libc::MSG_PEEK != 0;
            return caller.fill_from(&flow, room()?, peeks, rest).map(number);
        }
        if flags & libc::MSG_TRUNC != 0 || caller.machine.is_of_messages(fd) {
            return receive(&caller, fd, room()?, flags).map(number);
        }
    }
    let memory = room()?;
    caller.count_registered(&memory);
    let (count, recv) = caller.run(Recv {
        fd,
        memory,
        flags,
        poll_first: false,
    })?;
    recv.memory.finish(count as usize)?;
    Ok(number(count))
}

/// What is to be received first, unless the flags ask for something else: urgent data, errors.
fn kept(caller: &Caller, fd: i32, flags: i32) -> Result<Option<Arc<Flow>>, Failure> {
    if flags & (libc::MSG_OOB | libc::MSG_ERRQUEUE) != 0 {
        return Ok(None);
    }
    caller.kept(fd)
}

/// Receives a message, and who sent it.
///
/// @method UringMachine#recvfrom(fd, buffer, maxlen = nil, flags = 0)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] as for `read`
/// @param maxlen [Integer, nil] as for `read`
/// @param flags [Integer]
/// @return [Array(Integer, Array(String, Integer)), Array(Integer, String), Array(Integer, nil)] bytes received, and the
///   sender as `[host, port]`: a path for UNIX sockets, nil if it has no address
/// @raise [SystemCallError] as recvfrom(2); Errno::EMSGSIZE for a datagram that is longer than there is room for,
///   unless flags have UM::MSG_TRUNC, or UM::MSG_PEEK
/// @raise [UringMachine::Error] if the buffer is no buffer, or in use by another operation
/// @kernel 5.3
/// @example
///   machine.recvfrom(fd, buffer, 1500) #=> [4, ["127.0.0.1", 40312]]
fn recvfrom(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let maxlen = length(&arguments, 2, "maxlen")?;
    let flags = arguments.int_or(3, "flags", 0)?;
    let room = || caller.room(arguments.get(1), maxlen, 0, "buffer");
    caller.told(fd)?;
    let (count, sender) = match kept(&caller, fd, flags)? {
        Some(flow) => {
            // Of a stream, which tells no senders.
            let peeks = flags & libc::MSG_PEEK != 0;
            (caller.fill_from(&flow, room()?, peeks, None)?, NIL)
        }
        None => {
            let (count, address) = receive_from(&caller, fd, room()?, flags)?;
            (count, address.to_ruby()?)
        }
    };
    Ok(ruby::array_of(&[number(count), sender])?)
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
    let (fd, how) = (arguments.fd(0, "fd")?, arguments.int(1, "how")?);
    let shut_down = || Ok(socket::shutdown(fd, how)?);
    if how == libc::SHUT_RD {
        shut_down()?;
    } else {
        caller.after_work(fd, shut_down)?;
    }
    Ok(number(0))
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
    let (fd, how) = (arguments.fd(0, "fd")?, arguments.int(1, "how")?);
    caller
        .machine
        .parts()
        .driver
        .add_work(fd, Work::Shutdown(how));
    Ok(arguments.get(0))
}

/// @method UringMachine#sockname(fd)
/// @param fd [Integer] file descriptor
/// @return [Array(String, Integer), String, nil] the socket's own address: `[host, port]`, or the path of a UNIX
///   socket
/// @raise [SystemCallError] as getsockname(2)
/// @example
///   machine.sockname(fd) #=> ["127.0.0.1", 1234]
fn sockname(_: Caller, arguments: Arguments) -> Answer {
    Ok(socket::own_name(arguments.fd(0, "fd")?)?.to_ruby()?)
}

/// @method UringMachine#peername(fd)
/// @param fd [Integer] file descriptor
/// @return [Array(String, Integer), String, nil] the peer's address, as `sockname` returns it
/// @raise [SystemCallError] as getpeername(2)
/// @example
///   machine.peername(fd) #=> ["127.0.0.1", 40312]
fn peername(_: Caller, arguments: Arguments) -> Answer {
    Ok(socket::peer_name(arguments.fd(0, "fd")?)?.to_ruby()?)
}

/// The addresses of a host, by the system's resolver: /etc/hosts, DNS and whatever nsswitch.conf(5) names, in
/// the order of getaddrinfo(3).
fn addresses_of(caller: Caller, arguments: Arguments) -> Answer {
    let name = arguments.c_string(0, "hostname")?;
    let found = resolver::resolve(caller.machine, caller.me, name.clone())?;
    if found.is_empty() {
        return Err(socket_address::unresolved(&name.to_string_lossy()).into());
    }
    let list = ruby::array()?;
    for address in &found {
        collections::push(list, string::utf8(address)?)?;
    }
    Ok(list)
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
    machine_method!(class, "sockname", 1..=1, sockname);
    machine_method!(class, "peername", 1..=1, peername);
    machine_method!(class, private "system_addresses", 1..=1, addresses_of);
    Ok(())
}
