# frozen_string_literal: true

require_relative "../test_helper"
require "json"
require "pathname"
require "stringio"

# What a trace says of a program, event by event.
module ReadsTraces
  # An event of a trace, a slice as a rule; times in nanoseconds.
  Event = Data.define(:type, :track, :start, :length, :category, :name, :arguments, :id) do
    def finish = start + length
  end

  # A trace of what the block does: its events.
  def trace(**options)
    io = StringIO.new
    @value = UM.trace(io, **options) { yield io }
    read(io.string)
  end

  def read(text)
    @json = JSON.parse(text)
    @json.fetch("traceEvents").map { |event| read_event(event) }.tap { |events| assert_whole(events) }
  end

  def read_event(event)
    time, length = event.values_at("ts", "dur").map { |number| (number.to_f * 1000).round }
    Event.new(event.fetch("ph"), event.fetch("tid"), time, length, event["cat"], event.fetch("name"), event["args"] || {}, event["id"])
  end

  # What holds of every trace: it is all of this process, slices of a track do not overlap, arrows and streams have both their ends.
  def assert_whole(events)
    assert_equal [Process.pid], @json["traceEvents"].map { |event| event.fetch("pid") }.uniq
    assert_empty events.map(&:type) - %w[M X i s f b e]
    slices(events).group_by(&:track).each_value do |list|
      list.sort_by { |slice| [slice.start, slice.finish] }.each_cons(2) { |a, b| assert_operator a.finish, :<=, b.start, [a, b].inspect }
    end
    [%w[s f], %w[b e]].each do |first, last|
      ends = events.select { |event| [first, last].include?(event.type) }.group_by(&:id)
      ends.each_value do |pair|
        assert_equal [first, last], pair.map(&:type)
        assert_operator pair.first.start, :<=, pair.last.start
      end
    end
  end

  def slices(events, category = nil) = events.select { |event| event.type == "X" && (category.nil? || event.category == category) }

  # Waits of a name.
  def waits(events, name) = slices(events, "wait").select { |slice| slice.name == name }

  # The tracks of fibers whose block begins on a line of this file.
  def tracks_of(events, line)
    names = events.select { |event| event.name == "thread_name" }
    names.select { |event| event.arguments["name"].end_with?(" #{File.basename(__FILE__)}:#{line}") }.map(&:track)
  end

  # The slices of a fiber follow one upon the other, from its start to its end.
  def assert_covered(events, track)
    list = slices(events).select { |slice| slice.track == track }.sort_by { |slice| [slice.start, slice.finish] }
    list.each_cons(2) { |a, b| assert_equal a.finish, b.start, [a, b].inspect }
    ended = events.find { |event| event.track == track && event.name == "ended" }
    assert_equal ended.start, list.last.finish if ended
    list
  end
end

