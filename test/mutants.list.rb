# frozen_string_literal: true

# The safeguards, and how each is taken out: see mutants.rb. `script/mutants --check` says whether it is true of the code.

EXT = "ext/uringmachine/src"

# --- Whose wait it is

mutant "wait-serial", "a wake-up for an earlier wait is dropped",
       file: "src/tasks.rs",
       from: "if task.state != State::Waiting || task.serial != wait.serial {",
       to: "if task.state != State::Waiting {",
       tests: ["cargo tasks::", "test/hooks/test_block.rb"]

mutant "queue-serial", "an entry of the run queue is for one wait only",
       file: "src/tasks.rs",
       from: "if task.serial != wait.serial {\n                continue;",
       to: "if false {\n                continue;",
       tests: ["cargo tasks::"]

mutant "missed-wake", "a completion that comes when the wait has been ended by something else is not lost",
       file: "src/tasks.rs",
       from: "if why == Wake::Complete => {\n                self.missed = Some(why);",
       to: "if why == Wake::Complete => {",
       tests: ["test/hooks/test_block.rb"]

mutant "slab-generation-read", "a key of an entry that was removed finds nothing",
       file: "src/slab.rs",
       from: "        if place.generation == key.generation {\n            place.entry.as_mut()",
       to: "        if place.generation >= key.generation {\n            place.entry.as_mut()",
       tests: ["cargo slab::", "cargo in_flight::"]

mutant "slab-generation-step", "a place that is given to another entry has another generation",
       file: "src/slab.rs",
       from: "place.generation = place.generation.wrapping_add(1);",
       to: "",
       tests: ["cargo slab::"]

mutant "slab-generation-remove", "a key of an entry that was removed removes nothing",
       file: "src/slab.rs",
       from: "        if place.generation != key.generation {\n            return None;\n        }\n        let entry",
       to: "        let entry",
       tests: ["cargo slab::"]

mutant "unblock-early", "an unblock that comes before `block` is reached is remembered",
       file: "#{EXT}/hooks/block.rs",
       from: "parts.waiter(task).unblocked_by = blocker;",
       to: "",
       tests: ["test/hooks/test_block.rb", "test/test_random_calls.rb"]

mutant "unblock-passed-on", "a fiber that was woken and is to raise wakes the next",
       file: "#{EXT}/machine/wait.rs",
       from: "if passes_on {",
       to: "if false && passes_on {",
       tests: ["test/hooks/test_block.rb"]

mutant "unblock-at-deadline", "a fiber that is given something as its time is up takes it",
       file: "#{EXT}/machine/wait.rs",
       from: "Ok(Wake::Timeout | Wake::Interrupt) if wait.was_unblocked() => Ok(Ended::Woken),",
       to: "",
       tests: ["test/hooks/test_block.rb"]

mutant "line-of-the-dead", "what waits in a thread that has ended is given nothing",
       file: "#{EXT}/machine/line.rs",
       from: "if machine.is_abandoned() {",
       to: "if false {",
       tests: ["test/classes/test_queue.rb", "test/classes/test_mutex.rb"]

# --- Timers

mutant "timer-cancelled", "a timer that was taken away does not fire",
       file: "src/timers.rs",
       from: "            if self.armed.get(node.key()).is_some() {",
       to: "            if true {",
       tests: ["cargo timers::"]

mutant "timer-compacted", "timers that were taken away do not pile up",
       file: "src/timers.rs",
       from: "if self.heap.len() > 64 && self.heap.len() > 2 * self.armed.len() {",
       to: "if false {",
       tests: ["cargo timers::"]

mutant "timer-of-a-wait", "the timer of a wait goes with the wait",
       file: "#{EXT}/machine/wait.rs",
       from: "self.machine.parts().driver.timers.cancel(timer);",
       to: "let _ = timer;",
       tests: ["test/hooks/test_timeout_after.rb"]

mutant "timeout-of-a-left-block", "a timeout whose block has ended is raised nowhere",
       file: "#{EXT}/hooks/timeout_after.rs",
       from: "let timeout = parts.timeouts.remove(key);",
       to: "let timeout = parts.timeouts.get(key).copied();",
       tests: ["test/test_progress.rb", "test/hooks/test_timeout_after.rb"]

# --- Memory that the kernel has

mutant "drain-before-release", "a frame whose memory the kernel has waits for the completion",
       file: "#{EXT}/machine/operate.rs",
       from: "            if self.is_forked() {\n                // The operation is the parent's",
       to: "            if true {\n                // The operation is the parent's",
       tests: ["test/methods/test_transfer.rb ended_at_once"]

mutant "drain-in-a-child", "a child of fork waits for no operation of its parent's",
       file: "#{EXT}/machine/operate.rs",
       from: "            if self.is_forked() {\n                // The operation is the parent's",
       to: "            if false {\n                // The operation is the parent's",
       tests: ["test/test_fork.rb"]

mutant "drained-result", "an operation that has won the race against its cancelling keeps its result",
       file: "#{EXT}/machine/operate.rs",
       from: "(Ok(_), None) if completion.result >= 0 => {",
       to: "(Ok(_), None) if completion.result == i32::MAX => {",
       tests: ["test/methods/test_transfer.rb ended_at_once"]

mutant "drained-descriptor", "a descriptor that nobody can be given is closed",
       file: "#{EXT}/machine/operate.rs",
       from: "        if opened {",
       to: "        if false && opened {",
       tests: ["test/methods/test_sockets.rb interrupted"]

mutant "zero-copy-second-completion", "the memory of a zero-copy send is busy until its second completion",
       file: "src/in_flight.rs",
       from: "Lifecycle::InFlight(_) | Lifecycle::Orphan(_) if more => {",
       to: "Lifecycle::Orphan(_) if more => {",
       tests: ["cargo in_flight::"]

