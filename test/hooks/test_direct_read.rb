# frozen_string_literal: true

require_relative "../test_helper"
require "etc"

# IO's methods that read without io_read: they give what they give without a scheduler, and lose nothing.
class TestDirectRead < SchedulerTest
  # What is there before a call, what comes while it waits, and the call.
  CALLS = [
    ["one\ntwo", nil, ->(io) { io.gets }],
    [nil, "\n", ->(io) { io.gets }],
    [nil, "three\nfour\n", ->(io) { io.gets }],
    [nil, nil, ->(io) { io.gets(chomp: true) }],
    ["a,b\n", nil, ->(io) { io.gets(",") }],
    [nil, nil, ->(io) { io.gets(nil, 2) }],
    [nil, "\nrest", ->(io) { io.readline(chomp: true) + io.readline(4) }],
    [nil, "\u00e9x", ->(io) { [io.getc, io.getc] }],
    [nil, "yz", ->(io) { [io.getbyte, io.readbyte] }],
    ["c", nil, ->(io) { [io.eof?, io.eof, io.readchar] }],
    [nil, "d", ->(io) { [io.eof?, io.readpartial(10)] }],
    ["partial", nil, ->(io) { io.readpartial(4) }],
    [nil, nil, ->(io) { io.readpartial(100_000) }],
    [nil, "more", ->(io) { io.readpartial(4096) }],
    [nil, "x" * 3000, ->(io) { io.readpartial(4096).size }],
    [nil, "y" * 3000, ->(io) { io.readpartial(1000).size + io.readpartial(9000).size }],
    ["z" * 5000, nil, ->(io) { io.readpartial(5000).size }],
    ["into", nil, ->(io) { (+"\u00e9" * 9).then { |buffer| [io.readpartial(8, buffer).equal?(buffer), buffer, buffer.encoding] } }],
    [nil, "into", ->(io) { (+"").then { |buffer| [io.read(3, buffer).equal?(buffer), buffer, buffer.encoding] } }],
    [nil, nil, ->(io) { io.readpartial(3, nil) }],
    ["of a length", nil, ->(io) { io.read(2) }],
    [nil, nil, ->(io) { io.recv_or_sysread(4) }],
    [nil, "!" * 2000, ->(io) { io.read(2005) }],
    ["over", nil, ->(io) { [io.read(0), io.readpartial(0), io.read(4)] }],
    ["ungot", nil, ->(io) { io.ungetbyte("x") || io.readpartial(100) }],
    [nil, nil, ->(io) { io.readpartial(-1) }],
    [nil, nil, ->(io) { io.readpartial("1") }],
    [nil, nil, ->(io) { io.readpartial(1, 2) }],
    [nil, nil, ->(io) { io.readpartial }],
    [nil, nil, ->(io) { io.read(1, "frozen".freeze) }],
    ["kept\n", nil, ->(io) { io.readpartial(1, "frozen".freeze) }],
    [nil, nil, ->(io) { io.gets }],
    ["last\nwithout", :close, ->(io) { io.each_line.to_a }],
    [nil, nil, ->(io) { io.gets }],
    [nil, nil, ->(io) { io.read(1) }],
    [nil, nil, ->(io) { io.eof? }],
    [nil, nil, ->(io) { io.getc }],
    [nil, nil, ->(io) { io.readline }],
    [nil, nil, ->(io) { io.readbyte }],
    [nil, nil, ->(io) { (+"old").then { |buffer| [io.read(1, buffer), buffer] } }],
    [nil, nil, ->(io) { io.readpartial(1) }],
    [nil, nil, ->(io) { io.close || io.gets }],
    [nil, nil, ->(io) { io.read(1) }],
    [nil, nil, ->(io) { io.readpartial(1) }]
  ].freeze

  # What refuses to go on where something was read ahead.
  module Unbuffered
    def recv_or_sysread(count) = is_a?(BasicSocket) ? recv(count) : sysread(count)
  end

  def self.tcp
    server = TCPServer.new("127.0.0.1", 0)
    there = TCPSocket.new("127.0.0.1", server.addr[1])
    [server.accept, there]
  ensure
    server.close
  end

  PAIRS = { unix: -> { UNIXSocket.pair }, pipe: -> { IO.pipe }, tcp: -> { tcp } }.freeze
  # Pipes can be tried without waiting from Linux 6.5 on.
  TRIES_PIPES = !ENV["UM_MASK"].to_s.include?("nowait") && (Etc.uname[:release][/\A\d+\.\d+/].split(".").map(&:to_i) <=> [6, 5]) >= 0
  DIRECT = PAIRS.select { |kind, _| kind != :pipe || TRIES_PIPES }.freeze

  # Makes the calls in turn: what each answers, the last line, and the number of the line.
  def answers(io, send)
    CALLS.map do |before, during, call|
      send.call(before) if before
      yield during
      $_ = nil # rubocop:disable Style/SpecialGlobalVars -- gets sets it
      answer = begin
        call.call(io)
      rescue StandardError => e
        [e.class, e.message.gsub(/fd:? ?\d+/, "fd")]
      end
      [answer, (io.lineno unless io.closed?)]
    end
  end

  def sender(io) = ->(bytes) { bytes == :close ? io.close : io.tap { io.sync = true }.write(bytes) }

  # By threads: what comes meanwhile is sent when the reader sleeps.
  def plainly(source, sink)
    requests = Thread::Queue.new
    reader = Thread.new { answers(source, sender(sink)) { |during| requests << during } }
    while reader.alive?
      during = requests.pop(timeout: 0.001) or next
      Thread.pass until reader.status == "sleep"
      sender(sink).call(during)
    end
    reader.value
  end

  def by_fibers(source, sink)
    in_fiber do
      answers(source, sender(sink)) do |during|
        Fiber.schedule { sleep(0) && sender(sink).call(during) } if during
      end
    end
  end

  PAIRS.each do |kind, pair|
    define_method(:"test_calls_on_a_#{kind}") do
      with, without = %i[by_fibers plainly].map do |way|
        source, sink = pair.call
        source.extend(Unbuffered).set_encoding(Encoding::UTF_8)
        __send__(way, source, sink)
      end
      CALLS.each_index { |index| assert_equal without[index], with[index], "call #{index}" }
    end
  end

  def test_the_last_line_is_the_callers
    source, sink = UNIXSocket.pair
    sink << "one\ntwo\nthree\n"
    lines = in_fiber do
      source.gets
      first = $_
      source.gets(chomp: true)
      second = $_
      source.readline
      [first, second, $_, $.]
    end
    assert_equal ["one\n", "two", "three\n", 3], lines
  end

  def test_lines_end_where_the_program_says
    output, = ruby(<<~RUBY)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      source, sink = UNIXSocket.pair
      sink << "a-b-"
      $VERBOSE, $/ = nil, "-"
      Fiber.schedule { p source.gets, source.gets }
    RUBY
    assert_equal %("a-"\n"b-"\n), output
  end

  def test_what_is_to_be_written_first_is_written_first
    here, there = UNIXSocket.pair
    here.sync = false
    line = in_fiber do
      Fiber.schedule { there.write("answer to #{there.readpartial(100)}\n") }
      here.write("question")
      here.gets
    end
    assert_equal "answer to question\n", line
  end

  def test_encodings_are_converted
    here, there = UNIXSocket.pair
    here.set_encoding("UTF-16LE:UTF-8")
    in_fiber do
      there.write("wide\n".encode("UTF-16LE"))
      assert_equal "wide\n", here.gets
      Fiber.schedule { there.write("é".encode("UTF-16LE")) }
      assert_equal "é", here.getc
    end
  end

  def test_nothing_is_lost_of_a_read_that_ends_half_way
    DIRECT.each_value do |pair|
      source, sink = pair.call
      in_fiber do
        sink.write("half")
        assert_raises(Timeout::Error) { Timeout.timeout(0.001) { source.read(8) } }
        assert_equal "half", source.readpartial(8)
        source.timeout = 0.001
        sink.write("ha")
        assert_raises(IO::TimeoutError) { source.read(3, +"") }
        sink.write("lf")
        assert_equal "half", source.read(4)
        [-> { source.gets }, -> { source.readpartial(9) }, -> { source.eof? }].each { |call| assert_raises(IO::TimeoutError, &call) }
      end
    end
  end

  def test_what_comes_together_with_an_exception_is_not_lost
    PAIRS.each do |kind, pair|
      %i[raise kill].product([->(io) { io.getc }, ->(io) { io.readpartial(100) }, ->(io) { io.read(3) }]).each do |how, call|
        source, sink = pair.call
        read = +""
        in_fiber do
          fiber = Fiber.schedule do
            read << call.call(source)
            sleep
          rescue RuntimeError
            nil
          end
          sink.write("abc\n")
          fiber.__send__(how)
          read << source.readpartial(100) until read.size == 4
        end
        assert_equal "abc\n", read, "#{kind}, #{how}"
      end
    end
  end

  def test_a_close_ends_a_read
    PAIRS.each_value do |pair|
      [->(io) { io.gets }, ->(io) { io.readpartial(9) }, ->(io) { io.read(9) }, ->(io) { io.eof? }].each do |call|
        source, = pair.call
        error = nil
        scheduled do
          Fiber.schedule { error = assert_raises(IOError) { call.call(source) } }
          Fiber.schedule { source.close }
        end
        assert_equal "stream closed in another thread", error.message
      end
    end
  end

  # The number is another file's as soon as it is closed.
  def test_nothing_is_read_from_the_file_that_has_the_number_next
    keep_numbers
    PAIRS.values.product([->(io) { io.gets }, ->(io) { io.read(8) }]).each do |pair, call|
      source, sink = pair.call
      source.autoclose = false
      scheduled do |scheduler|
        error = nil
        Fiber.schedule { error = assert_raises(Errno::ECANCELED) { call.call(source) } }
        Fiber.schedule do
          sink.write("half")
          scheduler.machine.close(source.fileno)
          File.open(__FILE__) do |other|
            assert_equal source.fileno, other.fileno
            sleep(0) until error
            assert_equal 0, other.pos
          end
        end
      end
      sink.close
    end
  end

  # The kernel tells of a reset once.
  def test_a_connection_that_is_reset_is_so_called_as_without_a_scheduler
    calls = [->(io) { io.gets }, ->(io) { io.readpartial(9) }, ->(io) { io.read(9) }, ->(io) { io.getc }]
    reset = lambda do |ready, call|
      here, there = self.class.tcp
      there.setsockopt(:SOCKET, :LINGER, [1, 0].pack("ii"))
      there.close if ready
      Fiber.scheduler ? Fiber.schedule { there.close } : there.close
      error = assert_raises(SystemCallError) { call.call(here) }
      [error.class, error.message.sub(/fd:\d+/, "fd"), here.eof?]
    end
    calls.each_with_index do |call, index|
      expected = reset.call(true, call)
      [true, false].each do |ready|
        assert_equal expected, in_fiber { reset.call(ready, call) }, "call #{index}, #{ready}"
      end
    end
  end

  def test_a_string_that_is_fixed_while_it_is_waited_for_loses_nothing
    DIRECT.each_value do |pair|
      source, sink = pair.call
      buffer = +""
      in_fiber do
        Fiber.schedule { buffer.freeze && sink.write("abc") }
        assert_raises(FrozenError) { source.readpartial(3, buffer) }
        assert_equal "abc", source.readpartial(3)
        shorter = +""
        Fiber.schedule do
          sink.write("de")
          sleep(0) until shorter.size == 2
          shorter.clear
          sink.write("f")
        end
        assert_raises(UM::Error) { source.read(3, shorter) }
        assert_includes %w[f], source.readpartial(3)
      end
    end
  end

  def test_fibers_that_read_the_same_get_each_byte_once
    PAIRS.each_value do |pair|
      source, sink = pair.call
      read = []
      scheduled do
        3.times do
          Fiber.schedule do
            while (byte = source.getbyte)
              read << byte
            end
          end
        end
        Fiber.schedule do
          100.times { |byte| sink.putc(byte).then { sink.flush } && sleep(0) }
          sink.close
        end
      end
      assert_equal (0...100).to_a, read.sort
    end
  end

  # One of them has begun a line, for which Ruby waits with the IO's buffer.
  def test_fibers_that_read_lines_of_the_same_lose_nothing
    DIRECT.each do |kind, pair|
      source, sink = pair.call
      sink.sync = true
      lines = []
      scheduled do
        sink.write("be")
        3.times do
          Fiber.schedule do
            while (line = source.gets)
              lines << line
            end
          end
        end
        Fiber.schedule do
          ["gun\ntwo\nthr", "ee\n", "four\nfi", "ve\n" * 2000, "end\n"].each do |bytes|
            sink.write(bytes)
            3.times { sleep(0) }
          end
          sink.close
        end
      end
      assert_equal "begun\ntwo\nthree\nfour\nfi#{"ve\n" * 2000}end\n".chars.sort, lines.join.chars.sort, kind
    end
  end

  # Who has begun a line finds the rest where the other, who wants no more, has left it.
  def test_what_another_has_read_ahead_is_kept
    DIRECT.each do |kind, pair|
      source, sink = pair.call
      sink.sync = true
      lines = []
      scheduled do
        sink.write("par")
        Fiber.schedule do
          while (line = source.gets)
            lines << line
          end
        end
        Fiber.schedule { lines << source.gets }
        Fiber.schedule do
          sink.write("tial\nextra\n")
          sleep(0) until lines.any?
          sink.write("x\n")
          sink.close
        end
      end
      assert_equal "partial\nextra\nx\n".chars.sort, lines.compact.join.chars.sort, kind
    end
  end

  def test_a_file_is_read_as_without_a_scheduler
    Tempfile.create do |file|
      file.write("line\n" * 10_000)
      file.flush
      calls = lambda do
        file.rewind
        buffer = +"old"
        [file.read(3), file.sysread(3), file.pos, file.gets, file.pos, file.readpartial(20_000).size, file.pos, file.read(100_000).size,
         file.read(1), file.eof?, file.pread(4, 10), file.pread(100_000, 49_990).size, file.pread(3, 5, buffer), buffer, file.pos,
         (file.pread(1, 50_000) rescue $!.class), (file.pread(1, -1) rescue $!.class), (file.pread(-1, 0) rescue $!.class), file.pread(0, 60_000)]
      end
      assert_equal calls.call, in_fiber { calls.call }
    end
  end

  # What reads nothing does not wait for anything.
  def test_what_asks_for_nothing_does_not_wait
    calls = [->(io) { io.gets(0) }, ->(io) { io.gets(nil, 0) }, ->(io) { io.readline(0) }, ->(io) { io.read(0) }, ->(io) { io.readpartial(0) },
             ->(io) { io.gets(1, 2, 3) }, ->(io) { io.gets(:line) }, ->(io) { io.read(1, 2) }, ->(io) { io.getc(1) },
             ->(io) { io.each_line(0) {} }, ->(io) { io.each_line.class }, ->(io) { io.readpartial(1, exception: false) }]
    answers = lambda do |pair|
      source, = pair.call
      calls.map do |call|
        call.call(source)
      rescue StandardError => e
        [e.class, e.message]
      end
    end
    PAIRS.each_value { |pair| assert_equal answers.call(pair), in_fiber { answers.call(pair) } }
  end

  # What waits has no memory of the kernel's but a block of the machine's, which is given to the next.
  def test_no_buffer_is_made_for_a_read
    pairs = DIRECT.values.map(&:call)
    in_fiber do
      pairs.each do |source, sink|
        sink.sync = true
        buffer = +""
        calls = {
          1 => -> { sink.write("x\n") && source.gets }, 0 => -> { sink.write("xy") && source.readpartial(2, buffer) && sink.write("z") && source.read(1, buffer) }
        }
        calls.each do |count, call|
          20.times { call.call }
          GC.disable
          before = GC.stat(:total_allocated_objects)
          1_000.times { call.call }
          assert_operator GC.stat(:total_allocated_objects) - before, :<=, (count * 1_000) + 50
          GC.enable
        end
      end
    end
  end

  # A program's own hook is asked.
  def test_a_subclass_that_reads_itself_is_asked
    asked = []
    subclass = Class.new(UM::FiberScheduler) { define_method(:io_read) { |*arguments| super(*arguments).tap { asked << _1 } } }
    source, sink = UNIXSocket.pair
    sink << "line\nrest"
    scheduled(subclass.new) { Fiber.schedule { source.gets && source.readpartial(9) } }
    assert_equal [9], asked
  end
end
