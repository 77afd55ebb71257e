# frozen_string_literal: true

require_relative "../test_helper"
require "json"
require "socket"

# What a machine tells of the fibers that wait in it.
class TestReport < SchedulerTest
  # Runs a block under a scheduler with a fiber for each of the others, until all of these wait.
  def while_waiting(*fibers)
    scheduled do |scheduler|
      started = fibers.map { |body| Fiber.schedule(&body) }
      Fiber.schedule do
        sleep 0
        yield scheduler
      ensure
        started.each { |fiber| fiber.kill if fiber.alive? }
      end
    end
  end

  # What one fiber that waits so is told to wait for.
  def told(&body)
    told = nil
    while_waiting(body) { |scheduler| told = scheduler.report.fibers.find { |fiber| fiber[:state] == "waiting" && fiber[:scheduled] } }
    told
  end

  def test_a_read_of_a_pipe_is_told_with_its_descriptor_and_its_line
    reader, = IO.pipe
    line = __LINE__ + 1
    fiber = told { reader.gets }
    assert_equal "io_read", fiber[:hook]
    assert_equal [reader.fileno], fiber[:operations].map { |operation| operation[:fd] }
    assert_match(/\A(poll|read) on fd #{reader.fileno} \(pipe:\[\d+\]\)\z/, fiber[:waits_for])
    assert_match(/#{File.basename(__FILE__)}:#{line}:in 'IO#gets'/, fiber[:call])
    assert_includes fiber[:backtrace], fiber[:call]
    assert_nil fiber[:left]
  end

  def test_a_socket_is_told_with_its_addresses
    server = TCPServer.new("127.0.0.1", 0)
    port = server.local_address.ip_port
    assert_match(/\(TCP 127\.0\.0\.1:#{port}, listening\)/, told { server.accept }[:waits_for])
    client = TCPSocket.new("127.0.0.1", port)
    own = client.local_address.ip_port
    assert_match(/\(TCP 127\.0\.0\.1:#{own} to 127\.0\.0\.1:#{port}\)/, told { client.readpartial(1) }[:waits_for])
  ensure
    [server, client].compact.each(&:close)
  end

  def test_what_is_no_operation_is_told_by_its_class_or_its_time
    assert_equal "Thread::Queue", told { Queue.new.pop }[:waits_for]
    mutex = Mutex.new
    assert_equal "Thread::Mutex", (mutex.synchronize { told { mutex.lock } })[:waits_for]
    sleeper = told { sleep 1000 }
    assert_equal "its time", sleeper[:waits_for]
    assert_in_delta 1000, sleeper[:left], 100
    assert_equal "kernel_sleep", sleeper[:hook]
  end

  def test_a_wait_has_lasted_since_somebody_looked
    queue = Queue.new
    while_waiting(-> { queue.pop }) do |scheduler|
      scheduler.report
      sleep 0.01
      first = scheduler.report.fibers.find { |fiber| fiber[:blocker] }
      assert_operator first[:waited], :>=, 0.01
    end
  end

  def test_numbers
    reader, = IO.pipe
    while_waiting(-> { reader.gets }, -> { sleep 1000 }, -> { Queue.new.pop }) do |scheduler|
      hash = scheduler.report.to_h
      assert_equal [1, 1, 0, 0], hash[:numbers].values_at(:operations_in_flight, :timers, :loans, :run_queue)
      assert_equal 4, (hash[:fibers].count { |fiber| fiber[:scheduled] })
      assert_equal Process.pid, hash[:pid]
      refute hash[:asleep]
    end
  end

  def test_it_is_made_from_another_thread_too
    reader, = IO.pipe
    while_waiting(-> { reader.gets }) do |scheduler|
      report = Thread.new { scheduler.report }.value
      assert_includes report.fibers.map { |fiber| fiber[:hook] }, "io_read"
    end
  end

  def test_text_and_json_say_the_same
    reader, = IO.pipe
    while_waiting(*[-> { reader.gets }] * 12) do |scheduler|
      report = scheduler.report
      assert_equal report.to_h, JSON.parse(report.to_json, symbolize_names: true)
      text = report.to_s
      assert_match(/\Amachine of #<Thread.* pid #{Process.pid}, awake: fibers \d+, run queue 0, operations in flight 12, /, text)
      assert_equal 10, text.scan("on fd #{reader.fileno} (pipe").size
      assert_includes text, "… and 2 more in the same place"
      assert_equal 1, text.scan("'IO#gets'").size
    end
  end

  def test_frames_are_as_many_as_asked_for
    while_waiting(-> { sleep 1000 }) do |scheduler|
      scheduler.report(frames: 1).fibers.each { |fiber| assert_operator fiber[:backtrace].size, :<=, 1 }
      assert_empty scheduler.report(frames: 0).fibers.flat_map { |fiber| fiber[:backtrace] }
      assert_match(/frames/, assert_raises(TypeError) { scheduler.report(frames: "1") }.message)
      assert_match(/frames/, assert_raises(ArgumentError) { scheduler.report(frames: -1) }.message)
    end
  end

  def test_it_keeps_no_fiber
    output, status = ruby(<<~RUBY)
      scheduler = UM::FiberScheduler.new
      report = count = nil
      Thread.new do
        Fiber.set_scheduler(scheduler)
        10.times { Fiber.schedule { sleep 0.001 } }
        report = scheduler.report
      end.join
      GC.start
      p report.fibers.size, ObjectSpace.each_object(Fiber).count(&:alive?)
    RUBY
    assert_predicate status, :success?, output
    told, alive = output.lines.map(&:to_i)
    assert_operator told, :>=, 10
    assert_operator alive, :<, 10
  end

  def test_a_machine_without_a_scheduler_tells_of_its_fibers
    machine = UM.new
    reader, writer = UM.pipe
    fiber = machine.spin { machine.read(reader, +"", 1) }
    machine.snooze
    told = machine.report.fibers.find { |one| one[:operations].any? }
    assert_match(/\Aread on fd #{reader} /, told[:waits_for])
    assert_includes told[:call], "'UringMachine#read'"
    machine.write_async(writer, "x")
    assert_includes machine.report.to_s, "nobody waits for write on fd #{writer}"
    machine.join(fiber)
  ensure
    [reader, writer].each { |fd| machine.close(fd) }
  end

  def test_an_unused_machine_has_nobody
    report = UM.new.report
    assert_empty report.fibers
    assert_includes report.to_s, "machine of no thread yet"
  end

  def test_a_signal_has_it_printed_and_calls_the_handler_there_was
    output, status = ruby(<<~RUBY)
      trap(:USR2) { $handled = true }
      UM.dump_on(:USR2)
      reader, = IO.pipe
      Fiber.set_scheduler(UM::FiberScheduler.new)
      waiting = Fiber.schedule { reader.gets }
      printed, $stderr = IO.pipe
      Fiber.schedule do
        Process.kill(:USR2, Process.pid)
        text = +""
        text << printed.readpartial(10_000) until text.include?("IO#gets")
        puts text, "handled \#{$handled}"
        waiting.kill
      end
    RUBY
    assert_predicate status, :success?, output
    assert_match(/is waiting for poll on fd/, output)
    assert_match(/handled true/, output)
  end

  def test_a_signal_in_a_program_without_machines
    output, status = ruby(<<~RUBY)
      UM.dump_on("USR2")
      printed, $stderr = IO.pipe
      Process.kill(:USR2, Process.pid)
      puts printed.gets
    RUBY
    assert_predicate status, :success?, output
    assert_equal "no machine is in use\n", output
  end

  def test_a_signal_that_there_is_not
    assert_raises(ArgumentError) { UM.dump_on(:NONE) }
  end

  def test_machines_are_those_in_use
    scheduled do |scheduler|
      Fiber.schedule { assert_includes UM.machines, scheduler.machine }
    end
    machine = UM.new
    refute_includes UM.machines, machine
    machine.sleep(0)
    assert_includes UM.machines, machine
  end
end