mutant "zero-copy-loan", "memory that is lent to the network is taken back when the network is done with it",
       file: "#{EXT}/lending/mod.rs",
       from: "if lender.is_over(op) {",
       to: "if lender.is_over(op) || true {",
       tests: ["test/methods/test_sockets.rb network", "test/methods/test_sockets.rb"]

mutant "retarget", "a drain that waits anew is woken by the completion",
       file: "src/in_flight.rs",
       from: "            *waiting = wait;",
       to: "            let _ = (waiting, wait);",
       tests: ["test/test_progress.rb", "test/methods/test_fibers.rb", "test/machine/test_raise.rb"]

mutant "leak-of-a-dead-machine", "what the kernel may still touch when a thread ends is never freed",
       file: "src/driver/mod.rs",
       from: "std::mem::forget(kernel.provided);",
       to: "drop(kernel.provided);",
       tests: ["cargo --test leak"]

# --- Memory that is lent

mutant "lock-io-buffer", "an IO::Buffer is locked while the kernel writes to it",
       file: "#{EXT}/lending/destination.rs",
       from: "        buffer.lock()?;",
       to: "        if buffer.bytes().is_locked() { buffer.lock()?; }",
       tests: ["test/lending/test_buffers.rb", "test/lending/test_lifetime.rb", "test/methods/test_transfer.rb"]

mutant "lock-count", "a source that several operations read is locked until the last has ended",
       file: "#{EXT}/lending/locks.rs",
       from: "            if *count > 0 {\n                return;\n            }",
       to: "",
       tests: ["test/methods/test_transfer.rb meanwhile"]

mutant "lock-of-a-program", "an object that its program has locked is copied, not taken for ours",
       file: "#{EXT}/lending/locks.rs",
       from: "            None => false,\n        };\n    }\n    if put_on",
       to: "            None => true,\n        };\n    }\n    if put_on",
       tests: ["test/lending/test_buffers.rb", "test/lending/test_lifetime.rb", "test/methods/test_transfer.rb"]

mutant "lock-hook", "the IO::Buffer of a hook is locked while the kernel has it",
       file: "#{EXT}/lending/hooked.rs",
       from: "        let locks = !bytes.is_locked();",
       to: "        let locks = false;",
       tests: ["test/lending/test_buffers.rb"]

mutant "lock-in-a-child", "what the parent's operations have locked is the child's to use",
       file: "#{EXT}/machine/mod.rs",
       from: "        self.parts().driver.forsake();\n        self.unlock_held();",
       to: "        self.parts().driver.forsake();",
       tests: ["test/test_fork.rb"]

mutant "slice-copied", "a slice, whose lock keeps nothing, is read into by way of a copy",
       file: "#{EXT}/lending/destination.rs",
       from: "let (backing, pointer) = if registered.is_none() && buffer.is_slice(buffer.bytes()) {",
       to: "let (backing, pointer) = if registered.is_none() && length == usize::MAX {",
       tests: ["test/lending/test_lifetime.rb", "test/lending/test_buffers.rb"]

mutant "slice-of-a-hook", "a slice that a hook is given is copied",
       file: "#{EXT}/lending/hooked.rs",
       from: "if registered.is_none() && part.buffer.is_slice(bytes) {",
       to: "if false {",
       tests: ["test/lending/test_buffers.rb"]

mutant "slice-source-copied", "a slice that is written is copied",
       file: "#{EXT}/lending/source.rs",
       from: "_ if !holder.is_slice() && locks::lock(object) => Backing::Locked,",
       to: "_ if locks::lock(object) => Backing::Locked,",
       tests: ["test/lending/test_lifetime.rb", "test/lending/test_buffers.rb"]

mutant "buffer-has-gone", "a hook's buffer that was freed or shrunk meanwhile is an error",
       file: "#{EXT}/lending/hooked.rs",
       from: "if self.length > 0 && (bytes.base.is_null() || self.offset + self.length > bytes.length) {",
       to: "if self.length == usize::MAX {",
       tests: ["test/hooks/test_io_transfer.rb", "test/lending/test_buffers.rb"]

mutant "held-for-the-collector", "what is lent is marked and pinned",
       file: "#{EXT}/machine/mod.rs",
       from: "        for (_, held) in self.lending.holds.iter() {\n            ruby::mark(*held);\n        }",
       to: "",
       tests: ["test/methods/test_sockets.rb bytes_stay"]

mutant "more-than-room", "what the kernel answers may be more than there was room for (MSG_TRUNC)",
       file: "#{EXT}/lending/destination.rs",
       from: "self.give_back(Some(count.min(self.length)))",
       to: "self.give_back(Some(count))",
       tests: ["test/methods/test_messages.rb"]

mutant "more-than-a-provided-buffer", "bytes of a provided buffer end where it ends",
       file: "src/provided_buffers.rs",
       from: "let length = length.min(self.size as usize - filled);",
       to: "",
       tests: ["cargo --test driver"]

mutant "provided-given-back", "provided buffers go back to the kernel",
       file: "src/provided_buffers.rs",
       from: "        self.filled[usize::from(buffer)] = 0;\n        self.add(buffer);\n        self.publish();",
       to: "        self.filled[usize::from(buffer)] = 0;",
       tests: ["test/methods/test_streams.rb"]

# --- Registered memory

mutant "pool-in-use", "a registered buffer that the kernel works on is not released",
       file: "#{EXT}/lending/registered.rs",
       from: "            .is_some_and(|count| *count > 0)",
       to: "            .is_some_and(|count| *count == u32::MAX)",
       tests: ["test/classes/test_buffer_pool.rb"]

