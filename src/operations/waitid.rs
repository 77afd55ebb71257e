//! Waiting for a child: IORING_OP_WAITID.

use io_uring::opcode;
use io_uring::squeue::Entry;

use crate::operation::{Operation, WithoutMemory};

/// Ends when a child of the process changes (waitid(2), Linux 6.7: see [`Features::waitid`](crate::Features)). Which one
/// it was, and how, is not told: with WNOWAIT another call finds out.
#[derive(Clone, Copy, Debug)]
pub struct WaitId {
    /// P_PID, P_PIDFD, P_PGID or P_ALL.
    pub id_type: libc::idtype_t,
    /// Which of those.
    pub id: libc::id_t,
    /// WEXITED, WSTOPPED, WCONTINUED, WNOWAIT, WNOHANG.
    pub options: i32,
}

// SAFETY: the entry points to nothing: what the child's state is is not asked for.
unsafe impl Operation for WaitId {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::WaitId::new(self.id_type, self.id, self.options).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for WaitId {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, run, start};
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_is_waited_for_and_left_to_be_reaped() {
        let mut driver = driver();
        if !driver.features().waitid {
            return;
        }
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let mut wait = WaitId {
            id_type: libc::P_PID,
            id: child.id(),
            options: libc::WEXITED | libc::WNOWAIT,
        };
        let op = start(&mut driver, &mut wait);
        assert!(!driver.is_over(op));
        drop(child.stdin.take());
        assert_eq!(finish(&mut driver, op), 0);
        assert!(child.wait().unwrap().success());
        assert_eq!(run(&mut driver, &mut wait), -libc::ECHILD);
    }
}
