# frozen_string_literal: true

require_relative "../test_helper"
require "etc"

# IO#write where what is written goes to the kernel without io_write: nothing of it is lost, repeated or mixed with others'.
class TestDirectWrite < SchedulerTest
  def self.tcp
    server = TCPServer.new("127.0.0.1", 0)
    there = TCPSocket.new("127.0.0.1", server.addr[1])
    [server.accept, there]
  ensure
    server.close
  end

  PAIRS = { unix: -> { UNIXSocket.pair }, pipe: -> { IO.pipe }, tcp: -> { tcp } }.freeze
  WRITES = [
    ->(io) { io.write("bytes") }, ->(io) { io.write(:symbol, 1) }, ->(io) { io.write(nil) }, ->(io) { io.write }, ->(io) { io.write("") },
    ->(io) { (io << "a" << 2).equal?(io) }, ->(io) { io.puts("line", "line\n") }, ->(io) { io.print("a", "b") }, ->(io) { io.printf("%d", 3) },
    ->(io) { io.putc("cd") }, ->(io) { io.write("\u00e9") }, ->(io) { io.set_encoding("UTF-16LE").write("\u00e9") }, ->(io) { io.set_encoding(nil).write("\u00e9") },
    ->(io) { io.sync = false; io.write("kept") }, ->(io) { io.sync = true; io.write(" before") }, ->(io) { io.close_write if io.is_a?(BasicSocket) },
    ->(io) { io.close || io.write("x") }
  ].freeze

  PAIRS.each do |kind, pair|
    define_method(:"test_what_is_written_to_a_#{kind}") do
      write = lambda do
        source, sink = pair.call
        sink.sync = true
        answers = WRITES.map do |call|
          call.call(sink)
        rescue StandardError => e
          [e.class, e.message]
        end
        [answers, source.read]
      end
      assert_equal write.call, in_fiber { write.call }
    end

    # What has no room goes on when there is some, and nobody else's comes between.
    define_method(:"test_writes_to_a_full_#{kind}_stay_whole") do
      source, sink = pair.call
      sink.sync = true
      read = +""
      scheduled do
        writers = Array.new(10) { |letter| Fiber.schedule { assert_equal 300_000, sink.write((97 + letter).chr * 300_000) } }
        Fiber.schedule do
          nil while read.size < 3_000_000 && read << source.readpartial(70_000)
          sleep(0) while writers.any?(&:alive?)
          # Who has waited leaves a lock behind.
          calls = count_of_hooks { 10.times { sink.write("x") } }
          # Pipes can be tried without waiting from Linux 6.5 on.
          assert_equal 0, calls unless kind == :pipe && (Etc.uname[:release][/\A\d+\.\d+/].split(".").map(&:to_i) <=> [6, 5]).negative?
        end
      end
      assert_equal [300_000], read.scan(/(.)(\1*)/).map { |first, rest| first.size + rest.size }.uniq
    end

    # There is room when the second comes, and the first has not gone on.
    define_method(:"test_who_writes_to_a_#{kind}_waits_for_who_has_begun") do
      source, sink = pair.call
      sink.sync = true
      read = +""
      scheduled do
        Fiber.schedule { sink.write("a" * 3_000_000) }
        Fiber.schedule do
          read << source.readpartial(1_000_000)
          Fiber.schedule { sink.write("b") }
          read << source.readpartial(1_000_000) until read.size == 3_000_001
        end
      end
      assert_equal 3_000_000, read.index("b")
    end

    define_method(:"test_an_error_of_a_#{kind}_is_as_without_a_scheduler") do
      write = lambda do
        source, sink = pair.call
        sink.sync = true
        source.close
        Array.new(2) { assert_raises(SystemCallError) { 3.times { sink.write("x") } } }.map { |error| [error.class, error.message] }
      end
      assert_equal write.call, in_fiber { write.call }
    end
  end

  def test_a_file_is_written_to_as_without_a_scheduler
    write = lambda do |mode|
      Tempfile.create do |file|
        file.write("0123456789")
        file.close
        File.open(file.path, mode) do |io|
          io.sync = true
          answers = [io.write("abc"), io.pos, io.write("d" * 3_000_000), io.pos, io.puts("e"), (io.seek(2) && io.write("f")), io.pos]
          [answers, File.binread(file.path)]
        end
      end
    end
    %w[r+ w a a+ w:UTF-16LE].each { |mode| assert_equal write.call(mode), in_fiber { write.call(mode) }, mode }
    assert_raises(IOError) { in_fiber { write.call("r") } }
  end

  def test_a_disk_that_is_full_says_so
    full = lambda do
      File.open("/dev/full", "w") do |io|
        io.sync = true
        error = assert_raises(Errno::ENOSPC) { io.write("x") }
        error.message
      end
    end
    assert_equal full.call, in_fiber { full.call }
  end

  private

  def count_of_hooks(&)
    count = 0
    TracePoint.new(:c_call) { |call| count += 1 if call.method_id == :io_write }.enable(&)
    count
  end
end