mutant "pool-locked", "a registered buffer that is locked is not released",
       file: "#{EXT}/classes/buffer_pool.rs",
       from: "        locks::is_locked(self.at(place))\n            || is_usable",
       to: "        is_usable",
       tests: ["test/classes/test_buffer_pool.rb", "test/methods/test_sockets.rb network"]

mutant "pool-released-twice", "a registered buffer is released once",
       file: "#{EXT}/classes/buffer_pool.rs",
       from: "        if is_free {",
       to: "        if false && is_free {",
       tests: ["test/classes/test_buffer_pool.rb"]

mutant "pool-bounds", "what goes beyond a registered buffer is none",
       file: "src/registered_buffers.rs",
       from: "place < region.count as usize && offset % region.size + length <= region.size;",
       to: "place < region.count as usize && length <= region.size;",
       tests: ["cargo --test driver"]

mutant "pool-collected", "the registered buffers of a pool that is dropped are given back",
       file: "#{EXT}/classes/buffer_pool.rs",
       from: "region.discards.add(Discarded::Buffers(region.id));",
       to: "let _ = Discarded::Buffers(region.id);",
       tests: ["test/classes/test_buffer_pool.rb"]

mutant "pool-wiped-in-a-child", "a child of fork does not see its parent's registered memory",
       file: "src/mapping.rs",
       from: "libc::madvise(base, length, libc::MADV_WIPEONFORK);",
       to: "",
       tests: ["test/classes/test_buffer_pool.rb"]

mutant "registered-file-let-go", "a registered file is taken out when its descriptor is closed",
       file: "#{EXT}/machine/inflow.rs",
       from: "        self.driver.unregister_file(fd);",
       to: "",
       tests: ["test/methods/test_registered_files.rb"]

mutant "registered-file-elsewhere", "a registered file of another thread's machine is taken out when it is closed",
       file: "#{EXT}/machine/registry.rs",
       from: "let is_registered = machine.parts().driver.forget_file(fd);",
       to: "let is_registered = false;",
       tests: ["test/methods/test_registered_files.rb"]

# --- Close-on-exec

{
  "duplicate" => ["os/fd.rs", "Ok(self.borrow()?.try_clone_to_owned()?)",
                  "// SAFETY: a descriptor is borrowed.\n        Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::dup(self.0)) })"],
  "pipe" => ["os/fd.rs", "Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)", "Ok(nix::unistd::pipe2(OFlag::empty())?)"],
  "pipe-of-a-copy" => ["os/fd.rs", "Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)",
                       "Ok(nix::unistd::pipe2(OFlag::O_NONBLOCK)?)"],
  "inotify" => ["os/inotify.rs", "libc::inotify_init1(libc::IN_CLOEXEC)", "libc::inotify_init1(0)"],
  "open" => ["methods/files.rs", "arguments.int(1, \"flags\")? | libc::O_CLOEXEC;", "arguments.int(1, \"flags\")?;"],
  "socket" => ["methods/sockets.rs", "arguments.int(1, \"type\")? | libc::SOCK_CLOEXEC;", "arguments.int(1, \"type\")?;"],
  "socketpair" => ["methods/descriptors.rs", "let kind = arguments.int(1, \"type\")? | libc::SOCK_CLOEXEC;",
                   "let kind = arguments.int(1, \"type\")?;"],
  "accept" => ["methods/sockets.rs", "flags: libc::SOCK_CLOEXEC,", "flags: 0,"],
  "accept-each" => ["machine/multishot.rs", "flags: libc::SOCK_CLOEXEC,", "flags: 0,"],
  "received" => ["methods/passed_descriptors.rs", "libc::MSG_CMSG_CLOEXEC);", "0);"]
}.each do |place, (file, from, to)|
  tests = ["test/test_descriptors.rb", "test/methods/test_sockets.rb close_on_exec"]
  mutant "cloexec-#{place}", "close-on-exec: #{place.tr("-", " ")}", file: "#{EXT}/#{file}", from:, to:, tests:
end

mutant "cloexec-waker", "close-on-exec: the eventfd of a machine",
       file: "src/event.rs",
       from: "libc::EFD_CLOEXEC | libc::EFD_NONBLOCK",
       to: "libc::EFD_NONBLOCK",
       tests: ["test/test_descriptors.rb"]

mutant "cloexec-kept-work", "close-on-exec: the duplicate by which writes go on after a close",
       file: "src/driver/turns.rs",
       from: "libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3)",
       to: "libc::fcntl(fd, libc::F_DUPFD, 3)",
       tests: ["test/test_descriptors.rb", "test/machine/test_line.rb"]

# --- Fork

mutant "fork-machine", "a child of fork is refused the parent's machine",
       file: "#{EXT}/machine/owner.rs",
       from: "    if machine.is_forked() {\n        return Err(Raise::misuse(",
       to: "    if false {\n        return Err(Raise::misuse(",
       tests: ["test/classes/test_machine.rb", "test/test_fork.rb"]

mutant "fork-own", "a machine is a child's own no more",
       file: "#{EXT}/machine/mod.rs",
       from: "self.thread() == fiber::current_thread() && !self.is_forked()",
       to: "self.thread() == fiber::current_thread()",
       tests: ["test/classes/test_machine.rb", "test/test_fork.rb"]

mutant "fork-pools", "a child of fork has pools of threads of its own",
       file: "#{EXT}/os/per_process.rs",
       from: "Some(made) if made.forks == so_far() => &made.value,",
       to: "Some(made) if made.forks <= so_far() => &made.value,",
       tests: ["test/test_fork.rb", "test/machine/test_thread_call.rb"]

mutant "fork-descriptors", "a child of fork closes what its parent's machines have opened",
       file: "src/driver/mod.rs",
       from: "            kernel.waker.forsake();",
       to: "",
       tests: ["test/test_fork.rb"]

