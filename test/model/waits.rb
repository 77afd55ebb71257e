# frozen_string_literal: true

module Model
  # Waits that never end by themselves, for one fiber alone. Each is a method `wait_…`, which leaves nothing behind: what it
  # needs is made before, and only the wait itself is `in_vain`.
  module Waits
    def wait_sleep = in_vain { sleep }

    def wait_pop = in_vain { Thread::Queue.new.pop }

    def wait_push
      queue = Thread::SizedQueue.new(1)
      queue << 1
      in_vain { queue << 2 }
    end

    def wait_condition
      mutex = Mutex.new
      in_vain { mutex.synchronize { Thread::ConditionVariable.new.wait(mutex) } }
    ensure
      raise "the mutex is locked" if mutex.locked?
    end

    def wait_monitor
      monitor = Monitor.new
      in_vain { monitor.synchronize { monitor.new_cond.wait } }
    ensure
      raise "the monitor is held" if monitor.mon_locked?
    end

    def wait_lock
      mutex = Mutex.new
      holder = Thread.new { mutex.synchronize { sleep } }
      Thread.pass until mutex.locked?
      in_vain { mutex.synchronize { raise "both are inside" } }
    ensure
      holder&.kill&.join
      raise "the mutex is locked" if mutex.locked?
    end

    def wait_join
      thread = Thread.new { sleep }
      in_vain { thread.join }
    ensure
      thread&.kill&.join
    end

    def wait_child = child_in_vain(Process.spawn("sleep", "1000"))

    def wait_forked = child_in_vain(fork { Kernel.loop { Kernel.sleep } })

    def wait_popen
      child = IO.popen("cat", "r+")
      in_vain { child.read }
    ensure
      child&.close
    end

    def wait_accept
      server = TCPServer.new("127.0.0.1", 0)
      in_vain { server.accept }
    ensure
      server&.close
    end

    def wait_sysaccept
      server = TCPServer.new("127.0.0.1", 0)
      in_vain { server.sysaccept }
    ensure
      server&.close
    end

    def wait_select
      UNIXSocket.pair.then do |pair|
        in_vain { IO.select(pair, [], pair) }
      ensure
        pair.each(&:close)
      end
    end

    def wait_flock
      Tempfile.create("model") do |file|
        file.flock(File::LOCK_EX)
        File.open(file.path) { |other| in_vain { other.flock(File::LOCK_EX) } }
      end
    end

    # Nobody opens the other end until the wait is over; then the open that is still under way must leave no descriptor.
    def wait_fifo
      Dir.mktmpdir do |folder|
        File.mkfifo(path = File.join(folder, "fifo"))
        in_vain { File.open(path) { raise "it was opened" } }
      ensure
        File.open(path, File::RDWR).close
      end
    end

    private

    # A child that does not end by itself.
    def child_in_vain(pid)
      in_vain { Process.wait(pid) }
    ensure
      Process.kill(:KILL, pid)
      Process.wait(pid)
    end
  end
end
