# frozen_string_literal: true

# What Ruby's own test/fiber suite expects of its scheduler.rb, on UM::FiberScheduler. The subclasses have the
# bodies of the original's.

$LOAD_PATH.unshift(*ENV.fetch("UM_LOAD_PATH").split(File::PATH_SEPARATOR))

experimental = Warning[:experimental]
Warning[:experimental] = false
require "uringmachine"
require "io/nonblock"
require "socket"
IO::Buffer.new(0)
Warning[:experimental] = experimental

class Scheduler < UM::FiberScheduler
  # Ruby's own scheduler lets what a fiber raises out of the loop, and tests rely on it.
  def initialize(...)
    super
    self.abort_on_exception = true
  end
end

class IOBufferScheduler < Scheduler
end

class IOScheduler < Scheduler
  def operations
    @operations ||= []
  end

  def io_write(io, buffer, _length, offset)
    descriptor = io.fileno
    string = buffer.get_string

    operations << [:io_write, descriptor, string]

    Fiber.blocking do
      buffer.write(io, 0, offset)
    end
  end
end

class IOErrorScheduler < Scheduler
  def io_read(_io, _buffer, _length, _offset)
    -Errno::EBADF::Errno
  end

  def io_write(_io, _buffer, _length, _offset)
    -Errno::EINVAL::Errno
  end
end

class BrokenUnblockScheduler < Scheduler
  def unblock(blocker, fiber)
    super

    raise "Broken unblock!"
  end
end

class SleepingUnblockScheduler < Scheduler
  def unblock(blocker, fiber)
    super

    sleep(0.1)
  end
end

class SleepingBlockingScheduler < Scheduler
  def kernel_sleep(duration = nil)
    Fiber.blocking { sleep 0.0001 }

    block(:sleep, duration)

    true
  end
end