# --- Exceptions

mutant "second-exception-kept", "of two exceptions the second is raised at the next wait",
       file: "#{EXT}/machine/operate.rs",
       from: "                pending.push_front(Pending::Exception(second));",
       to: "                let _ = (pending, second, Pending::Unwind);",
       tests: ["test/test_progress.rb", "test/methods/test_fibers.rb"]

mutant "second-exception-of-a-worker", "an exception that comes when a worker is done is raised at the next wait",
       file: "#{EXT}/off_thread/threads.rs",
       from: "                pending.push_front(Pending::Exception(exception));",
       to: "                let _ = (pending, exception, Pending::Unwind);",
       tests: ["test/test_progress.rb", "test/off_thread/test_workers.rb", "test/hooks/test_blocking_operation_wait.rb"]

mutant "second-exception-of-a-drain", "an exception that comes while an operation is drained is not lost",
       file: "#{EXT}/machine/operate.rs",
       from: "Err(raise) => second = Some(raise),",
       to: "Err(_) => {}",
       tests: ["test/test_progress.rb", "test/methods/test_fibers.rb", "test/test_whose_exception.rb"]

mutant "exception-with-progress", "what was to be raised when bytes have moved is raised at the next wait",
       file: "#{EXT}/machine/pending.rs",
       from: "        waiter.pending.push_front(pending);\n        Ok(())",
       to: "        let _ = pending;\n        Ok(())",
       tests: ["test/test_progress.rb"]

mutant "progress-kept", "the bytes of a partial transfer count when it is ended",
       file: "#{EXT}/hooks/io_transfer/mod.rs",
       from: "                Err(raise) if moved > 0 => {",
       to: "                Err(raise) if moved == usize::MAX => {",
       tests: ["test/test_progress.rb", "test/hooks/test_io_write.rb", "test/test_closing.rb"]

mutant "progress-of-a-writev", "what of several buffers was written counts when it is ended",
       file: "#{EXT}/machine/write_all.rs",
       from: "Err(failure) if total > 0 => break caller.keep(failure).map(|()| total),",
       to: "",
       tests: ["test/methods/test_transfer.rb", "test/methods/test_sockets.rb", "test/methods/test_cut_off.rb"]

mutant "progress-of-tls", "what TLS has taken counts when a write is ended",
       file: "#{EXT}/tls/mod.rs",
       from: "        Err(failure) if accepted > 0 => keep_for_later(caller, connection, failure)?,",
       to: "",
       tests: ["test/tls/test_tls.rb"]

mutant "received-by-tls", "what a receive of TLS has brought stays when the fiber is to raise",
       file: "#{EXT}/tls/receive.rs",
       from: ".received(memory, length, outcome(seen).ok(), told);",
       to: ".received(memory, length, result.as_ref().ok().map(|_| outcome(seen)).and_then(Result::ok), told);",
       tests: ["test/tls/test_tls.rb"]

mutant "aside-of-handlers", "what a fiber is to raise is not raised in a finalizer or a handler",
       file: "#{EXT}/machine/interrupts.rs",
       from: "sync::mutex().is_ok_and(refuses_to_lock) || ruby::call::runs_within(&COLLECTORS)",
       to: "sync::mutex().is_err() && ruby::call::runs_within(&COLLECTORS)",
       tests: ["test/test_whose_exception.rb"]

mutant "handlers-exception", "an exception out of a signal's handler is the main program's",
       file: "#{EXT}/machine/interrupts.rs",
       from: "if thread == fiber::main_thread() && in_handler() {",
       to: "if false && in_handler() {",
       tests: ["test/test_whose_exception.rb"]

mutant "interrupt-of-the-root", "an interrupt of the thread is raised in its program, not in whoever waited last",
       file: "#{EXT}/machine/switch.rs",
       from: "            Some(root) if root != me => {",
       to: "            Some(root) if root != me && ending => {",
       tests: ["test/test_interrupts.rb", "test/methods/test_fibers.rb", "test/test_whose_exception.rb"]

mutant "masks", "Thread.handle_interrupt holds timeouts back",
       file: "#{EXT}/machine/pending.rs",
       from: "        over.is_some_and(|(masks, exception)| interrupts::holds_back(&masks, exception))",
       to: "        over.is_some_and(|(masks, exception)| masks.is_empty() && interrupts::holds_back(&masks, exception))",
       tests: ["test/test_whose_exception.rb"]

# --- Closing

mutant "close-of-the-rest", "what is left of a write whose descriptor was closed goes to nobody else",
       file: "#{EXT}/hooks/io_transfer/mod.rs",
       from: "end_steps_on(self.me, false, self.io, self.fd, result.is_ok());",
       to: "end_steps_on(self.me, false, self.io, self.fd, false);",
       tests: ["test/test_closing.rb"]

mutant "close-between-steps", "a close between two steps of an operation ends it",
       file: "#{EXT}/hooks/io_transfer/mod.rs",
       from: "                true => self.machine.parts().closed(self.me),",
       to: "                true => None,",
       tests: ["test/test_closing.rb"]

mutant "close-between-steps-of-a-copy", "a close between two steps of a copy ends it",
       file: "#{EXT}/machine/splice.rs",
       from: "match std::mem::replace(&mut parts.waiter(self.me).closed_by, NIL) {",
       to: "match { parts.waiter(self.me).closed_by = NIL; NIL } {",
       tests: ["test/core_ext/test_io_copy_stream.rb either_end between_two"]

mutant "close-of-another-thread", "a close from another thread ends what fibers wait for",
       file: "#{EXT}/machine/registry.rs",
       from: "                closing::interrupt_on(machine, fd, closing::closed());\n                ended.elsewhere = true;",
       to: "                ended.elsewhere = true;",
       tests: ["test/test_closing.rb", "test/test_interrupts.rb"]

