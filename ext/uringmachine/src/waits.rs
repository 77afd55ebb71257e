//! Who waits for which descriptor, for a Ruby that does not tell a scheduler whom a close concerns
//! (lib/uringmachine/closing.rs). Kept by nobody else: from Ruby 4.0 on it costs nothing.

use std::collections::HashMap;
use std::os::fd::RawFd;

use uringmachine_runtime::TaskId;

/// Waits by descriptor.
#[derive(Default)]
pub struct Waits {
    by_fd: Option<HashMap<RawFd, Vec<TaskId>>>,
}

impl Waits {
    /// Keeps count from now on.
    pub fn keep(&mut self) {
        self.by_fd.get_or_insert_default();
    }

    /// A task is about to wait for a descriptor.
    #[inline]
    pub fn begin(&mut self, fd: RawFd, task: TaskId) {
        if let Some(by_fd) = &mut self.by_fd {
            by_fd.entry(fd).or_default().push(task);
        }
    }

    /// It waits no more.
    #[inline]
    pub fn end(&mut self, fd: RawFd, task: TaskId) {
        let Some(by_fd) = &mut self.by_fd else { return };
        if let Some(tasks) = by_fd.get_mut(&fd) {
            tasks.retain(|waiting| *waiting != task);
            if tasks.is_empty() {
                by_fd.remove(&fd);
            }
        }
    }

    /// The tasks that wait for a descriptor.
    pub fn on(&self, fd: RawFd) -> &[TaskId] {
        self.by_fd
            .as_ref()
            .and_then(|by_fd| by_fd.get(&fd))
            .map_or(&[], Vec::as_slice)
    }
}
