# frozen_string_literal: true

require_relative "../test_helper"

# Methods that reach no hook and take turns.
class TestTurns < SchedulerTest
  # What takes turns is no other method for whoever looks, or calls it wrongly.
  def test_methods_that_take_turns_are_rubys
    code = <<~RUBY
      require "socket"
      classes = [BasicSocket, IPSocket, UDPSocket, UNIXSocket, Socket, TCPServer, UNIXServer, IO, File, Process.singleton_class, Process::Status.singleton_class, Thread.singleton_class]
      names = %i[send recv sendmsg recvmsg recv_nonblock read_nonblock write_nonblock recvfrom recvfrom_nonblock accept accept_nonblock sysaccept send_io recv_io
                 flush seek rewind pos= stat fcntl ioctl pwrite size wait wait2 waitpid waitpid2 pass]
      classes.product(names) do |owner, name|
        next unless owner.method_defined?(name) || owner.private_method_defined?(name)
        method = owner.instance_method(name)
        p [owner, name, method.arity, method.parameters, owner.private_method_defined?(name)]
      end
      one, other = UNIXSocket.pair
      calls = [-> { one.recv }, -> { one.send("x") }, -> { one.send(:x, 0) }, -> { one.recv(1, what: 1) }, -> { one.read_nonblock(1) }, -> { one.pwrite }, -> { Thread.pass(1) },
               -> { one.recv_nonblock(1, exceptions: false) }, -> { one.recv_nonblock(1, exception: false) }, -> { one.write_nonblock("x", exception: 1) },
               -> { Process.wait }, -> { one.freeze.recv(1) }, -> { other.recv_io(1, 2, 3) }, -> { IO.pipe[0].write_nonblock("x", other: 1) }, -> { File.open("/").seek(0, :ELSE) },
               -> { one.close || one.recv(1) }]
      calls.each { |call| p((call.call rescue [$!.class, $!.message])) }
    RUBY
    with, = ruby(code)
    without = IO.popen([RbConfig.ruby, "-e", code], err: %i[child out], &:read)
    assert_equal without, with
  end

  # Whoever starts a fiber that starts a child finds it started, however long it has run itself.
  def test_a_fiber_that_begins_has_held_nobody
    [-> { fork {} }, -> { Process.spawn("true") }, -> { IO.popen("true").pid }].each do |start|
      scheduled do
        [0, 0.01].each do |seconds|
          started = nil
          # So often that the clock is looked at.
          20.times { Thread.pass }
          enough = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
          nil while Process.clock_gettime(Process::CLOCK_MONOTONIC) < enough
          Fiber.schedule { Process.wait(started = start.call) }
          assert started
        end
      end
    end
  end
end