mutant "kept-bytes-identity", "bytes that were kept for a descriptor are the file's, not the number's",
       file: "#{EXT}/machine/handover.rs",
       from: "if identity(fd) != flow.get().file {",
       to: "if false {",
       tests: ["test/methods/test_streams.rb numbers"]

mutant "kept-connections-closed", "connections that nobody has accepted are closed with the socket",
       file: "#{EXT}/machine/inflow.rs",
       from: "    fn drop(&mut self) {\n        self.descriptors.drain(..).for_each(close);",
       to: "    fn drop(&mut self) {",
       tests: ["test/methods/test_streams.rb", "test/test_threads.rb"]

mutant "discarded-connections", "a connection that a left multishot still brings is closed",
       file: "src/multishot.rs",
       from: "                if self.discarded {\n                    close(result);",
       to: "                if self.discarded {",
       tests: ["cargo multishot::"]

mutant "line-generation", "work for a descriptor that was closed has no part in what has its number now",
       file: "src/lines.rs",
       from: "(self.lines.get_mut(job.fd)).filter(|line| line.generation == job.generation)",
       to: "self.lines.get_mut(job.fd)",
       tests: ["cargo lines::", "test/machine/test_line.rb"]

mutant "line-identity", "an error of work is told of the file it was of",
       file: "src/lines.rs",
       from: "errno => (line.file == identity(fd)).then_some(errno),",
       to: "errno => Some(errno),",
       tests: ["cargo lines::", "test/machine/test_line.rb"]

mutant "line-gap", "nothing is written after a gap",
       file: "src/lines.rs",
       from: "                line.waiting\n                    .retain(|turn| !matches!(turn, Turn::Work(Work::Write(_))));",
       to: "",
       tests: ["cargo lines::", "test/machine/test_line.rb"]

mutant "line-messages", "messages that nobody waits for are not joined",
       file: "src/lines.rs",
       from: "let joins = !(self.is_message || other.is_message)\n            && (self",
       to: "let joins = (self",
       tests: ["cargo lines::", "test/methods/test_messages.rb", "test/machine/test_line.rb"]

mutant "write-turns", "what several fibers write is not mixed",
       file: "#{EXT}/machine/caller.rs",
       from: "let is_turn = driver.begin_turn(fd, self.me);",
       to: "let is_turn = driver.begin_turn(fd, self.me) || true;",
       tests: ["test/machine/test_line.rb", "test/methods/test_sockets.rb"]

mutant "thread-call-closes", "a descriptor that a thread opens when nobody wants it any more is closed",
       file: "#{EXT}/machine/thread_call.rs",
       from: "        if state.unwanted {\n            self.close_opened(result);\n        }",
       to: "",
       tests: ["ext thread_call::"]

mutant "thread-call-undone", "what a thread has done for a fiber that is to raise is undone",
       file: "#{EXT}/machine/thread_call.rs",
       from: "            if result >= 0 {\n                undo(number);\n            }",
       to: "            let _ = undo;",
       tests: ["test/core_ext/test_file_locks.rb"]

# --- What a peer sends

mutant "resp-line", "a line of RESP has a longest length",
       file: "#{EXT}/classes/io/resp.rs",
       from: "            if searched > LONGEST_LINE {",
       to: "            if false {",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-whole-line", "a line of RESP that comes at once has a longest length",
       file: "#{EXT}/classes/io/resp.rs",
       from: "                if end > LONGEST_LINE {",
       to: "                if false {",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-length", "a length of RESP has a limit",
       file: "#{EXT}/classes/io/resp.rs",
       from: "            .filter(|length| *length <= MOST)\n",
       to: "",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-depth", "values of RESP are nested to a depth",
       file: "#{EXT}/classes/io/resp.rs",
       from: "        if depth > DEEPEST {\n            return Err(protocol(",
       to: "        if false {\n            return Err(protocol(",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-encode-depth", "an object that contains itself is not encoded for ever",
       file: "#{EXT}/classes/io/resp.rs",
       from: "    if depth > DEEPEST {\n        return Err(Raise::misuse(",
       to: "    if false {\n        return Err(Raise::misuse(",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-end-of-string", "a string of RESP ends with CR LF",
       file: "#{EXT}/classes/io/resp.rs",
       from: "let is_ended = &bytes[length..length + 2] == b\"\\r\\n\";",
       to: "let is_ended = true;",
       tests: ["test/classes/test_io_resp.rb"]

mutant "line-limit", "a line that is longer than its limit is not waited for",
       file: "#{EXT}/classes/io/reading.rs",
       from: "            if limit != 0 && searched == limit || self.more()? == More::End {",
       to: "            if self.more()? == More::End {",
       tests: ["test/classes/test_io.rb"]

mutant "read-ahead", "a peer that sends much is stopped",
       file: "src/multishot.rs",
       from: "floods = more && bytes.len() > *limit && !self.stopped;",
       to: "floods = more && bytes.len() > *limit && self.stopped;",
       tests: ["cargo multishot::", "test/classes/test_io.rb", "test/methods/test_streams.rb"]

mutant "cut-message", "a message that is longer than the room is an error of a stream",
       file: "#{EXT}/classes/io/reader.rs",
       from: "if message.message_flags() & libc::MSG_TRUNC != 0 {",
       to: "if false {",
       tests: ["test/methods/test_messages.rb", "test/classes/test_io.rb"]

mutant "unwanted-descriptor", "a descriptor that comes with a message that is cut off is not left open",
       file: "#{EXT}/methods/passed_descriptors.rs",
       from: "        (Ok(_), Some(fd)) if is_cut => {\n            let _ = Fd(fd).close();",
       to: "        (Ok(_), Some(_)) if is_cut => {",
       tests: ["test/methods/test_messages.rb", "test/methods/test_sockets.rb descriptor"]