# UM.trace, of fibers of the scheduler.
class TestTrace < SchedulerTest
  include ReadsTraces

  def test_a_read_that_waits_is_told_with_its_descriptor_and_its_result
    events = fd = nil
    scheduled do |scheduler|
      events = trace do
        a, b = UNIXSocket.pair
        fd = a.fileno
        Fiber.schedule { a.readpartial(100) }
        b.write("12345")
        scheduler.run
      end
    end
    wait = slices(events, "wait").find { |slice| slice.arguments["fd"] == fd }
    assert_equal ["recv", { "fd" => fd, "result" => 5 }], [wait.name, wait.arguments]
  end

  def test_waits_of_every_sort_have_their_names
    events = nil
    scheduled do |scheduler|
      events = trace do
        queue, mutex = Queue.new, Mutex.new
        mutex.lock
        Fiber.schedule { queue.pop }
        Fiber.schedule { mutex.synchronize {} }
        Fiber.schedule { Thread.new { sleep 0.001 }.join }
        Fiber.schedule { sleep 0.001 }
        Fiber.schedule { Process.wait(spawn("true")) }
        Fiber.schedule { sleep 0 }
        queue << 1
        mutex.unlock
        scheduler.run
      end
    end
    found = slices(events, "wait")
    assert_empty ["Thread::Queue", "Thread::Mutex", "Thread", "sleep", "turn", "Fiber.schedule", "fibers"] - found.map(&:name)
    # Of fibers that other tests have left, and that wait since then, less is known.
    begun = found.reject { |slice| slice.start == found.map(&:start).min }
    refute_includes begun.map(&:name), "wait"
    assert_equal(["timeout"], waits(events, "sleep").map { |slice| slice.arguments["ended"] })
    refute_empty slices(events, "sleep")
  end

  def test_slices_cover_the_life_of_a_fiber
    events = line = nil
    scheduled do |scheduler|
      events = trace do
        a, b = UNIXSocket.pair
        line = __LINE__ + 1
        Fiber.schedule do
          3.times { b.write(b.readpartial(10)) }
          sleep 0.001
        end
        Fiber.schedule do
          3.times { a.write("x") && a.readpartial(10) }
        end
        scheduler.run
      end
    end
    track, = tracks_of(events, line)
    list = assert_covered(events, track)
    assert_equal %w[run wait], list.map(&:category).uniq
    assert_equal [], list.each_cons(2).select { |a, b| a.category == b.category }
    assert_equal "sleep", list[-2].name
    assert_equal(1, events.count { |event| event.track == track && event.name == "started" })
  end

  # Every switch to another fiber begins a run, and so does the end of a wait in which nobody else ran.
  def test_runs_are_as_many_as_switches
    events = switches = nil
    scheduled do |scheduler|
      fibers = nil
      events = trace do
        fibers = Array.new(2) { Fiber.schedule { 50.times { sleep 0 } } }
        before = scheduler.metrics[:switches_total]
        scheduler.run
        switches = scheduler.metrics[:switches_total] - before
      end
    end
    runs = slices(events, "run").sort_by(&:start)
    # Of the two, from when both have waited once.
    runs.shift until waits(events, "fibers").first.start <= runs.first.start
    assert_equal switches, runs.chunk_while { |a, b| a.track == b.track }.count - 1
  end

  def test_sleeps_of_the_kernel_are_those_of_the_metrics
    events = sleeps = nil
    in_fiber do |scheduler|
      before = nil
      events = trace do
        before = scheduler.metrics[:sleeps_total]
        3.times { sleep 0.001 }
        sleeps = scheduler.metrics[:sleeps_total] - before
      end
    end
    assert_equal sleeps, slices(events, "sleep").size
    assert_equal 3, waits(events, "sleep").size
  end

  def test_a_timeout_is_told_and_what_it_ends
    events = nil
    in_fiber do
      events = trace do
        reader, = IO.pipe
        assert_raises(Timeout::Error) { Timeout.timeout(0.001) { reader.read(1) } }
      end
    end
    assert_equal(["raised: timeout"], events.select { |event| event.category == "interrupt" }.map(&:name))
    assert_includes slices(events, "wait").map { |slice| slice.arguments["ended"] }, "interrupted"
  end

  def test_an_arrow_leads_from_the_fiber_that_wakes_to_the_one_that_is_woken
    events = first = second = nil
    scheduled do |scheduler|
      events = trace do
        queue = Queue.new
        first = __LINE__ + 1
        Fiber.schedule { queue.pop }
        second = __LINE__ + 1
        Fiber.schedule { queue << 1 }
        scheduler.run
      end
    end
    woken, waker = [first, second].map { |line| tracks_of(events, line).first }
    wait = waits(events, "Thread::Queue").first
    arrow = events.select { |event| event.id && event.track == woken && event.start == wait.finish }.first
    assert_equal "f", arrow.type
    start = events.find { |event| event.id == arrow.id && event.type == "s" }
    assert_equal waker, start.track
    assert_includes wait.start..wait.finish, start.start
  end

  def test_fibers_that_wait_already_are_in_it_from_its_start_and_those_that_wait_still_to_its_end
    events = line = nil
    in_fiber do
      reader, writer = IO.pipe
      line = __LINE__ + 1
      Fiber.schedule do
        reader.read(1)
        reader.read(1)
      end
      events = trace do
        writer.write("x")
        sleep 0.001
      end
      writer.write("x")
    end
    names = events.select { |event| event.name == "thread_name" && event.arguments["name"].start_with?("fiber") }
    track = names.find { |event| waits(events, "poll").map(&:track).include?(event.track) }.track
    list = assert_covered(events, track)
    assert_equal %w[poll running poll], list.map(&:name)
    assert_equal "not over", list.last.arguments["ended"]
    assert_includes names.find { |event| event.track == track }.arguments["name"], File.basename(__FILE__)
    assert_operator line, :>, 0
  end

  def test_threads_and_machines_that_begin_meanwhile_are_in_it
    events = trace do
      2.times.map do |number|
        Thread.new do
          Thread.current.name = "worker #{number}"
          Fiber.set_scheduler(UM::FiberScheduler.new)
          Fiber.schedule { sleep 0.001 }
        end
      end.each(&:join)
      # What was noted of machines that nobody refers to is kept.
      GC.start
    end
    names = events.select { |event| event.name == "thread_name" }.map { |event| event.arguments["name"] }
    assert_empty ["kernel sleeps, worker 0", "kernel sleeps, worker 1"] - names
    assert_equal 2, waits(events, "sleep").size
    assert_equal 2, waits(events, "sleep").map(&:track).uniq.size
  end

  def test_the_value_of_the_block_is_returned_and_its_exception_goes_on
    in_fiber do
      # Machines of other tests may have waits that nobody ends.
      assert_empty slices(trace { 42 }, "wait").reject { |wait| wait.arguments["ended"] == "not over" }
      assert_equal 42, @value
      io = StringIO.new
      error = assert_raises(RuntimeError) do
        UM.trace(io) do
          sleep 0.001
          raise "out"
        end
      end
      assert_equal "out", error.message
      assert_equal 1, waits(read(io.string), "sleep").size
      assert_equal(:thrown, catch(:done) { UM.trace(StringIO.new) { throw :done, :thrown } })
      refute UM.send(:traced?)
    end
  end

  def test_nothing_is_noted_before_and_after
    in_fiber do
      sleep 0.001
      events = trace { sleep 0.001 }
      sleep 0.001
      assert_equal 1, waits(events, "sleep").size
      assert_equal 1, waits(trace { sleep 0.001 }, "sleep").size
    end
  end

  def test_there_is_one_at_a_time
    in_fiber do
      error = nil
      events = trace do
        error = assert_raises(UM::Error) { UM.trace(File::NULL) {} }
        sleep 0.001
      end
      assert_equal "a trace is being taken already", error.message
      assert_equal 1, waits(events, "sleep").size
      trace { Thread.new { assert_raises(UM::Error) { UM.trace(StringIO.new) {} } }.join }
    end
  end

  def test_events_beyond_the_limit_are_dropped_and_told
    noted, dropped, told, whole, none = in_child do
      limited = nil
      _, told = capture_io { in_fiber { limited = trace(limit: 10) { 20.times { sleep 0 } } } }
      dropped = @json.dig("otherData", "dropped_events")
      whole = in_fiber { trace { 20.times { sleep 0 } } }
      [limited, whole].map { |events| noted(events) }.then { |few, all| [few, dropped, told, all, @json.dig("otherData", "dropped_events")] }
    end
    assert_equal 10, noted
    assert_operator dropped, :>, 0
    assert_equal "uringmachine: the trace lacks #{dropped} events beyond its limit\n", told
    assert_equal 0, none
    assert_equal noted + dropped, whole
  end

  # Slices and instants are events of the trace; what each has beside it is not.
  def noted(events) = events.count { |event| %w[X i].include?(event.type) || event.arguments["name"].to_s.start_with?("fiber") }

  # What the block returns, in a process where no other test has left a machine.
  def in_child
    IO.popen("-", "rb") do |io|
      return Marshal.load(io.read) if io

      begin
        STDOUT.binmode.write(Marshal.dump(yield))
        STDOUT.flush
      ensure
        exit!(0)
      end
    end
  end

  def test_it_is_written_to_a_path_too
    Dir.mktmpdir do |folder|
      [File.join(folder, "a.json"), Pathname(folder) + "b.json"].each do |path|
        in_fiber { UM.trace(path) { sleep 0.001 } }
        assert_equal 1, waits(read(File.read(path)), "sleep").size
      end
      missing = File.join(folder, "missing", "c.json")
      runs = false
      assert_raises(Errno::ENOENT) { UM.trace(missing) { runs = true } }
      refute runs
      refute UM.send(:traced?)
    end
  end

  def test_a_pipe_is_written_to_by_the_scheduler
    in_fiber do
      reader, writer = IO.pipe
      text = nil
      Fiber.schedule { text = reader.read }
      # More than the pipe takes at once.
      UM.trace(writer) { 1000.times { sleep 0 } }
      writer.close
      sleep 0 until text
      assert_equal 1000, waits(read(text), "turn").size
    end
  end

  def test_a_child_of_fork_writes_nothing
    Dir.mktmpdir do |folder|
      path, own = %w[parents own].map { |name| File.join(folder, name) }
      output, status = ruby(<<~RUBY, path, own)
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule do
          child = nil
          UM.trace(ARGV[0]) do
            sleep 0.001
            child = fork
            sleep 0.001 if child
          end
          if child
            Process.wait(child)
            abort "the child failed" unless $?.success?
          else
            # It may take one of its own.
            UM.trace(ARGV[1]) { UM.new.sleep(0.001) }
          end
        end
      RUBY
      assert status.success?, output
      assert_equal 2, File.read(path).scan('"cat":"wait","name":"sleep"').size
      assert_equal 1, File.read(own).scan('"cat":"wait","name":"sleep"').size
      [path, own].each { |file| JSON.parse(File.read(file)) }
    end
  end

  def test_bad_arguments_are_named
    assert_match(/\Apath_or_io must be a path or an IO, not Integer\z/, assert_raises(TypeError) { UM.trace(1) {} }.message)
    assert_match(/\Apath_or_io must be a path or an IO, not NilClass\z/, assert_raises(TypeError) { UM.trace(nil) {} }.message)
    assert_match(/\Alimit must be an Integer, not Float\z/, assert_raises(TypeError) { UM.trace(File::NULL, limit: 1.0) {} }.message)
    assert_match(/\Alimit must be positive\z/, assert_raises(ArgumentError) { UM.trace(File::NULL, limit: 0) {} }.message)
    assert_match(/\Ano block given \(trace\)\z/, assert_raises(ArgumentError) { UM.trace(File::NULL) }.message)
    assert_raises(ArgumentError) { UM.trace(File::NULL, most: 1) {} }
  end

  def test_names_and_fibers_are_safe_from_the_collector
    events = nil
    scheduled do |scheduler|
      events = trace do
        20.times do |number|
          queue = Class.new(Queue).new
          Fiber.schedule { queue.pop }
          eval("Fiber.schedule { sleep 0 }", binding, "evaluated #{number}", 1) # rubocop:disable Security/Eval
          queue << 1
          GC.start
          GC.compact if number.zero? && GC.respond_to?(:compact)
        end
        GC.stress = true
        3.times { Fiber.schedule { sleep 0 } }
        GC.stress = false
        scheduler.run
      end
    ensure
      GC.stress = false
    end
    names = events.select { |event| event.name == "thread_name" }.map { |event| event.arguments["name"] }
    20.times { |number| assert(names.any? { |name| name.end_with?("evaluated #{number}:1") }) }
    assert_equal 23, waits(events, "turn").size
  end

  def test_a_ractor_has_its_own
    skip "Ruby's own Ractors are not fit for it" if RUBY_VERSION < "4"
    output, status = ruby(<<~RUBY)
      require "stringio"
      UM.trace(File::NULL) do
        # That of another Ractor is another's.
        other = Ractor.new { StringIO.new.tap { |io| UM.trace(io) { UM.new.sleep(0.001) } }.string }
        print((other.respond_to?(:value) ? other.value : other.take).scan('"name":"sleep"').size)
      end
    RUBY
    assert_equal ["1", true], [output, status.success?]
  end

  # A fiber that has ended is not kept.
  def test_it_keeps_no_fibers_that_have_ended
    scheduled do |scheduler|
      trace do
        500.times { Fiber.schedule { sleep 0 } }
        scheduler.run
        GC.start
        assert_operator ObjectSpace.each_object(Fiber).count { |fiber| !fiber.alive? }, :<, 250
      end
    end
  end
