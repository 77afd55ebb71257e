# frozen_string_literal: true

require_relative "../test_helper"

# UM::IO: buffered streams.
class TestMachineIO < MachineTest
  class TooLate < StandardError; end

  def setup
    super
    @reader, @writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
    @io = UM::IO.new(machine, @reader)
  end

  def write(bytes) = machine.write(@writer, bytes)

  # Has the bytes read before more come.
  def write_alone(bytes)
    write(bytes)
    2.times { machine.snooze }
  end

  def finish = machine.close(@writer)

  def pair = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })

  def test_read_exactly_up_to_and_all
    write("foobarbaz")
    assert_equal "foo", @io.read(3)
    assert_equal "ba", @io.read(-2)
    assert_equal "rbaz", @io.read(0)
    write("12")
    finish
    assert_nil @io.read(3)
    assert_equal "12", @io.read(-3)
    assert_nil @io.read(1)
    assert_nil @io.read(0)
    assert_nil @io.read(-1)
    assert_predicate @io, :eof?
  end

  def test_read_waits_for_all_of_it_in_however_many_pieces
    fiber = machine.spin { @io.read(9) }
    %w[foo bar baz].each { |piece| write_alone(piece) }
    assert_equal "foobarbaz", machine.join(fiber)
  end

  def test_read_line_knows_both_newlines_and_the_last_line_without_one
    write("foo\nbar\r\n\n\r\nlast")
    finish
    assert_equal ["foo", "bar", "", "", "last", nil, nil], Array.new(7) { @io.read_line(0) }
  end

  def test_read_line_of_pieces
    fiber = machine.spin { [@io.read_line, @io.read_line] }
    ["fo", "o\r", "\nb", "ar", "\n"].each { |piece| write_alone(piece) }
    assert_equal %w[foo bar], machine.join(fiber)
  end

  def test_read_line_with_a_limit_consumes_nothing_beyond_it
    write("foobar\r\n")
    assert_nil @io.read_line(3)
    assert_equal "foobar", @io.read_line(0)
    write("baz\nbizz\nend")
    assert_nil @io.read_line(3)
    assert_equal "baz", @io.read_line(4)
    assert_equal "bizz", @io.read_line(100)
    finish
    assert_nil @io.read_line(2)
    assert_equal "end", @io.read_line(4)
  end

  def test_read_to_delim
    write("abc,def,ghi")
    finish
    assert_nil @io.read_to_delim("!", 0)
    assert_nil @io.read_to_delim(",", 2)
    assert_equal "abc", @io.read_to_delim(",", 0)
    assert_equal "d", @io.read_to_delim(",", -1)
    assert_equal "ef", @io.read_to_delim(",")
    assert_nil @io.read_to_delim(",", 0)
    assert_equal "ghi", @io.read_to_delim(",", -30)
    assert_raises(ArgumentError) { @io.read_to_delim(:foo, 0) }
    ["", "ab", "é"].each { |delimiter| assert_raises(UM::Error) { @io.read_to_delim(delimiter, 0) } }
  end

  def test_skip
    write("foobarbaz")
    assert_equal 2, @io.skip(2)
    assert_equal "obar", @io.read(4)
    finish
    assert_equal 3, @io.skip(10)
    assert_equal 0, @io.skip(1)
    assert_names("count", ArgumentError) { @io.skip(-1) }
  end

  def test_read_each_gives_views_that_end_with_the_block
    kept = nil
    sizes = []
    fiber = machine.spin do
      @io.read_each do |buffer|
        sizes << buffer.get_string
        assert_predicate buffer, :readonly?
        kept = buffer
      end
    end
    %w[foo barb].each do |piece|
      write(piece)
      machine.snooze until sizes.include?(piece)
    end
    finish
    assert_same @io, machine.join(fiber)
    assert_equal %w[foo barb], sizes
    assert_predicate kept, :null?
    assert_raises(ArgumentError) { @io.read_each }
  end

  def test_an_exception_in_read_each_reaches_the_caller
    write("x")
    assert_raises(TooLate) { @io.read_each { raise TooLate } }
    write("y")
    assert_equal(:left, @io.read_each { break :left })
    write("z")
    assert_equal "z", @io.read(1)
  end

  def test_bytes_are_counted
    assert_equal [0, 0], [@io.consumed, @io.pending]
    write("foobar")
    @io.read(2)
    assert_equal [2, 4], [@io.consumed, @io.pending]
    @io.skip(1)
    assert_equal [3, 3], [@io.consumed, @io.pending]
    write("abc\n")
    @io.read_line
    assert_equal [10, 0], [@io.consumed, @io.pending]
  end

  def test_clear_throws_away_and_starts_anew
    write("foobar")
    @io.read(1)
    assert_same @io, @io.clear
    assert_equal 0, @io.pending
    write("baz")
    assert_equal "baz", @io.read(3)
  end

  def test_what_is_left_at_the_end_is_at_its_end
    one, other = pair
    machine.write(one, "foobar")
    machine.close(one)
    left = machine.io(other) { |io| io.read(3) && io }
    refute_predicate left, :eof?
    left = machine.io(other) { |io| io.read(3) && io }
    # Faults may have the end come later than the bytes.
    left.read(1) if ENV.key?("UM_FAULTS")
    assert_predicate left, :eof?
    one, other = pair
    machine.write(one, "foobar")
    machine.close(one)
    left = machine.io(other) { |io| io.read(6) && io }
    left.read(1) if ENV.key?("UM_FAULTS")
    assert_predicate left, :eof?
    assert_nil left.read(1)
  end

  def test_clear_begins_anew_after_the_end_and_after_an_error
    Tempfile.create do |file|
      io = machine.io(opened(machine.open(file.path, UM::O_RDONLY)))
      File.write(file.path, "one\n")
      assert_equal ["one", nil, nil, true], [io.read_line, io.read_line, io.read(1), io.eof?]
      File.write(file.path, "two\nthr", mode: "a")
      assert_nil io.read_line
      refute_predicate io.clear, :eof?
      assert_equal ["two", "thr", nil], [io.read_line, io.read_line, io.read_line]
      File.write(file.path, "ee\n", mode: "a")
      assert_equal ["ee", nil], [io.clear.read_line, io.read_line]
    end
    one, other = pair
    io = machine.io(other, :socket)
    machine.send(one, "last")
    machine.shutdown(one, UM::SHUT_WR)
    assert_equal ["last", nil], [io.read(4), io.read(1)]
    assert_nil io.clear.read(1)
  end

  # A reset that is seen together with bytes: first the bytes, then the error, and never a clean end.
  def test_a_line_that_a_reset_has_cut_off_is_no_line
    reads = {
      read_line: ->(io) { io.read_line }, read: ->(io) { io.read(10) }, read_to_delim: ->(io) { io.read_to_delim(";") }, skip: ->(io) { io.skip(100) }, resp_read: ->(io) { io.resp_read },
      read_each: ->(io) { io.read_each { |buffer| assert_equal "pay 10", buffer.get_string } }, negative: ->(io) { io.read_to_delim(";", -100) }, many: ->(io) { 2.times { io.read(0) } }
    }
    reads.each do |name, read|
      %i[fd socket].each do |mode|
        [true, false].each do |armed|
          server = opened(machine.tcp_listen("127.0.0.1", 0))
          client = TCPSocket.new("127.0.0.1", machine.sockname(server).last)
          peer = opened(machine.accept(server))
          io = machine.io(peer, mode)
          client.write("one\n")
          assert_equal "one", io.read_line
          if armed
            reader = machine.spin { read.call(io) rescue $!.class }
            3.times { machine.submit && machine.snooze }
          end
          client.write("pay 10")
          client.setsockopt(:SOCKET, :LINGER, [1, 0].pack("ii"))
          client.close
          reader ||= machine.spin { read.call(io) rescue $!.class }
          assert_equal Errno::ECONNRESET, machine.join(reader), "#{name} #{mode} #{armed}"
          refute_predicate io, :eof?
        end
      end
    end
  end

  def test_every_byte_of_much_data_in_every_mode
    bytes = Random.bytes(2_000_000)
    [[@reader, @writer, :fd], [*pair, :fd], [*pair, :socket]].each do |from, to, mode|
      sender = machine.spin { machine.io(to, mode == :fd && to == @writer ? :fd : mode) { |io| io.write(bytes[0, 999_999], bytes[999_999..]) } }
      io = machine.io(from, mode)
      received = +"".b
      received << io.read(-60_001) while received.bytesize < bytes.bytesize
      assert_equal bytes.bytesize, machine.join(sender)
      assert_equal bytes, received, mode
    end
  end

  def test_one_read_of_more_than_is_read_ahead
    one, other = pair
    bytes = Random.bytes(3_000_000)
    machine.spin { machine.sendv(one, bytes) }
    assert_equal bytes, machine.io(other, :socket).read(bytes.bytesize)
  end

  def test_a_peer_that_sends_much_fills_no_memory
    one, other = pair
    io = machine.io(other, :socket)
    sent = 0
    sender = machine.spin { loop { sent += machine.send(one, "x" * 10_000) } }
    io.read(1)
    200.times { machine.snooze }
    assert_operator io.pending, :<, 1_500_000
    assert_operator sent, :<, 3_000_000
    io.read(sent - 1)
    machine.terminate(sender)
    machine.join(sender)
  end

  def test_lines_of_a_file
    io = machine.io(opened(IO.sysopen(__FILE__)))
    lines = []
    while (line = io.read_line(0))
      lines << line
    end
    assert_equal File.binread(__FILE__).lines(chomp: true), lines
  end

  def test_a_read_that_is_cut_off_loses_nothing
    write("part")
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { @io.read(10) } }
    write(" and the rest")
    assert_equal "part and the rest", @io.read(17)
  end

  def test_two_fibers_do_not_read_at_once
    fiber = machine.spin { @io.read(1) }
    machine.snooze
    assert_raises(UM::Error) { @io.read(1) }
    assert_raises(UM::Error) { @io.clear }
    write("x")
    assert_equal "x", machine.join(fiber)
  end

  def test_modes_and_targets
    assert_equal :fd, @io.mode
    assert_equal :socket, machine.io(@reader, :socket).mode
    assert_raises(Errno::ENOTSOCK) { machine.io(@reader, :socket).read(0) }
    assert_raises(UM::Error) { machine.io(@reader, :other) }
    assert_names("target", TypeError) { machine.io("x") }
    assert_names("target", TypeError) { machine.io(nil) }
    assert_names("target", TypeError) { machine.io("x", :fd) }
    assert_names("target", TypeError) { machine.io(@reader, :ssl) }
    assert_names("target", ArgumentError) { machine.io(1 << 40) }
    assert_raises(TypeError) { UM::IO.new(1, @reader) }
    assert_raises(ArgumentError) { UM::IO.new(machine) }
    assert_raises(Errno::EBADF) { machine.io(9999).read(1) }
    assert_raises(Errno::EBADF) { machine.io(9999).write("x") }
    assert_raises(Errno::EBADF) { machine.io(9999, :socket).write("x") }
    assert_raises(UM::Error) { UM::IO.allocate.read(1) }
    assert_raises(UM::Error) { machine.io(@writer).write([]) }
    assert_names("limit", ArgumentError) { @io.read_line(-1) }
    assert_names("length", TypeError) { @io.read("3") }
    assert_names("limit", TypeError) { @io.read_to_delim(",", "1") }
  end

  def test_the_block_form_clears_however_it_ends
    write("foobar")
    kept = nil
    assert_equal "foo", machine.io(@reader) { |io| (kept = io).read(3) }
    assert_equal 0, kept.pending
    write("x")
    assert_raises(TooLate) { machine.io(@reader) { |io| (kept = io).read(1) && raise(TooLate) } }
    eventually { machine.metrics[:ops_pending].zero? }
  end

  # The number is another file's by the time of the second call, which must not take the stream from the first.
  def test_a_call_leaves_the_stream_to_the_one_that_reads
    keep_numbers
    # A read that is submitted before the number is the other file's, since the clock has gone on, is of no file: once more.
    results = nil
    100.times do
      results = two_calls_of_one_stream
      break unless results.first.is_a?(Errno::EBADF)
    end
    assert_equal ["hello", UM::Error], results
  end

  def two_calls_of_one_stream
    reader, writer = IO.pipe
    number = reader.fileno
    copy = reader.dup
    reader.close
    io = UM::IO.new(machine, number)
    first = machine.spin { io.read(-10) }
    second = machine.spin do
      @kept = copy.dup
      assert_equal number, @kept.fileno
      io.read(-5)
    rescue UM::Error => e
      e.class
    end
    third = machine.spin do
      3.times { machine.snooze }
      writer << "hello"
      GC.enable
      GC.start
      GC.disable
    end
    machine.join(first, second, third).first(2)
  ensure
    [copy, writer, @kept].each(&:close)
  end

  def test_streams_that_are_dropped_while_they_read_are_stopped
    others = Array.new(50) { pair.last }
    machine.await(others.map { |other| machine.spin { machine.timeout(0.001, TooLate) { UM::IO.new(machine, other, :socket).read(1) } rescue TooLate } })
    # Some may seem to be in use: Ruby looks for references on the stack, too.
    20.times do
      GC.start
      machine.sleep(0.001)
      break if machine.metrics[:ops_pending] < 25
    end
    assert_operator machine.metrics[:ops_pending], :<, 25
  end
end
