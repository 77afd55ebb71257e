# frozen_string_literal: true

require_relative "test_helper"
require "delegate"
require "forwardable"
require "tmpdir"
require "openssl"

# A scheduler behind an object that delegates to it, as programs do to log or count: everything is as without.
class TestWrappedScheduler < SchedulerTest
  # Answers by method_missing alone.
  class Forwarding < BasicObject
    def initialize(target)
      @target = target
      @calls = []
    end

    def calls = @calls

    def respond_to?(...) = respond_to_missing?(...)

    def respond_to_missing?(name, all = false) = name == :calls || @target.respond_to?(name, all)

    def method_missing(name, ...)
      @calls << name
      @target.public_send(name, ...)
    end
  end

  # Answers by methods of its own.
  class Handwritten
    extend Forwardable

    def_delegators :@target, *(UM::FiberScheduler.instance_methods(false) - [:initialize])

    def initialize(target)
      @target = target
    end
  end

  WRAPPERS = { delegator: SimpleDelegator, method_missing: Forwarding, methods: Handwritten }.freeze

  # Runs the block in a fiber under a wrapped scheduler, beside one that counts how often it runs. Asserts that it did
  # meanwhile.
  def wrapped(wrapper)
    result = turns = nil
    Thread.new do
      Fiber.set_scheduler(wrapper.new(UM::FiberScheduler.new))
      running = true
      turns = 0
      Fiber.schedule do
        result = yield(-> { turns })
      rescue Exception => e # rubocop:disable Lint/RescueException -- it is raised below
        result = e
      ensure
        running = false
      end
      Fiber.schedule { (turns += 1) && sleep(0.001) while running }
      Fiber.set_scheduler(nil)
    end.join
    raise result if result.is_a?(Exception)

    [result, turns]
  end

  CHECKS = {
    flock: lambda do |turns|
      Tempfile.create("um") do |file|
        file.flock(File::LOCK_EX)
        other = File.open(file.path)
        Fiber.schedule do
          before = turns.call
          sleep 0.001 until turns.call > before + 2
          file.flock(File::LOCK_UN)
        end
        other.flock(File::LOCK_EX)
      end
    end,
    sync: lambda do |_|
      Tempfile.create("um") do |file|
        file << "text"
        [file.fsync, file.fdatasync, file.truncate(2), file.size]
      end
    end,
    copy: lambda do |_|
      source, sink = UNIXSocket.pair
      target, other = UNIXSocket.pair
      copied = nil
      Fiber.schedule { copied = IO.copy_stream(sink, target) }
      source << ("x" * 100_000)
      source.close
      received = other.readpartial(1_000_000).bytesize
      received += other.readpartial(1_000_000).bytesize until received == 100_000
      sleep 0.001 until copied
      copied
    end,
    connect: lambda do |_|
      server = TCPServer.new("127.0.0.1", 0)
      Fiber.schedule { server.accept.then { |peer| peer.write("hello") && peer.close } }
      TCPSocket.open("localhost", server.local_address.ip_port, &:read)
    end,
    names: ->(_) { Socket.getnameinfo(["AF_INET", 80, "127.0.0.1", "127.0.0.1"]).first },
    close: lambda do |_|
      reader, = IO.pipe
      failure = nil
      Fiber.schedule do
        reader.read
      rescue IOError => e
        failure = e.class
      end
      reader.close
      sleep 0.001 until failure
      failure
    end,
    process: ->(_) { UM::Process.spawn("exit 3").then { |process| [process.wait.exitstatus, Fiber.scheduler.process_open(Process.pid) { |own| own.alive? }] } },
    on_exit: lambda do |_|
      seen = nil
      UM::Process.spawn("true").on_exit { seen = Fiber.current_scheduler }
      sleep 0.001 until seen
      seen.equal?(Fiber.scheduler)
    end,
    tls: lambda do |_|
      UM::SSL.accelerate_all
      a, = UNIXSocket.pair
      socket = OpenSSL::SSL::SSLSocket.new(a)
      socket.connect_nonblock(exception: false)
      UM::SSL.accelerated?(socket)
    ensure
      UM::SSL.leave_alone
    end
  }.freeze

  EXPECTED = { flock: 0, sync: [0, 0, 0, 2], copy: 100_000, connect: "hello", names: "localhost", close: IOError, process: [3, true], on_exit: true, tls: true }.freeze

  WRAPPERS.each do |kind, wrapper|
    CHECKS.each do |name, check|
      define_method(:"test_#{name}_behind_#{kind}") { assert_equal EXPECTED.fetch(name), wrapped(wrapper, &check).first }
    end

    define_method(:"test_fork_behind_#{kind}") do
      told, = wrapped(Class.new(wrapper)) do
        reader, writer = IO.pipe
        pid = fork do
          # The parent's ring is not the child's: the scheduler is gone, and another can be had.
          seen = [Fiber.scheduler]
          Fiber.set_scheduler(wrapper.new(UM::FiberScheduler.new))
          Fiber.schedule { sleep(0.001) && (seen << :slept) }
          Fiber.set_scheduler(nil)
          writer << seen.inspect
          exit!(0)
        end
        writer.close
        Process.wait(pid)
        reader.read
      end
      assert_equal "[nil, :slept]", told
    end
  end

  def test_close_is_that_of_what_is_installed
    WRAPPERS.each_value do |wrapper|
      [true, false].each do |outer|
        ended = nil
        Thread.new do
          scheduler = UM::FiberScheduler.new
          Fiber.set_scheduler(wrapper.new(scheduler))
          Fiber.schedule { sleep(0.001) && ended = true }
          (outer ? Fiber.scheduler : scheduler).close
          assert_nil Fiber.scheduler
        end.join
        assert ended
      end
    end
  end

  def test_hooks_go_through_the_wrapper
    calls = nil
    scheduled_by = nil
    wrapped(Forwarding) do
      sleep 0.001
      calls = Fiber.scheduler.calls
      scheduled_by = UM::FiberScheduler.current
    end
    assert_includes calls, :kernel_sleep
    assert_instance_of UM::FiberScheduler, scheduled_by
  end

  def test_another_librarys_scheduler_is_not_ours
    assert_nil UM::FiberScheduler.behind(Object.new)
    assert_nil UM::FiberScheduler.behind(nil)
    assert_nil UM::FiberScheduler.current
    scheduler = UM::FiberScheduler.new
    assert_same scheduler, UM::FiberScheduler.behind(scheduler)
    assert_same scheduler, UM::FiberScheduler.behind(SimpleDelegator.new(SimpleDelegator.new(scheduler)))
  end
end