mutant "late-descriptor", "a descriptor that comes while the wait is being ended is closed",
       file: "#{EXT}/methods/passed_descriptors.rs",
       from: "            // It came while the wait was being ended: nobody will get it.\n            let _ = Fd(fd).close();",
       to: "            let _ = fd;",
       tests: ["test/methods/test_sockets.rb descriptor"]

mutant "dns-id", "an answer to another question is passed over: its number",
       file: "lib/uringmachine/dns_resolver.rb",
       from: "      return unless id == question.id\n",
       to: "",
       tests: ["test/methods/test_resolve.rb"]

mutant "dns-question", "an answer to another question is passed over: the question",
       file: "lib/uringmachine/dns_resolver.rb",
       from: "      return unless asked == [name.to_s.downcase, *sort(resource)]\n",
       to: "",
       tests: ["test/methods/test_resolve.rb"]

mutant "dns-classes", "a record of a type that was not asked for makes no class",
       file: "lib/uringmachine/dns_resolver.rb",
       from: "[type, network] == sort(resource) ? data(message, resource, ttl) : message.get_bytes && nil",
       to: "data(message, Resolv::DNS::Resource.get_class(type, network), ttl)",
       tests: ["test/methods/test_resolve_fuzz.rb"]

mutant "dns-cut-off", "a record that ends beyond its message is none",
       file: "lib/uringmachine/dns_resolver.rb",
       from: "      message.get_bytes(0)\n",
       to: "",
       tests: ["test/methods/test_resolve_fuzz.rb"]

mutant "dns-garbage", "what is no answer is passed over",
       file: "lib/uringmachine/dns_resolver.rb",
       from: "  rescue Resolv::DNS::DecodeError\n      nil",
       to: "  rescue Resolv::DNS::DecodeError\n      raise",
       tests: ["test/methods/test_resolve.rb"]

# --- TLS

mutant "tls-verify", "a certificate that is not trusted is refused, in a client's handshake on the ring",
       file: "lib/uringmachine/tls.rb",
       from: "        TLS.drive(self) { um_stock(:connect_nonblock, exception: false) }",
       to: "        TLS.drive(self) { um_stock(:connect_nonblock, exception: false) }\n      rescue OpenSSL::SSL::SSLError\n        self",
       tests: ["test/tls/test_tls.rb certificate names", "test/tls/test_ssl.rb certificate"]

mutant "tls-truncated", "an end without close_notify is an error",
       file: "#{EXT}/tls/connection.rs",
       from: "            _ => Err(openssl.error(name)),",
       to: "            _ => { openssl.clear_errors(); Ok(Step::Ended) }",
       tests: ["test/tls/test_tls.rb end garbage"]

mutant "tls-busy", "another fiber is refused while a callback waits",
       file: "#{EXT}/tls/connection.rs",
       from: "        if was_busy {",
       to: "        if false && was_busy {",
       tests: ["test/tls/test_tls.rb callback"]

mutant "tls-held-records", "a record that has been received and not read is readable",
       file: "#{EXT}/tls/wire.rs",
       from: "            held::note(fd, std::ptr::from_ref(self).addr(), holds);",
       to: "            let _ = fd;",
       tests: ["test/tls/test_ssl.rb", "test/tls/test_tls.rb"]

mutant "tls-held-forgotten", "what a TLS connection had left is not the next one's",
       file: "#{EXT}/tls/mod.rs",
       from: "    held::forget(fd);\n    registry",
       to: "    registry",
       tests: ["test/test_closing.rb", "test/tls/test_ssl.rb"]

# --- Turns

mutant "streak", "brief waits keep nobody from going on",
       file: "src/tasks.rs",
       from: "if self.streak < STREAK || self.queue.is_empty() {",
       to: "if true {",
       tests: ["cargo tasks::"]

mutant "streak-settled", "waits that were brief go behind those of the queue, once the ring has been looked at",
       file: "src/tasks.rs",
       from: "        self.queue.extend(self.brief.drain(..).rev());",
       to: "",
       tests: ["cargo tasks::"]

mutant "held-at-most", "a fiber whose operations never wait lets others go",
       file: "#{EXT}/machine/turn.rs",
       from: "self.held.work >= WORK_PER_LOOK && self.look_at_the_clock()",
       to: "self.held.work == u32::MAX && self.look_at_the_clock()",
       tests: ["test/test_fairness.rb"]

mutant "raise-at-a-turn", "a time limit ends whoever never waits",
       file: "#{EXT}/machine/turn.rs",
       from: "            self.yield_now(me)?;\n        }\n        self.raise_pending(me)",
       to: "            self.yield_now(me)?;\n        }\n        Ok(())",
       tests: ["test/test_fairness.rb", "test/off_thread/test_at_once.rb"]

mutant "ring-at-a-switch", "fibers that are always ready keep no operation from ending",
       file: "#{EXT}/machine/turn.rs",
       from: "        self.countdown -= 1;\n        self.countdown <= 0",
       to: "        false",
       tests: ["test/test_fairness.rb"]

mutant "clock-at-a-switch", "a timer that is due waits for one turn of a fiber that takes long ones",
       file: "#{EXT}/machine/turn.rs",
       from: "                && clock::about_now() != self.turns.polled)",
       to: "                && self.turns.polled == 1)",
       tests: ["test/test_fairness.rb"]

mutant "turns-of-core-methods", "methods that call no hook when they succeed at once take turns",
       file: "lib/uringmachine/core_ext/turns.rb",
       from: "BasicSocket => %i[send recv __sendmsg",
       to: "BasicSocket => %i[__sendmsg",
       tests: ["test/test_fairness.rb"]

