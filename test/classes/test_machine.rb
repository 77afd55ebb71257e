# frozen_string_literal: true

require_relative "../test_helper"

# UM.new, what a machine tells of itself, whose it is, and what it costs.
class TestMachine < MachineTest
  class TooLate < StandardError; end

  def pipe = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })

  def test_options
    assert_equal 256, UM.new.size
    assert_equal 13, UM.new(size: 13).size
    assert_equal 13, UM.new(size: 13).metrics[:size]
    refute_predicate machine, :sqpoll_mode?
    refute_predicate machine, :sidecar_mode?
    assert_predicate UM.new(sidecar: true), :sidecar_mode?
    assert_predicate machine.sidecar_start, :sidecar_mode?
    refute_predicate machine.sidecar_stop, :sidecar_mode?
    assert_same UM, UringMachine
  end

  def test_options_that_make_no_sense
    [0, -1, 32_769, 1 << 70].each { |size| assert_names("size", ArgumentError) { UM.new(size: size) } }
    [nil, "1", 1.5].each { |size| assert_names("size", TypeError) { UM.new(size: size) } }
    assert_names("sqpoll", TypeError) { UM.new(sqpoll: "1") }
    assert_names("sqpoll", ArgumentError) { UM.new(sqpoll: -1) }
    assert_raises(ArgumentError) { UM.new(entries: 1) }
    assert_raises(ArgumentError) { UM.new(1) }
    assert_raises(UM::Error) { machine.__send__(:initialize) }
    assert_raises(UM::Error) { UM.allocate.sleep(0) }
  end

  def test_a_machine_whose_kernel_thread_submits_does_all_the_same
    [true, 0.01, 1].each do |sqpoll|
      machine = UM.new(sqpoll: sqpoll)
      assert_predicate machine, :sqpoll_mode?
      reader, writer = pipe
      got = []
      fiber = machine.spin { 300.times { machine.read(reader, buffer = +"", 10) && (got << buffer) } }
      300.times { |number| machine.write(writer, format("%010d", number)) }
      machine.join(fiber)
      assert_equal Array.new(300) { |number| format("%010d", number) }, got
      assert_raises(TooLate) { machine.timeout(0.02, TooLate) { machine.read(reader, +"", 1) } }
      assert_equal 0.02, machine.sleep(0.02)
      300.times { machine.write_async(writer, "x") }
      machine.submit
      count = 0
      count += machine.read(reader, +"", 300) while count < 300
    end
  end

  def test_metrics
    keys = %i[size total_ops total_switches total_waits total_enters ops_pending ops_unsubmitted ops_runqueue ops_free ops_transient buffers_allocated buffers_free
              segments_free buffer_space_allocated buffer_space_commited total_fixed_ops
              total_ops_by_kind]
    assert_equal keys, machine.metrics.keys
    assert_equal [0, {}], machine.metrics.except(:size).values.uniq
    reader, writer = pipe
    machine.write(writer, "x")
    assert_equal 1, machine.metrics[:total_ops]
    assert_equal({ write: 1 }, machine.metrics[:total_ops_by_kind])
    assert_operator machine.metrics[:total_enters], :>, 0
    machine.submit until machine.metrics[:ops_unsubmitted].zero?
    machine.write_async(writer, "y")
    assert_equal [1, 1, 1], machine.metrics.values_at(:ops_pending, :ops_unsubmitted, :ops_transient)
    assert_equal 1, machine.submit
    assert_equal 0, machine.submit
    assert_equal [0, 0, 0], machine.metrics.values_at(:ops_pending, :ops_unsubmitted, :ops_transient)
    waits = machine.metrics[:total_waits]
    machine.sleep(0.001)
    assert_operator machine.metrics[:total_waits], :>, waits
    switches = machine.metrics[:total_switches]
    machine.join(machine.spin {})
    assert_operator machine.metrics[:total_switches], :>, switches
    machine.spin { machine.sleep }
    assert_equal 1, machine.metrics[:ops_runqueue]
    left, right = UM.socketpair(UM::AF_UNIX, UM::SOCK_STREAM, 0)
    machine.write(right, "x")
    machine.read_each(left) { break }
    # Without multishot receives of any kind, read_each is plain reads.
    assert_operator machine.metrics[:buffers_allocated], :>, 0 if UM.kernel_version >= 607
    [left, right, reader, writer].each { |fd| machine.close(fd) }
  end

  def test_profile_mode_counts_times
    refute_predicate machine, :profile_mode?
    machine.profile_mode = true
    assert_predicate machine, :profile_mode?
    machine.sleep(0.02)
    started = Process.clock_gettime(Process::CLOCK_THREAD_CPUTIME_ID)
    nil while Process.clock_gettime(Process::CLOCK_THREAD_CPUTIME_ID) - started < 0.02
    metrics = machine.metrics
    assert_operator metrics[:time_total_wait], :>=, 0.015
    assert_operator metrics[:time_total_cpu], :>=, 0.02
    assert_operator metrics[:time_total], :>=, metrics[:time_total_wait] + 0.02
    machine.profile_mode = false
    refute machine.metrics.key?(:time_total_wait)
  end

  def test_kernel_version_is_that_of_the_running_kernel
    numbers = `uname -r`.split(/\D/).first(2).map(&:to_i)
    assert_equal (numbers[0] * 100) + numbers[1], UM.kernel_version
  end

  def test_debug_prints_to_standard_error
    output, = ruby('UM.debug("here")')
    assert_equal "here\n", output
    assert_names("text", TypeError) { UM.debug(1) }
  end

  def test_test_mode_looks_at_the_ring_at_every_switch
    machine.test_mode = true
    reader, writer = pipe
    fiber = machine.spin { machine.read(reader, +"", 1) }
    machine.snooze
    machine.write_async(writer, "x")
    machine.snooze
    machine.snooze
    assert_equal true, fiber.done?
  end

  def test_a_machine_belongs_to_the_thread_that_used_it_first
    assert_predicate machine, :owned?
    Thread.new do
      assert_nil UM.current
      machine.snooze
      assert_same machine, UM.current
      assert_predicate machine, :owned?
    end.join
    refute_predicate machine, :owned?
    error = assert_raises(UM::Error) { machine.sleep(0) }
    assert_match(/another thread/, error.message)
  end

  def test_a_child_of_fork_leaves_the_parents_ring_alone
    reader, writer = pipe
    machine.snooze
    held = Array.new(20) { machine.spin { machine.read(reader, +"", 1) } }
    machine.snooze
    output, status = in_child do
      error = begin
        machine.sleep(0)
      rescue UM::Error => e
        e
      end
      puts error.message[/parent/]
      machine.schedule(held.first, nil) rescue puts "refused"
      other = UM.new
      mine = IO.pipe
      other.write(mine[1].fileno, "child")
      other.read(mine[0].fileno, buffer = +"", 10)
      puts buffer
      puts Thread.current.machine.owned?
      @machine = held = nil
      GC.start
      Array.new(100) { "x" * 10_000 }
    end
    assert_equal "parent\nrefused\nchild\ntrue\n", output
    assert_predicate status, :success?
    machine.write(writer, "x" * 20)
    assert_equal [1], machine.join(held).uniq
  end

  def in_child
    reader, writer = IO.pipe
    pid = fork do
      $stdout.reopen(writer)
      yield
      $stdout.flush
      exit!(0)
    end
    writer.close
    [reader.read, Process.wait2(pid).last]
  end

  def test_a_thread_has_a_machine_of_its_own_and_a_child_another
    mine = Thread.current.machine
    assert_same mine, Thread.current.machine
    refute_same mine, Thread.new { Thread.current.machine }.value
    output, = in_child { puts Thread.current.machine.equal?(mine) }
    assert_equal "false\n", output
  end

  def test_a_machine_costs_little_until_it_is_used
    output, = ruby(<<~RUBY)
      rss = -> { GC.start; File.read("/proc/self/status")[/VmRSS:\\s+(\\d+)/, 1].to_i }
      Process.setrlimit(:NOFILE, [4096, Process.getrlimit(:NOFILE)[1]].min)
      UM.new
      before = rss.()
      machines = Array.new(500) { UM.new }
      p((rss.() - before) / 500.0)
    RUBY
    assert_operator output.to_f, :<, 100
  end

  def test_ten_thousand_machines_leave_memory_and_descriptors_where_they_were
    output, = ruby(<<~RUBY)
      rss = -> { 3.times { GC.start }; File.read("/proc/self/status")[/VmRSS:\\s+(\\d+)/, 1].to_i }
      # Until the heap is as large as garbage makes it.
      some = -> { 10_000.times { |number| machine = UM.new(size: 8); machine.snooze if number % 10 == 0 } }
      2.times { some.() }
      before = [rss.(), Dir.children("/proc/self/fd").size]
      some.()
      after = [rss.(), Dir.children("/proc/self/fd").size]
      p after[0] - before[0], after[1] - before[1]
    RUBY
    memory, descriptors = output.lines.map(&:to_i)
    assert_operator memory, :<, 2_000, output
    assert_operator descriptors, :<, 100
  end

  def test_a_machine_that_is_dropped_with_operations_under_way_takes_nothing_down
    readers = Array.new(20) { pipe.first }
    20.times do |number|
      other = UM.new
      other.spin { other.read(readers[number], +"x" * 10, 10_000) }
      other.spin { other.read_each(readers[number]) {} }
      other.snooze
    end
    3.times { GC.start }
    GC.compact
    strings = Array.new(1000) { "y" * 10_000 }
    @opened.each_slice(2) { |_, writer| machine.write(writer, "z" * 1000) if writer }
    assert_equal ["y" * 10_000], strings.uniq
  end

  def test_no_hot_path_allocates_a_ruby_object
    reader, writer = pipe
    one, other = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })
    buffer = +""
    memory = IO::Buffer.new(64)
    queue = UM::Queue.new
    mutex = UM::Mutex.new
    message = "m" * 64
    large = "l" * 20_000
    partner = machine.spin { loop { machine.yield } }
    machine.snooze
    {
      snooze: -> { machine.snooze },
      "sleep(0)": -> { machine.sleep(0) },
      sleep: -> { machine.sleep(0.00001) },
      "schedule and yield": -> { machine.schedule(partner, 1) && machine.snooze },
      "write and read": -> { machine.write(writer, message) && machine.read(reader, buffer, 64) },
      "large write and read": -> { machine.write(writer, large) && machine.read(reader, buffer, 20_000) },
      "with an IO::Buffer": -> { machine.write(writer, memory) && machine.read(reader, memory, 64) },
      "send and recv": -> { machine.send(one, message, 64, 0) && machine.recv(other, buffer, 64, 0) },
      "push and shift": -> { machine.push(queue, 1) && machine.shift(queue) },
      synchronize: -> { machine.synchronize(mutex) { 1 } },
      timeout: -> { machine.timeout(10, TooLate) { 1 } },
      poll: -> { machine.write_async(writer, message) && machine.read(reader, buffer, 64) }
    }.each { |name, operation| assert_operator allocations(&operation), :<, 100, name }
  end

  def allocations
    30.times { yield }
    GC.disable
    before = GC.stat(:total_allocated_objects)
    1_000.times { yield }
    GC.stat(:total_allocated_objects) - before
  ensure
    GC.enable
  end

  def test_every_constant_is_a_number_as_ruby_has_it
    { AF_INET6: Socket::AF_INET6, SOL_SOCKET: Socket::SOL_SOCKET, SO_REUSEPORT: Socket::SO_REUSEPORT, O_CREAT: File::CREAT, O_NONBLOCK: File::NONBLOCK,
      MSG_PEEK: Socket::MSG_PEEK, ECONNRESET: Errno::ECONNRESET::Errno, SIGTERM: Signal.list["TERM"], SHUT_WR: Socket::SHUT_WR, LOCK_EX: File::LOCK_EX,
      WNOHANG: Process::WNOHANG, STDERR_FILENO: 2, INADDR_LOOPBACK: 0x7f000001, POLLIN: 1, SOMAXCONN: 4096 }.each do |name, number|
      assert_equal number, UM.const_get(name), name
    end
    integers = UM.constants.map { |name| UM.const_get(name) }.grep(Integer)
    assert_operator integers.size, :>, 430
  end
end
