//! Handing over what has come from a descriptor and was kept: see [`super::inflow`].

use std::os::fd::RawFd;
use std::sync::Arc;

use uringmachine_runtime::lines::identity;
use uringmachine_runtime::memory::Part;
use uringmachine_runtime::operations::Recv;

use super::caller::{count, Caller, Destination};
use super::inflow::{Flow, Reading};
use super::multishot::Running;
use super::operate::Failure;
use crate::ruby::Raise;

impl Caller<'_> {
    /// What has come from a descriptor, from now on.
    pub fn flow(&self, fd: RawFd) -> Result<Arc<Flow>, Raise> {
        let file = identity(fd).ok_or_else(|| Raise::errno(libc::EBADF))?;
        let mut parts = self.machine.parts();
        if let Some(flow) = parts.flow(fd) {
            if flow.get().file == Some(file) {
                return Ok(flow);
            }
            parts.drop_flow(fd);
        }
        let flow = Flow::of_file(file);
        if let Some(reading) = parts.reading.of(fd) {
            reading.flow = Some(Arc::clone(&flow));
        }
        Ok(flow)
    }

    /// Whether nothing comes before a read of a descriptor, which is known to keep no messages apart.
    #[inline]
    pub fn reads_plainly(&self, fd: RawFd) -> bool {
        let parts = self.machine.parts();
        let plain = matches!(
            parts.reading.get(fd),
            Some(Reading {
                flow: None,
                of_messages: Some(false)
            })
        );
        plain && !parts.driver.work_has_failed()
    }

    /// What has come from a descriptor and is to be handed over first, if there is any.
    #[inline]
    pub fn kept(&self, fd: RawFd) -> Result<Option<Arc<Flow>>, Failure> {
        let flow = self.machine.parts().flow(fd);
        match flow {
            None => Ok(None),
            Some(flow) => self.find_kept(fd, flow),
        }
    }

    #[cold]
    fn find_kept(&self, fd: RawFd, flow: Arc<Flow>) -> Result<Option<Arc<Flow>>, Failure> {
        {
            let inflow = flow.get();
            if inflow.is_idle() || inflow.busy {
                return Ok(None);
            }
        }
        if identity(fd) != flow.get().file {
            self.machine.parts().drop_flow(fd);
            return Ok(None);
        }
        self.settle(&flow)?;
        let wanted = {
            let inflow = flow.get();
            !inflow.busy
                && (!inflow.bytes.is_empty()
                    || !inflow.descriptors.is_empty()
                    || inflow.ended.is_some())
        };
        Ok(wanted.then_some(flow))
    }

    /// Waits until no operation brings anything any more that has been left, or is a UM::IO's that nobody reads from.
    pub fn settle(&self, flow: &Flow) -> Result<(), Failure> {
        let machine = self.machine;
        if !flow.get().busy {
            flow.leave_io(machine);
        }
        loop {
            let next = {
                let (mut inflow, mut parts) = (flow.get(), machine.parts());
                if inflow.gather(&mut parts) {
                    return Ok(());
                }
                let _ = parts.driver.poll();
                if inflow.gather(&mut parts) {
                    return Ok(());
                }
                let Some(op) = inflow.left.front().copied() else {
                    return Ok(());
                };
                let multishot = parts.driver.multishot(op);
                multishot
                    .is_some_and(|multishot| multishot.wait.is_none())
                    .then_some(op)
            };
            let caller = self.again();
            match next {
                Some(op) => Running::of(op).wait(&caller)?,
                // Another fiber waits for it.
                None => machine.yield_now(caller.me)?,
            }
            if flow.get().closed {
                return Err(Raise::errno(libc::ECANCELED).into());
            }
        }
    }

    /// Fills an object's memory with what has come, and with what a receive brings for the `rest` of it. `peeks` leaves
    /// it there.
    pub fn fill_from(
        &self,
        flow: &Flow,
        mut room: Destination,
        peeks: bool,
        rest: Option<Rest>,
    ) -> Result<i32, Failure> {
        let ended = {
            let mut inflow = flow.get();
            match (inflow.bytes.is_empty(), peeks) {
                (false, _) => None,
                (true, true) => Some(inflow.ended.unwrap_or(0)),
                (true, false) => Some(inflow.ended.take().unwrap_or(0)),
            }
        };
        if let Some(result) = ended {
            let result = count(result)?;
            room.finish(0)?;
            return Ok(result);
        }
        let given = room.put(0, flow.get().bytes.as_slice());
        let mut total = given;
        let has_ended = flow.get().ended.is_some();
        if let Some(Rest { fd, flags }) = rest.filter(|_| given < room.size() && !has_ended) {
            let mut receive = Recv {
                fd,
                memory: Part::new(&mut room, given as u32, u32::MAX),
                flags,
                poll_first: false,
            };
            match self.machine.operate(self.me, &mut receive, None)? {
                more if more >= 0 => total += more as usize,
                error => flow.get().ended = Some(error),
            }
        }
        room.finish(total)?;
        if !peeks {
            let mut inflow = flow.get();
            let left = inflow.bytes.len();
            inflow.consume(given.min(left));
        }
        Ok(total as i32)
    }
}

/// What a receive brings that waits for all that there is room for (MSG_WAITALL).
#[derive(Clone, Copy)]
pub struct Rest {
    pub fd: RawFd,
    pub flags: i32,
}
