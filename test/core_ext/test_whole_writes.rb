# frozen_string_literal: true

require_relative "../test_helper"
require "delegate"

# What is written by one call is one message of a socket that keeps them apart, under the scheduler as without it.
class TestWholeWrites < SchedulerTest
  # Its own to_s is no String.
  class Odd
    def to_s = nil
  end

  # to_s may be called once only.
  class Once
    def to_s = @said ? raise("again") : (@said = true) && "once"
  end

  WRITES = {
    puts: ->(io) { io.puts("line") }, puts_several: ->(io) { io.puts("one", 2, :three) }, puts_array: ->(io) { io.puts(["one", ["two", nil]]) },
    puts_ended: ->(io) { io.puts("line\n") }, puts_empty: ->(io) { io.puts("") }, puts_nothing: ->(io) { io.puts },
    write: ->(io) { io.write("a", :b, 3, nil, 4.5) }, write_one: ->(io) { io.write("a") }, write_none: ->(io) { io.write }, write_empty: ->(io) { io.write("").to_s + io.write("", "").to_s + (io << "").class.to_s },
    print: ->(io) { io.print("a", "b") }, encodings: ->(io) { io.write("é", "e".encode("US-ASCII"), "\xff".b) }, wide: ->(io) { io.write("é".encode("UTF-16LE"), "x") },
    bytes: ->(io) { io.write("\xff".b, "x", "\xfe".b) }, much: ->(io) { io.write("a" * 50_000, "b" * 30_000) }, once: ->(io) { io.write(Once.new, Once.new) },
    odd: ->(io) { io.write("a", Odd.new).to_s + io.write(Odd.new).to_s }, raises: ->(io) { io.write("a", Class.new { def to_s = raise(KeyError) }.new) },
    frozen: ->(io) { io.freeze.write("a", "b") }
  }.freeze

  # What a write answers, and the messages that come of it.
  def messages_of(kind, write)
    one, other = UNIXSocket.pair(kind)
    answer = begin
      write.call(one)
    rescue StandardError => e
      e.class
    end
    one.close
    messages = []
    loop do
      message = other.recv_nonblock(200_000)
      break if message.nil? || (message.empty? && messages.last(3) == [""] * 3)

      messages << message
    end
  rescue IO::WaitReadable, EOFError, Errno::ECONNRESET
    [answer, messages.map { |message| message.gsub(/0x\h+/, "address") }]
  else
    [answer, messages.map { |message| message.gsub(/0x\h+/, "address") }]
  ensure
    other.close
  end

  WRITES.each do |name, write|
    define_method(:"test_#{name}") do
      %i[SEQPACKET DGRAM].each do |kind|
        without = messages_of(kind, write)
        with = in_fiber { messages_of(kind, write) }
        assert_equal without, with, kind
        if %i[puts puts_several write much].include?(name)
          assert_equal({ puts: 1, puts_several: 3, write: 1, much: 1 }.fetch(name), with.last.size, "the test sees no messages")
        end
      end
    end
  end

  # Under a scheduler of a program's own class, or one that delegates, whose hooks are asked.
  def test_other_classes_of_schedulers
    asked = []
    counting = Class.new(UM::FiberScheduler) { define_method(:io_write) { |*arguments| (asked << :io_write) && super(*arguments) } }
    [counting.new, SimpleDelegator.new(UM::FiberScheduler.new)].each do |scheduler|
      one, other = UNIXSocket.pair(:SEQPACKET)
      Thread.new do
        Fiber.set_scheduler(scheduler)
        Fiber.schedule { one.puts("line") || one.write("a", "b") && one.write("c") }
      end.join
      assert_equal %W[line\n ab c], Array.new(3) { other.recv(10) }
      one.close
    end
    assert_equal [:io_write] * 3, asked
  end

  # What does not fit is Ruby's to wait with: every byte once, and in its place.
  def test_more_than_a_socket_takes
    bytes = Random.bytes(3_000_000)
    in_fiber do
      one, other = UNIXSocket.pair
      counts = []
      Fiber.schedule do
        counts << one.write(bytes, bytes) << one.write("end") << one.puts
        one.close
      end
      assert_equal bytes + bytes + "end\n".b, other.read
      assert_equal [6_000_000, 3, nil], counts
    end
  end

  # What is buffered comes first.
  def test_a_socket_that_is_not_in_step
    in_fiber do
      one, other = UNIXSocket.pair
      one.sync = false
      one.write("a")
      one.sync = true
      one.write("b")
      one.close
      assert_equal "ab", other.read
    end
  end

  # A line of the standard streams is one write: those of several processes are not mixed.
  def test_standard_streams
    %w[$stdout $stderr].each do |stream|
      one, other = UNIXSocket.pair(:SEQPACKET)
      code = <<~RUBY
        #{stream}.sync = true
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule { #{stream}.puts "line", 2; #{stream}.write("a", "b"); #{stream == "$stdout" ? "puts" : "warn"} "kernel's" }
      RUBY
      pid = spawn(*ruby_command(code), stream == "$stdout" ? :out : :err => one)
      one.close
      Process.wait(pid)
      assert_equal ["line\n", "2\n", "ab", "kernel's\n"], Array.new(4) { other.recv(100) }
    end
  end

  # Each String is converted by itself.
  def test_an_encoding_of_its_own
    one, other = UNIXSocket.pair
    one.set_encoding("UTF-16BE")
    in_fiber { assert_equal 4, one.write("é", "x") }
    one.close
    assert_equal "\x00\xE9\x00x".b, other.read
  end

  # Without a scheduler of ours, Ruby's own is called with what it was given.
  def test_other_fibers_and_threads
    one, other = UNIXSocket.pair(:SEQPACKET)
    in_fiber { Thread.new { one.write("a", "b") }.join }
    assert_equal "ab", other.recv(100)
  end

  def test_errors_and_looks_are_rubys
    assert_equal IO.instance_method(:write).arity, UNIXSocket.instance_method(:write).arity
    one, other = UNIXSocket.pair
    one.close
    in_fiber { assert_raises(IOError) { one.write("a", "b") } }
    in_fiber { assert_raises(Errno::EPIPE) { other.write("a", "b") } }
  end
end