# --- Waking a machine that sleeps

mutant "wake-flag", "whoever wakes a fiber of a machine that sleeps wakes the machine",
       file: "#{EXT}/machine/switch.rs",
       from: "        self.set_asleep(true);",
       to: "        self.set_asleep(false);",
       tests: ["test/hooks/test_block.rb", "test/classes/test_queue.rb"]

mutant "wake-by-a-thread", "a thread of the pool that is done wakes the machine",
       file: "src/waker.rs",
       from: "        self.shared.pending.store(true, Ordering::Release);\n        self.wake();",
       to: "        self.shared.pending.store(true, Ordering::Release);",
       tests: ["test/hooks/test_blocking_operation_wait.rb"]

mutant "wake-of-the-busy", "a machine that never sleeps looks at what threads have done",
       file: "src/driver/sleep.rs",
       from: "if self.waker().is_some_and(Waker::has_completed) {",
       to: "if false {",
       tests: ["cargo", "test/hooks/test_blocking_operation_wait.rb", "test/off_thread/test_workers.rb", "test/test_fairness.rb"]

# --- Threads of the pools

mutant "worker-killed", "a job that waits for a worker that was killed is done by another",
       file: "src/pool.rs",
       from: "            state.jobs.iter().for_each(|job| job.ticket.nudge());",
       to: "",
       tests: ["test/off_thread/test_workers.rb"]

mutant "worker-crowd", "more workers are started when all of them wait",
       file: "src/pool.rs",
       from: "            self.allowed = self.threads;",
       to: "",
       tests: ["test/off_thread/test_workers.rb"]

mutant "worker-limit", "what no thread begins in time is refused",
       file: "src/pool.rs",
       from: "        } else if now < hopeless {",
       to: "        } else if now < u64::MAX {",
       tests: ["test/off_thread/test_workers.rb"]

mutant "worker-withdrawn", "a job that nobody wants any more is not begun",
       file: "src/pool.rs",
       from: "        state.jobs.retain(|job| !Arc::ptr_eq(&job.ticket, ticket));",
       to: "",
       tests: ["test/off_thread/test_workers.rb", "test/hooks/test_blocking_operation_wait.rb"]

# --- Positions and children

mutant "position-of-reads", "reads of several fibers from one file follow each other",
       file: "#{EXT}/machine/positions.rs",
       from: "        if Fd(fd).position() == Some(start) {",
       to: "        if true {",
       tests: ["test/test_positions.rb"]

mutant "position-of-a-reader", "a read leaves the position behind what it has read",
       file: "#{EXT}/machine/positions.rs",
       from: "            let _ = Fd(fd).seek_to(start + i64::from(count));",
       to: "            let _ = Fd(fd).position();",
       tests: ["test/test_positions.rb", "test/hooks/test_io_transfer.rb"]

mutant "child-not-reaped", "a wait for a child that is ended loses no child",
       file: "#{EXT}/machine/child.rs",
       from: "    let options = options | libc::WNOWAIT;",
       to: "",
       tests: ["test/methods/test_waitid.rb", "test/hooks/test_process_wait.rb", "test/classes/test_process.rb ends_a_wait"]

mutant "child-unopened", "a child that cannot be opened is killed",
       file: "lib/uringmachine/process.rb",
       from: "        ::Process.kill(:KILL, pid)\n",
       to: "",
       tests: ["test/classes/test_process.rb cannot_be_opened"]

mutant "close-in-use", "an IO's close ends what other fibers do with it",
       file: "lib/uringmachine/core_ext/io_close.rb",
       from: "Closing.in_use?(self) ? Closing.around_close(self) { super() } : super",
       to: "super()",
       tests: ["test/test_closing.rb", "test/test_interrupts.rb"]

mutant "close-though-raised-in", "a close whose fiber is raised in before the kernel is asked closes all the same",
       file: "#{EXT}/methods/transfer.rs",
       from: "seen == UNASKED || (",
       to: "(",
       tests: ["test/methods/test_transfer.rb"]

# --- What a peer sends, in all

mutant "resp-limit-of-a-line", "a line counts into the limit of a reply",
       file: "#{EXT}/classes/io/resp.rs",
       from: "                self.count(end + 1)?;\n",
       to: "",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-limit-of-a-string", "a string counts into the limit of a reply before it is waited for",
       file: "#{EXT}/classes/io/resp.rs",
       from: "        self.count(length + 2)?;\n",
       to: "",
       tests: ["test/classes/test_io_resp.rb"]

mutant "resp-limit-of-a-wait", "no more of a line is waited for than its reply may have",
       file: "#{EXT}/classes/io/resp.rs",
       from: "            self.may_take(searched + 1)?;\n",
       to: "",
       tests: ["test/classes/test_io_resp.rb"]

# --- Sandboxes and small machines

mutant "may-enter", "a sandbox that refuses io_uring_enter alone is told of",
       file: "src/ring/setup.rs",
       from: "may_enter(&uring).map_err(|error| SetupError::of(&error, entries))?;",
       to: "",
       tests: ["test/test_unsupported.rb"]

mutant "smaller-ring", "a ring is smaller where little memory may be locked",
       file: "#{EXT}/classes/machine.rs",
       from: "while asked.is_none() && size > LEAST_ENTRIES",
       to: "while false && asked.is_none() && size > LEAST_ENTRIES",
       tests: ["test/test_places.rb", "test/test_unsupported.rb"]

# --- What a closed scheduler keeps

mutant "pipes-of-the-closed", "a closed scheduler keeps no pipe",
       file: "#{EXT}/machine/owner.rs",
       from: "        parts.pipes = Pipes::default();\n        ",
       to: "",
       tests: ["test/hooks/test_close.rb"]

