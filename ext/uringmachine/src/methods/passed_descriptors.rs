//! Descriptors that processes pass to each other through UNIX sockets.

use magnus::{Error, RClass};
use uringmachine_runtime::memory::{Single, SingleMut};
use uringmachine_runtime::operations::{RecvMsg, SendMsg};

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::inflow;
use crate::machine::write_all::send_once;
use crate::os::control_message::{self, ROOM_FOR_DESCRIPTOR};
use crate::os::fd::Fd;
use crate::ruby::arguments::Arguments;
use crate::ruby::{classes, number, Raise};

/// Sends a descriptor to the process at the other end of a UNIX socket.
///
/// @method UringMachine#send_fd(sockfd, fd)
/// @param sockfd [Integer] descriptor of the UNIX socket
/// @param fd [Integer] the descriptor to send
/// @return [Integer] fd
/// @raise [SystemCallError] as sendmsg(2)
/// @kernel 5.3
/// @example
///   machine.send_fd(socket, fd)
fn send_fd(caller: Caller, arguments: Arguments) -> Answer {
    let socket = arguments.fd(0, "sockfd")?;
    let control = control_message::with_descriptor(arguments.fd(1, "fd")?);
    let (byte, flags) = (Single::new(&[0_u8][..]), libc::MSG_NOSIGNAL);
    let mut message = SendMsg::with(socket, byte, (), &control[..], flags);
    caller.in_turn(socket, || {
        send_once(&caller, socket, flags, |caller, flags| {
            message.flags = flags;
            caller.operate(&mut message)
        })
    })?;
    Ok(arguments.get(1))
}

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
    let socket = arguments.fd(0, "sockfd")?;
    let (mut byte, mut control) = ([0_u8; 1], [0_u8; ROOM_FOR_DESCRIPTOR]);
    caller.told(socket)?;
    // What a stream receives meanwhile would lose its descriptor.
    drop(caller.kept(socket)?);
    let (piece, flags) = (SingleMut::new(&mut byte[..]), libc::MSG_CMSG_CLOEXEC);
    let mut message = RecvMsg::with(socket, piece, (), &mut control[..], flags);
    let result = caller.operate(&mut message);
    let is_cut = message.message_flags() & libc::MSG_TRUNC != 0;
    // Also if the wait was ended: it may have come meanwhile.
    let length = message.control_length();
    let received = control.get(..length).and_then(control_message::descriptor);
    match (result, received) {
        (Ok(_), Some(fd)) if is_cut => {
            let _ = Fd(fd).close();
            Err(Raise::errno(libc::EMSGSIZE).into())
        }
        (Ok(_), Some(fd)) => Ok(number(fd)),
        (Ok(_), None) if is_cut => Err(Raise::errno(libc::EMSGSIZE).into()),
        (Ok(0), None) if !caller.machine.is_of_messages(socket) || inflow::is_end(socket) => {
            Err(Raise::new(classes::eof_error(), "end of file reached").into())
        }
        (Ok(_), None) => Err(Raise::errno(libc::EINVAL).into()),
        (Err(failure), None) => Err(failure),
        (Err(failure), Some(fd)) => {
            // It came while the wait was being ended: nobody will get it.
            let _ = Fd(fd).close();
            Err(failure)
        }
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "send_fd", 2..=2, send_fd);
    machine_method!(class, "recv_fd", 1..=1, recv_fd);
    Ok(())
}
