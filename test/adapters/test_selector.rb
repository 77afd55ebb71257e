# frozen_string_literal: true

require "test_helper"

# UM::Selector behaves as io-event's selectors do, for whoever drives it: the fiber that calls `select`.
class TestSelector < PatientTest
  attr_reader :selector

  def setup
    super
    @selector = UM::Selector.new(Fiber.current)
    @seen = []
  end

  def teardown
    @selector.close
    super
  end

  # A fiber that runs from now until it waits.
  def started(&) = Fiber.new(&).tap(&:transfer)

  # Turns of the loop until a fiber has ended.
  def finish(*fibers)
    selector.select(1) while fibers.any?(&:alive?)
  end

  # Turns of the loop until one has somebody go on: how many. An interrupt, as the tick of Ruby's timer, ends one before that.
  def turn
    (1..).lazy.map { selector.select(1) }.find(&:positive?)
  end

  # What is pushed instead of a fiber.
  Ready = Struct.new(:alive, :count) do
    def alive? = alive

    def transfer = self.count += 1
  end

  def test_the_loop_is_the_fiber_that_makes_it
    assert_same Fiber.current, selector.loop
    assert_raises(ArgumentError) { UM::Selector.new(Fiber.new {}) }
  end

  def test_select_waits_no_longer_than_it_is_told
    assert_equal 0, selector.select(0)
    assert_in_delta 0.0, selector.idle_duration
    assert_equal 0, selector.select(0.001)
    assert_operator selector.idle_duration, :>, 0
    assert_equal 0, selector.select(-1)
    assert_raises(TypeError) { selector.select("long") }
  end

  def test_wakeup_from_another_thread
    refute selector.wakeup
    thread = Thread.new { Thread.pass until selector.wakeup }
    selector.select(1) while thread.alive?
    thread.join
    refute selector.wakeup
  end

  def test_who_is_pushed_from_another_thread_runs
    10.times do
      ready = Ready.new(true, 0)
      thread = Thread.new { selector.push(ready) && selector.wakeup }
      selector.select(nil) while ready.count.zero?
      thread.join
    end
  end

  def test_only_who_is_alive_is_switched_to
    dead = Ready.new(false, 0)
    selector.push(dead)
    selector.push(started {})
    assert_predicate selector, :ready?
    assert_equal 0, selector.select(nil)
    refute_predicate selector, :ready?
    assert_equal 0, dead.count
  end

  # What is pushed in a turn is for the next.
  def test_a_turn_ends
    again = Class.new do
      attr_reader :count

      def initialize(selector) = (@selector, @count = selector, 0)

      def alive? = true

      def transfer = (@count += 1) && @selector.push(self)
    end.new(selector)
    selector.push(again)
    3.times { selector.select(nil) }
    assert_equal 3, again.count
  end

  def test_transfer_gives_the_thread_to_the_loop_and_returns_what_the_fiber_is_given
    fiber = started { @seen << selector.transfer }
    assert_empty @seen
    fiber.transfer(:value)
    assert_equal [:value], @seen
  end

  def test_who_yields_goes_on_in_the_next_turn_in_order
    fibers = Array.new(3) { |index| started { 2.times { @seen << index && selector.yield } } }
    assert_equal [0, 1, 2], @seen
    finish(*fibers)
    assert_equal [0, 1, 2, 0, 1, 2], @seen
  end

  def test_resume_runs_a_fiber_and_the_caller_goes_on_in_its_turn
    fiber = started do
      5.times { |index| selector.resume(Fiber.new { |value| @seen << value }, index) }
      @seen << :end
    end
    finish(fiber)
    assert_equal [0, 1, 2, 3, 4, :end], @seen
  end

  def test_the_loop_resumes_fibers_too
    3.times { selector.resume(Fiber.new { @seen << :ran && selector.transfer }) }
    assert_equal 3, @seen.size
  end

  # Who yields again and again keeps neither the time nor what comes from others.
  def test_nobody_starves
    reader, writer = IO.pipe
    done = false
    busy = started { selector.yield until done }
    other = started { selector.io_wait(Fiber.current, reader, IO::READABLE) && done = true }
    writer << "x"
    finish(busy, other)
    assert done
  ensure
    [reader, writer].each(&:close)
  end

  def test_io_wait
    one, other = UNIXSocket.pair
    readable = started { @seen << selector.io_wait(Fiber.current, one, IO::READABLE) }
    assert_equal 0, selector.select(0)
    writable = started { @seen << selector.io_wait(Fiber.current, one, IO::WRITABLE) }
    assert_equal 1, turn
    assert_equal [IO::WRITABLE], @seen
    other << "x"
    assert_equal 1, turn
    assert_equal [IO::WRITABLE, IO::READABLE], @seen
    refute [readable, writable].any?(&:alive?)
  ensure
    [one, other].each(&:close)
  end

  def test_two_fibers_wait_for_one_io
    one, other = UNIXSocket.pair
    fibers = Array.new(2) { started { @seen << selector.io_wait(Fiber.current, one, IO::READABLE) } }
    other << "x"
    finish(*fibers)
    assert_equal [IO::READABLE] * 2, @seen
  ensure
    [one, other].each(&:close)
  end

  # Async ends a wait so when its time is up.
  def test_a_switch_ends_io_wait_and_nothing_is_left_of_it
    one, other = UNIXSocket.pair
    fiber = started do
      2.times { @seen << selector.io_wait(Fiber.current, one, IO::READABLE) }
    end
    fiber.transfer
    assert_equal [false], @seen
    other << "x"
    finish(fiber)
    assert_equal [false, IO::READABLE], @seen
    assert_equal 0, selector.machine.metrics[:ops_pending]
  ensure
    [one, other].each(&:close)
  end

  def test_an_exception_ends_io_wait_at_once
    one, other = UNIXSocket.pair
    fiber = started do
      selector.io_wait(Fiber.current, one, IO::READABLE)
    rescue RuntimeError => e
      @seen << e.message
    end
    fiber.raise("boom")
    assert_equal ["boom"], @seen
    other << "x"
    assert_equal 0, selector.select(0)
  ensure
    [one, other].each(&:close)
  end

  def test_raise_runs_the_other_fiber_first
    other = started do
      selector.transfer
    rescue KeyError => e
      @seen << e.message << e.key
    end
    fiber = started do
      selector.raise(other, KeyError.new("boom", key: 1, receiver: {}))
      @seen << :end
    end
    finish(fiber)
    assert_equal ["boom", 1, :end], @seen
  end

  def test_a_close_ends_io_wait
    one, other = UNIXSocket.pair
    fiber = started do
      @seen << selector.io_wait(Fiber.current, one, IO::READABLE)
    rescue IOError, SystemCallError => e
      @seen << e.class
    end
    started { one.close }
    selector.select(0)
    refute_includes @seen, IO::READABLE
    fiber.transfer if fiber.alive?
    assert_equal 1, @seen.size
  ensure
    other.close
  end

  def test_io_read_moves_the_least_and_goes_on
    one, other = UNIXSocket.pair
    buffer = IO::Buffer.new(64)
    fiber = started { @seen << selector.io_read(Fiber.current, one, buffer, 11) }
    other << "Hello"
    turn
    other << " World"
    finish(fiber)
    assert_equal [[11], "Hello World"], [@seen, buffer.get_string(0, 11)]
  ensure
    [one, other].each(&:close)
  end

  def test_io_write_waits_for_room
    one, other = UNIXSocket.pair
    bytes = Random.new(1).bytes(1_000_000)
    fiber = started { @seen << selector.io_write(Fiber.current, one, IO::Buffer.for(bytes), bytes.bytesize) && one.close }
    received = +""
    reader = started do
      buffer = IO::Buffer.new(65_536)
      while (count = selector.io_read(Fiber.current, other, buffer, 1)).positive?
        received << buffer.get_string(0, count)
      end
    end
    finish(fiber, reader)
    assert_equal [[bytes.bytesize], true], [@seen, received == bytes]
  ensure
    [one, other].each { |io| io.close unless io.closed? }
  end

  def test_files
    Tempfile.create do |file|
      buffer = IO::Buffer.for("Hello".dup)
      read = IO::Buffer.new(64)
      finish(started do
        @seen << selector.io_pwrite(Fiber.current, file, buffer, 3, 5, 0) << selector.io_pread(Fiber.current, file, read, 3, 5, 0)
      end)
      assert_equal [[5, 5], "Hello"], [@seen, read.get_string(0, 5)]
    end
  end

  def test_process_wait
    fiber = started do
      statuses = [0, -1].map { |any| selector.process_wait(Fiber.current, (pid = Process.spawn("exit 3")).then { any.zero? ? pid : any }, 0) }
      @seen.concat(statuses.map(&:exitstatus))
    end
    finish(fiber)
    assert_equal [3, 3], @seen
  end

  def test_io_close
    reader, writer = IO.pipe
    assert selector.io_close(reader.fileno)
    refute selector.io_close(reader.fileno)
    reader.autoclose = false
  ensure
    writer.close
  end

  def test_a_signal_ends_select
    old = trap(:USR1) { @seen << :signal }
    pid = Process.pid
    thread = Thread.new { Thread.pass until selector.machine.metrics && (Process.kill(:USR1, pid) && @seen.any?) }
    selector.select(nil) until @seen.any?
    thread.join
    assert_includes @seen, :signal
  ensure
    trap(:USR1, old)
  end

  def test_in_a_child_it_is_closed
    status = Process.wait2(fork { exit!(selector.closed? ? 0 : 1) }).last
    assert_predicate status, :success?
    refute_predicate selector, :closed?
  end

  def test_a_closed_one_says_so
    selector.close
    selector.close
    assert_predicate selector, :closed?
    refute selector.wakeup
    assert_raises(UM::Error) { selector.select(0) }
  end

  def test_another_thread_may_not_use_it
    error = assert_raises(UM::Error) { Thread.new { (Thread.current.report_on_exception = false) || selector.select(0) }.join }
    assert_match(/another thread/, error.message)
  end

  # Fibers that wait for ever, and their selector, are collected.
  def test_what_is_forgotten_is_collected
    before = settled_descriptors
    10.times do
      Thread.new do
        reader, = IO.pipe
        other = UM::Selector.new(Fiber.current)
        Fiber.new { other.io_wait(Fiber.current, reader, IO::READABLE) }.transfer
      end.join
    end
    GC.start
    assert_operator settled_descriptors, :<=, before + 2
  end
end