# --- What a library of Ruby's asks

mutant "raise-though-ready", "what is raised in a fiber that waits for readiness is raised there, though it is ready meanwhile",
       file: "#{EXT}/machine/poll.rs",
       from: "match machine.ask(me, &mut poll, deadline) {",
       to: "match machine.operate(me, &mut poll, deadline) {",
       tests: ["test/hooks/test_io_wait.rb"]

mutant "whole-writes", "writes of several arguments are one message",
       file: "#{EXT}/classes/turns.rs",
       from: "if parts.len() < 2 || !has_scheduler() {",
       to: "if true || parts.len() < 2 || !has_scheduler() {",
       tests: ["test/core_ext/test_whole_writes.rb"]

mutant "aborting-killed", "the thread of a fiber that is killed says so to it",
       file: "#{EXT}/methods/fibers.rs",
       from: "        set_variable(fiber, KILLED.id(), TRUE)?;\n",
       to: "",
       tests: ["test/core_ext/test_aborting.rb"]

mutant "aborting-unwound", "the thread of fibers that are unwound says so to them",
       file: "#{EXT}/classes/fiber_scheduler.rs",
       from: "Ok(this.machine()?.parts().ending)",
       to: "Ok(false)",
       tests: ["test/core_ext/test_aborting.rb"]

# --- Reads and writes that ask no hook

mutant "read-ahead-first", "what Ruby has read ahead is read first",
       file: "#{EXT}/ruby/buffered.rs",
       from: "let is_plain = buffered == 0\n            && (*file).tied_io_for_writing == 0\n            && (*file).encs.ecflags == 0\n            && (*file).encs.enc2",
       to: "let is_plain = (*file).tied_io_for_writing == 0\n            && (*file).encs.ecflags == 0\n            && (*file).encs.enc2",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "put-back-received", "bytes that come together with an exception are the next that are read",
       file: "#{EXT}/hooks/direct_read/reading.rs",
       from: "            let _ = buffered::put(self.io, received.bytes());\n",
       to: "",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "put-back-half", "what a read has that is ended half way is the next that is read",
       file: "#{EXT}/hooks/direct_read/mod.rs",
       from: "let _ = buffered::unread(io, &bytes[..into.length]);",
       to: "",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "failed-once", "an error that the kernel tells of once is Ruby's to raise",
       file: "#{EXT}/hooks/direct_read/mod.rs",
       from: "        if let Ok(Read::Failed(errno)) = read {\n            note_failed(machine, me, io, errno);\n        }\n",
       to: "",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "locked-while-read-into", "a String that is shorter than what was read shows no other bytes",
       file: "#{EXT}/ruby/string.rs",
       from: "    if length < start {",
       to: "    if false && length < start {",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "locked-while-written", "nobody writes between the parts of what another writes",
       file: "#{EXT}/ruby/buffered.rs",
       from: "            && !is_locked(Value::of((*file).write_lock))\n",
       to: "",
       tests: ["test/hooks/test_direct_write.rb"]

mutant "lost-while-received", "whose descriptor was closed while bytes came reads no other file's",
       file: "#{EXT}/hooks/direct_read/reading.rs",
       from: "end_steps_on(self.me, was_part, self.io, fd, result.is_ok());",
       to: "end_steps_on(self.me, was_part, self.io, fd, false);",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "filled-meanwhile", "a hook that fills a buffer keeps what somebody else has put there",
       file: "#{EXT}/hooks/io_transfer/lend.rs",
       from: "match buffered::filled_meanwhile(self.io) {\n            0 => None,",
       to: "match buffered::filled_meanwhile(self.io) {\n            _ => None,\n            #[allow(unreachable_patterns)]\n            0 => None,",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "begun-turn", "a fiber that begins has held the thread from nobody",
       file: "#{EXT}/machine/turn.rs",
       from: "if self.held.switches != Some(self.switches) {",
       to: "if self.held.switches.is_some_and(|held| held != self.switches) {",
       tests: ["test/core_ext/test_turns.rb"]

mutant "asks-for-nothing", "what reads nothing does not wait",
       file: "#{EXT}/hooks/direct_read/mod.rs",
       from: "    limits.len() <= 2 && limits.iter().all(is_limit)",
       to: "    limits.len() <= 9 || limits.iter().all(is_limit)",
       tests: ["test/hooks/test_direct_read.rb"]

mutant "nothing-is-no-message", "a write of nothing sends no message",
       file: "#{EXT}/hooks/direct_write.rs",
       from: "if is_string(part) && string::length(part) > 0 {",
       to: "if is_string(part) {",
       tests: ["test/core_ext/test_whole_writes.rb"]

mutant "large-directories", "others have their turns while a large directory is read",
       file: "#{EXT}/off_thread/at_once.rs",
       from: "const SMALL_DIRECTORY: u64 = 64 << 10;",
       to: "const SMALL_DIRECTORY: u64 = 64 << 30;",
       tests: ["test/core_ext/test_listing.rb"]

mutant "asked-for-by-name", "a block may rescue the exception that its time limit was given",
       file: "#{EXT}/hooks/timeout_after.rs",
       from: "                inside: if truthy(argument(1)) {\n                    outside",
       to: "                inside: if truthy(argument(1)) {\n                    within(outside)?",
       tests: ["test/hooks/test_timeout_after.rb"]

mutant "stopped-and-begun-again", "a stop of the process ends no operation by a number that programs are not to see",
       file: "src/driver/sleep.rs",
       from: "if (-ERESTART_RESTARTBLOCK..=-ERESTARTSYS).contains(&result) {",
       to: "if (-ERESTART_RESTARTBLOCK..-ERESTART_RESTARTBLOCK).contains(&result) {",
       tests: ["test/core_ext/test_io_copy_stream.rb"]