end

# UM.trace, of a machine's own methods.
class TestTraceOfMachine < MachineTest
  include ReadsTraces

  def port_of(server) = Socket.for_fd(server).tap { |socket| socket.autoclose = false }.local_address.ip_port

  def test_waits_of_a_machine
    reader, writer = opened(UM.pipe)
    queue, mutex = UM::Queue.new, UM::Mutex.new
    line = nil
    events = trace do
      line = __LINE__ + 1
      fiber = machine.spin { machine.read(reader, +"", 10) }
      others = [machine.spin { machine.shift(queue) }, machine.spin { machine.synchronize(mutex) {} }, machine.spin { machine.sleep(0.001) }]
      machine.synchronize(mutex) { machine.snooze }
      machine.write(writer, "123")
      machine.push(queue, 1)
      machine.join(fiber, *others)
    end
    track, = tracks_of(events, line)
    list = assert_covered(events, track)
    assert_equal %w[start running read running], list.map(&:name)
    assert_equal({ "fd" => reader, "result" => 3 }, list[2].arguments)
    assert_empty %w[UM::Queue UM::Mutex sleep turn start] - slices(events, "wait").map(&:name)
  end

  def test_what_fails_is_told_with_its_error
    server = machine.tcp_listen("127.0.0.1", 0)
    port = port_of(server)
    machine.close(server)
    events = trace do
      # Nobody listens there any more.
      machine.join(machine.spin { assert_raises(Errno::ECONNREFUSED) { machine.tcp_connect("127.0.0.1", port) } })
    end
    assert_equal(["ECONNREFUSED"], waits(events, "connect").map { |slice| slice.arguments["error"] })
  end

  def test_a_multishot_accept_is_told_from_its_start_to_its_end
    server = opened(machine.tcp_listen("127.0.0.1", 0))
    port = port_of(server)
    events = trace do
      client = machine.spin { TCPSocket.new("127.0.0.1", port).close }
      machine.accept_each(server) { |fd| break opened(fd) }
      machine.join(client)
    end
    streams = events.select { |event| event.category == "multishot" }
    assert_equal [["b", "accept"], ["e", "accept"]], streams.map { |event| [event.type, event.name] }
    assert_equal({ "fd" => server }, streams.first.arguments)
    wait = waits(events, "accept").first
    assert_equal server, wait.arguments["fd"]
    assert_operator streams.first.start, :<=, wait.start
    assert_operator streams.last.start, :>=, wait.finish
  end

  def test_what_is_scheduled_with_an_exception_is_told
    events = trace do
      fiber = machine.spin { assert_raises(ArgumentError) { machine.sleep(1000) } }
      machine.snooze
      machine.schedule(fiber, ArgumentError.new("enough"))
      machine.join(fiber)
    end
    assert_equal(["raised: ArgumentError"], events.select { |event| event.category == "interrupt" }.map(&:name))
    assert_equal(["interrupted"], waits(events, "sleep").map { |slice| slice.arguments["ended"] })
  end
end
