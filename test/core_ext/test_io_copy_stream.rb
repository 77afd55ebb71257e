# frozen_string_literal: true

require "digest"
require "io/nonblock"
require "pathname"
require "stringio"
require_relative "../test_helper"

# io_splice, and IO.copy_stream on it.
class TestCopyStream < SchedulerTest
  class TooLate < StandardError; end

  # Counts what goes through the kernel.
  class CountingScheduler < UM::FiberScheduler
    attr_reader :spliced

    def io_splice(...)
      super.tap { |moved| @spliced = (@spliced || 0) + moved if moved.positive? }
    end
  end

  BYTES = Random.bytes(3_000_001)

  def file(bytes = BYTES)
    Tempfile.create("um").tap do |file|
      file.binmode
      file.write(bytes)
      file.rewind
      File.unlink(file.path)
    end
  end

  # Runs the block in a fiber; returns what it returns, and the bytes that went through the kernel.
  def counted
    scheduler = CountingScheduler.new
    result = nil
    scheduled(scheduler) { Fiber.schedule { result = yield } }
    [result, scheduler.spliced]
  end

  # A socket pair or a pipe, with what arrives at the end.
  def received(make)
    source, sink = make.call
    arrived = nil
    result = counted do
      reader = Fiber.schedule { arrived = source.read }
      yield(sink).tap do
        sink.close
        sleep(0.0001) while reader.alive?
      end
    end
    [*result, arrived]
  ensure
    source&.close
  end

  TARGETS = [-> { UNIXSocket.pair }, -> { IO.pipe.each(&:binmode) }, lambda {
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    [server.accept, client].tap { server.close }
  }].freeze

  def test_a_file_to_sockets_and_pipes
    TARGETS.each do |make|
      count, spliced, arrived = received(make) { |sink| IO.copy_stream(file, sink) }
      assert_equal [BYTES.bytesize] * 2, [count, spliced]
      assert_equal BYTES, arrived
    end
  end

  def test_part_of_a_file_moves_its_position_and_an_offset_leaves_it_alone
    source = file
    count, _, arrived = received(TARGETS.first) do |sink|
      [IO.copy_stream(source, sink, 1_500_000), source.pos, IO.copy_stream(source, sink, 10, 7), source.pos, IO.copy_stream(source, sink, nil, 2_999_990)]
    end
    assert_equal [1_500_000, 1_500_000, 10, 1_500_000, 11], count
    assert_equal BYTES[0, 1_500_000] + BYTES[7, 10] + BYTES[-11..], arrived
  end

  def test_a_path_is_a_source_too
    path = Tempfile.create("um").tap { |file| file.write("by its name") && file.close }.path
    [path, Pathname(path)].each do |source|
      count, spliced, arrived = received(TARGETS.first) { |sink| IO.copy_stream(source, sink) }
      assert_equal [11, 11, "by its name"], [count, spliced, arrived]
    end
  ensure
    File.unlink(path)
  end

  def test_bytes_that_were_read_ahead_go_first
    source = file("line\n#{"x" * 20_000}")
    count, _, arrived = received(TARGETS.first) { |sink| source.gets && [IO.copy_stream(source, sink, 10), IO.copy_stream(source, sink)] }
    assert_equal [10, 19_990], count
    assert_equal "x" * 20_000, arrived
    there, here = UNIXSocket.pair
    here << "line\nand the rest"
    here.close
    count, _, arrived = received(TARGETS.first) { |sink| there.gets && IO.copy_stream(there, sink) }
    assert_equal [12, "and the rest"], [count, arrived]
  end

  def test_bytes_that_were_written_and_not_flushed_go_first
    count, _, arrived = received(-> { IO.pipe.tap { |_, writer| writer.sync = false } }) { |sink| sink.write("first ") && IO.copy_stream(file("second"), sink) }
    assert_equal [6, "first second"], [count, arrived]
  end

  def test_a_proxy_between_sockets_brings_every_byte
    [TARGETS[0], TARGETS[2]].each do |make|
      client, front = make.call
      count, spliced, arrived = received(make) do |sink|
        Fiber.schedule { client.write(BYTES) && client.close }
        IO.copy_stream(front, sink)
      end
      assert_equal [BYTES.bytesize] * 2, [count, spliced]
      assert_equal BYTES, arrived
    end
  end

  def test_a_pipe_to_a_socket_and_a_socket_to_a_pipe
    reader, writer = IO.pipe
    count, spliced, arrived = received(TARGETS[0]) { |sink| Fiber.schedule { writer.write(BYTES) && writer.close } && IO.copy_stream(reader, sink) }
    assert_equal [BYTES.bytesize, BYTES.bytesize, BYTES], [count, spliced, arrived]
    there, here = UNIXSocket.pair
    count, spliced, arrived = received(TARGETS[1]) { |sink| Fiber.schedule { there.write(BYTES) && there.close } && IO.copy_stream(here, sink) }
    assert_equal [BYTES.bytesize, BYTES.bytesize, BYTES], [count, spliced, arrived]
  end

  # An upload: the bytes of a pipe or a socket, to a file.
  def test_sockets_and_pipes_to_a_file
    [TARGETS[0], TARGETS[1]].each do |make|
      from, feed = make.call
      target = file("before ")
      target.seek(0, :END)
      ticks = 0
      count, spliced = counted do
        feeding = Fiber.schedule { feed.write("line\n", BYTES) && feed.close }
        Fiber.schedule { sleep(0) && ticks += 1 while feeding.alive? }
        assert_equal "line\n", from.gets
        [IO.copy_stream(from, target, 1_000_000), IO.copy_stream(from, target)]
      end
      assert_equal [1_000_000, 2_000_001], count
      # What Ruby had read ahead of `gets` is no part of it.
      assert_operator spliced, :>, 2_900_000
      assert_operator ticks, :>, 10
      target.rewind
      assert_equal Digest::SHA256.digest("before ".b + BYTES), Digest::SHA256.digest(target.read)
    end
  end

  # Copies all, cut off again and again, each time later, so that a slow machine gets there too. How often.
  def copy_with_cuts(from, target)
    cuts = 0
    begin
      Timeout.timeout(0.002 * (cuts + 1), TooLate) { IO.copy_stream(from, target) }
    rescue TooLate
      cuts += 1
      retry
    end
    cuts
  end

  def test_an_upload_that_is_cut_off_again_and_again_loses_and_doubles_no_byte
    [TARGETS[0], TARGETS[1]].each do |make|
      from, feed = make.call
      target = file("")
      cuts = 0
      counted do
        Fiber.schedule do
          BYTES.bytes.each_slice(100_000) { |part| feed.write(part.pack("C*")) && sleep(0.001) }
          feed.close
        end
        cuts = copy_with_cuts(from, target)
      end
      assert_operator cuts, :>, 1
      target.rewind
      assert_equal Digest::SHA256.digest(BYTES), Digest::SHA256.digest(target.read)
    end
  end

  def test_a_file_that_is_appended_to_is_rubys_own_to_copy_to
    [TARGETS[0], TARGETS[1]].each do |make|
      from, feed = make.call
      path = Tempfile.create("um").tap { |file| file.write("before ") && file.close }.path
      target = File.open(path, "ab")
      count, = counted do
        Fiber.schedule { feed.write(BYTES) && feed.close }
        IO.copy_stream(from, target)
      end
      target.close
      assert_equal BYTES.bytesize, count
      assert_equal Digest::SHA256.digest("before ".b + BYTES), Digest::SHA256.digest(File.binread(path))
    ensure
      File.unlink(path)
    end
  end

  def test_a_slow_upload_takes_no_worker
    in_fiber do
      uploads = Array.new(20) { UNIXSocket.pair }
      files = uploads.map { file("") }
      copies = uploads.zip(files).map { |(from, _), target| Fiber.schedule { IO.copy_stream(from, target) } }
      # What needs a worker of the pool gets one.
      assert_equal 0, File.rename(__FILE__, __FILE__)
      assert(copies.all?(&:alive?))
      uploads.map(&:last).each { |feed| feed.write("late") && feed.close }
      sleep(0.0001) while copies.any?(&:alive?)
      contents = files.map { |target| target.rewind && target.read }
      assert_equal ["late"] * 20, contents
    end
  end

  def test_what_is_no_descriptor_and_a_file_to_a_file_take_rubys_own_path
    target = file("")
    [StringIO.new("from memory"), file("from a file")].each { |source| assert_equal([11, nil], counted { IO.copy_stream(source, target) }) }
    target.rewind
    assert_equal "from memoryfrom a file", target.read
    assert_equal(["copied", nil], counted { StringIO.new.tap { |memory| IO.copy_stream(file("copied"), memory) }.string })
    _, writer = UNIXSocket.pair
    assert_equal([11, nil], counted { IO.copy_stream(StringIO.new("from memory"), writer) })
  end

  def test_blocking_descriptors_do_not_stall_other_fibers
    there, here = UNIXSocket.pair
    [there, here].each { |socket| socket.nonblock = false }
    ticks = 0
    count, = counted do
      Fiber.schedule { 20.times { sleep(0.0005) && ticks += 1 } }
      Fiber.schedule { sleep(0.001) while ticks < 20; there.write("late") && there.close }
      target = UNIXSocket.pair.last
      IO.copy_stream(here, target)
    end
    assert_equal 4, count
  end

  def test_other_fibers_run_while_much_is_moved
    ticks = 0
    moving = true
    received(TARGETS[0]) do |sink|
      Fiber.schedule { sleep(0) && ticks += 1 while moving }
      IO.copy_stream(file, sink).tap { moving = false }
    end
    assert_operator ticks, :>, 3
  end

  def test_a_copy_that_is_cut_off_loses_no_byte
    client, front = UNIXSocket.pair
    sink, target = UNIXSocket.pair
    rest = nil
    arrived = +"".b
    counted do
      Fiber.schedule { client.write(BYTES) && client.close }
      assert_raises(TooLate) { Timeout.timeout(0.02, TooLate) { IO.copy_stream(front, target) } }
      target.close
      reader = Fiber.schedule { arrived << sink.read }
      rest = front.read
      sleep(0.0001) while reader.alive?
    end
    assert_operator arrived.bytesize, :>, 0
    assert_equal BYTES.bytesize, arrived.bytesize + rest.bytesize
    assert_equal BYTES, arrived + rest
  end

  # Every pair of ends that is not a file's, cut again and again, what was read ahead included.
  def test_copies_that_are_cut_off_again_and_again_lose_and_double_no_byte
    makes = [TARGETS[0], TARGETS[1]]
    makes.product(makes).each do |make_source, make_target|
      from, feed = make_source.call
      sink, target = make_target.call
      arrived = +"".b
      cuts = 0
      counted do
        Fiber.schedule { feed.write("first\n", BYTES) && feed.close }
        reader = Fiber.schedule do
          # Slower than the copy, so that it waits for room.
          sleep(0.0005) while (part = sink.read_nonblock(40_000, exception: false)) && (part == :wait_readable || (arrived << part))
        end
        assert_equal "first\n", from.gets
        cuts = copy_with_cuts(from, target)
        target.close
        sleep(0.0001) while reader.alive?
      end
      assert_operator cuts, :>, 1
      assert_equal BYTES.bytesize, arrived.bytesize
      assert arrived == BYTES, "the bytes have changed"
    end
  end

  def test_what_was_read_ahead_and_cannot_be_written_is_read_again
    from, feed = UNIXSocket.pair
    feed << "line\nrest"
    feed.close
    on_disk = file("line\n#{"x" * 20_000}rest")
    sink, target = UNIXSocket.pair
    counted do
      full([sink, target])
      [from, on_disk].each do |source|
        source.gets
        [3, nil].each { |length| assert_raises(TooLate) { Timeout.timeout(0.002, TooLate) { IO.copy_stream(source, target, length) } } }
      end
      assert_equal "rest", from.read
      assert_equal 5, on_disk.pos
      assert_equal "#{"x" * 20_000}rest", on_disk.read
    end
    sink.close
  end

  def full(pair)
    pair.tap { |_, target| nil while target.write_nonblock("x" * 65_536, exception: false) != :wait_writable }
  end

  def test_closing_either_end_wakes_a_copy_that_waits
    makes = [TARGETS[0], TARGETS[1]]
    idle = makes.product(makes).map { |from, to| -> { [from.call, to.call] } }
    stuck = makes.map { |to| -> { [[file], full(to.call)] } }
    (idle + stuck).product([0, 1]).each do |make, closed|
      # The peers are kept, or they would be collected and closed.
      from, to = make.call
      ends = [from[0], to[1]]
      error = nil
      in_fiber do
        copy = Fiber.schedule do
          IO.copy_stream(*ends)
        rescue IOError => e
          error = e
        end
        assert_predicate copy, :alive?
        ends[closed].close
      end
      assert_equal "stream closed in another thread", error&.message
      [from, to].flatten.each { |io| io.close unless io.closed? }
    end
  end

  # The copy has had its turn and is about to go on: what it would write to is by then another's descriptor.
  def test_a_close_between_two_steps_of_a_copy_ends_it
    source = file
    8.times do |steps|
      sink, target = UNIXSocket.pair
      error = nil
      in_fiber do
        copy = Fiber.schedule do
          # Room for a step at a time.
          IO.copy_stream(source.tap(&:rewind), target)
        rescue IOError => e
          error = e
        end
        steps.times { sink.read_nonblock(100_000, exception: false) && sleep(0) }
        assert_predicate copy, :alive?
        target.close
        innocent = UNIXSocket.pair
        sleep(0) while copy.alive?
        innocent.each { |socket| assert_equal :wait_readable, socket.read_nonblock(1, exception: false) }
      end
      assert_equal "stream closed in another thread", error&.message
    end
  end

  def test_what_has_a_path_and_an_io_is_that_io
    temporary = Tempfile.new
    temporary << "0123456789abcdef"
    temporary.rewind
    temporary.read(4)
    count, _, arrived = received(TARGETS[0]) { |sink| IO.copy_stream(temporary, sink) }
    assert_equal [12, 16, "456789abcdef"], [count, temporary.pos, arrived]
    temporary.unlink
    temporary.rewind
    count, _, arrived = received(TARGETS[0]) { |sink| IO.copy_stream(temporary, sink, 3) }
    assert_equal [3, "012"], [count, arrived]
  end

  def test_what_the_source_has_not_written_is_part_of_it
    source = file("0123456789abcdef")
    source.read(2)
    source.seek(2)
    source.write("WW")
    plain = source.dup
    count, _, arrived = received(TARGETS[0]) { |sink| IO.copy_stream(source, sink) }
    assert_equal [12, "456789abcdef"], [count, arrived]
    plain.rewind
    assert_equal "01WW456789abcdef", plain.read
  end

  def test_a_copy_from_a_file_that_is_cut_off_leaves_its_position_where_the_copy_stopped
    source = file
    sink, target = UNIXSocket.pair
    counted do
      assert_raises(TooLate) { Timeout.timeout(0.01, TooLate) { IO.copy_stream(source, target) } }
      target.close
    end
    assert_equal source.pos, sink.read.bytesize
  end

  def test_the_timeout_of_an_io_is_honoured
    _, source = UNIXSocket.pair
    source.timeout = 0.01
    counted { assert_raises(IO::TimeoutError) { IO.copy_stream(source, UNIXSocket.pair.last) } }
    sink, target = UNIXSocket.pair
    target.timeout = 0.01
    counted { assert_raises(IO::TimeoutError) { IO.copy_stream(file, target) } }
    sink.close
  end

  # Copies that fail, or copy nothing: each as plain Ruby says.
  def failing_copies
    short = file("0123456789")
    reader, writer = IO.pipe
    gone, orphan = UNIXSocket.pair.tap { |pair| pair[0].close }
    whole, target = UNIXSocket.pair
    half = UNIXSocket.pair
    half[0].close_read
    half[1].close_write
    only = { "r" => IO.for_fd(whole.fileno, "r", autoclose: false), "w" => IO.for_fd(whole.fileno, "w", autoclose: false) }
    @kept = [gone, half, target]
    { "the peer is gone" => [short, orphan], "a source that is not read from" => [writer, target], "a target that is not written to" => [short, reader],
      "a negative length" => [short, target, -1], "no such file" => ["/nowhere", target], "an offset in a socket" => [whole, target, nil, 4],
      "an offset in a pipe" => [reader, target, 1, 4], "half closed, as the target" => [short, half[1]], "half closed, as the source" => [half[0], target],
      "opened for reading" => [short, only["r"]], "opened for writing" => [only["w"], target], "opened for writing, of length 0" => [only["w"], target, 0],
      "too long" => [short, target, 1 << 63], "too far" => [short, target, 1, 1 << 63], "closed" => [file.tap(&:close), target],
      "a directory" => [Dir.tmpdir, target], "a directory to a file" => [Dir.tmpdir, File::NULL], "no room for a file" => [file("0123456789"), "/dev/full"],
      "no room for a pipe's bytes" => [filled_pipe, "/dev/full"], "a reset" => [reset_socket, File::NULL], "a pipe's bytes for a peer that is gone" => [filled_pipe, orphan],
      "no length" => [short, target, 0], "past the end" => [short, target, nil, 1 << 40] }
  end

  def filled_pipe = IO.pipe.then { |reader, writer| reader.tap { writer.write("0123456789") && writer.close } }

  # One whose connection the peer has reset.
  def reset_socket
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.local_address.ip_port)
    server.accept.tap { |peer| peer.setsockopt(Socket::Option.linger(true, 0)) }.close
    server.close
    client.tap { client.wait_readable }
  end

  def test_errors_are_those_of_plain_ruby
    outcomes = lambda do
      failing_copies.transform_values do |arguments|
        IO.copy_stream(*arguments)
      rescue StandardError => e
        [e.class, e.message]
      end
    end
    plain = outcomes.call
    assert_equal 2, plain.values.count(0), plain
    assert_equal plain, counted(&outcomes).first
  end

  def test_no_descriptor_is_left_behind
    before = settled_descriptors
    5.times { received(TARGETS[0]) { |sink| IO.copy_stream(file, sink) } }
    GC.start
    assert_operator open_descriptors, :<=, before + 4
  end

  def test_without_our_scheduler_nothing_changes
    sink, target = UNIXSocket.pair
    assert_equal 5, IO.copy_stream(file("plain"), target)
    target.close
    assert_equal "plain", sink.read
  end

  def test_bad_arguments_of_the_hook
    in_fiber do |scheduler|
      reader, writer = IO.pipe
      assert_raises(TypeError) { scheduler.io_splice(1, writer) }
      assert_raises(ArgumentError) { scheduler.io_splice(reader, writer, -1) }
      assert_raises(ArgumentError) { scheduler.io_splice(reader, writer, 1, -1) }
      assert_raises(TypeError) { scheduler.io_splice(reader, writer, "1") }
      closed = IO.pipe.first.tap(&:close)
      assert_raises(IOError) { scheduler.io_splice(closed, writer) }
      assert_raises(IOError) { scheduler.io_splice(writer, UNIXSocket.pair.last, 1) }
      assert_raises(IOError) { scheduler.io_splice(reader, reader, 1) }
    end
  end

  # Where a copy goes to that is none of descriptors, or that the kernel refuses to move bytes to.
  PLACES = {
    path: ->(path) { path }, pathname: ->(path) { Pathname(path) }, appended_file: ->(path) { File.open(path, "a") },
    device: ->(_) { "/dev/full" }
  }.freeze

  PLACES.each do |name, place|
    define_method(:"test_a_time_limit_ends_a_copy_of_what_does_not_come_to_a_#{name}") do
      Dir.mktmpdir do |folder|
        in_fiber do
          reader, = kept = IO.pipe
          assert_raises(Timeout::Error) { Timeout.timeout(0.02) { IO.copy_stream(reader, place.call("#{folder}/file")) } }
          kept
        end
      end
    end
  end

  def test_a_time_limit_ends_a_copy_from_a_fifo_by_its_path
    Dir.mktmpdir do |folder|
      File.mkfifo("#{folder}/fifo")
      in_fiber do
        kept = File.open("#{folder}/fifo", "r+")
        assert_raises(Timeout::Error) { Timeout.timeout(0.02) { IO.copy_stream("#{folder}/fifo", "#{folder}/file") } }
        kept
      end
    end
  end

  def test_a_copy_by_paths_is_what_plain_ruby_makes_of_it
    Dir.mktmpdir do |folder|
      File.write("#{folder}/source", "0123456789")
      in_fiber do
        reader, writer = IO.pipe
        writer << "line\nrest"
        writer.close
        reader.gets
        assert_equal 4, IO.copy_stream(reader, "#{folder}/target")
        assert_equal "rest", File.read("#{folder}/target")
        assert_equal 10, IO.copy_stream("#{folder}/source", "#{folder}/target")
        assert_equal 3, IO.copy_stream("#{folder}/source", Pathname("#{folder}/target"), 3, 2)
        assert_equal "234", File.read("#{folder}/target")
        assert_equal 3, IO.copy_stream("#{folder}/target", File.open("#{folder}/source", "a"))
        assert_equal "0123456789234", File.read("#{folder}/source")
        assert_raises(Errno::ENOENT) { IO.copy_stream("#{folder}/none", "#{folder}/target") }
        assert_equal "234", File.read("#{folder}/target")
        assert_raises(Errno::ESPIPE) { IO.copy_stream(IO.pipe.first, "#{folder}/target", 1, 1) }
      end
    end
  end

  # What moves bytes from the standard input to a pipe by a splice of the ring's: to what is in blocking mode.
  MOVES = {
    copy_stream: "Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule { puts IO.copy_stream($stdin, writer) }",
    splice: "puts UM.new.splice(0, writer.fileno, 100)",
    tee: "puts UM.new.tee(0, writer.fileno, 100)"
  }.freeze

  # One that waits when its process is stopped is begun again (SIGSTOP, signal(7)).
  MOVES.each do |name, move|
    define_method("test_a_stop_of_the_process_ends_no_#{name}") do
      input, writer = IO.pipe
      output, to = IO.pipe
      program = "require 'io/nonblock'; _, writer = IO.pipe.each { |io| io.nonblock = false }; $stdin.nonblock = false; #{move}"
      pid = spawn(*ruby_command(program), in: input, %i[out err] => to)
      [input, to].each(&:close)
      ended = Process.detach(pid)
      3.times do
        Thread.pass until splices?(pid) || !ended.alive?
        stop_and_continue(pid) if ended.alive?
      end
      writer.write("text") if ended.alive?
      writer.close
      assert_equal "4\n", output.read
      ended.join
    end
  end

  def stop_and_continue(pid)
    Process.kill(:STOP, pid)
    Thread.pass until File.read("/proc/#{pid}/stat").match?(/\) [TZ] /)
    Process.kill(:CONT, pid)
  end

  # Whether a thread of the kernel's waits in an operation of the process's ring (io_uring(7), iou-wrk).
  def splices?(pid)
    Dir.glob("/proc/#{pid}/task/*/stat").any? { |path| File.read(path).match?(/\(iou-wrk-\d+\) S/) }
  rescue Errno::ENOENT, Errno::ESRCH
    false
  end
end
