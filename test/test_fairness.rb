# frozen_string_literal: true

require_relative "test_helper"
require "openssl"
require "zlib"

# A fiber whose operations never have to wait lets the ready go first, after some milliseconds.
class TestFairness < SchedulerTest
  # More than is done before others get their turn, on any machine; the test fails where they never do.
  MOST = 1_000_000

  # Work of one step each, that never waits.
  WORKS = {
    lines: lambda do |folder|
      File.write(path = File.join(folder, "lines"), "line of a file\n" * 10_000)
      file = File.open(path)
      -> { file.gets || file.rewind }
    end,
    read: lambda do |folder|
      File.write(path = File.join(folder, "bytes"), "x" * 65_536)
      file = File.open(path)
      -> { file.rewind && file.sysread(65_536) }
    end,
    pread: lambda do |folder|
      File.write(path = File.join(folder, "bytes"), "x" * 65_536)
      file = File.open(path)
      -> { file.pread(1000, 0) }
    end,
    write: lambda do |folder|
      file = File.open(File.join(folder, "written"), "w")
      file.sync = true
      -> { file.rewind && file.write("x" * 100_000) }
    end,
    small_files: ->(folder) { -> { File.write(File.join(folder, "small"), "x") && File.read(File.join(folder, "small")) } },
    socket: lambda do |_|
      one, other = UNIXSocket.pair
      -> { one.write("x") && other.readpartial(1) }
    end,
    pipe: lambda do |_|
      reader, writer = IO.pipe
      writer.sync = true
      -> { writer.write("x") && reader.readpartial(1) }
    end,
    messages: lambda do |_|
      one, other = UNIXSocket.pair(:DGRAM)
      -> { one.syswrite("x") && other.readpartial(1) }
    end,
    select: lambda do |_|
      reader, writer = IO.pipe
      writer << "x"
      -> { IO.select([reader], [writer]) }
    end,
    ready: lambda do |_|
      reader, writer = IO.pipe
      writer << "x"
      -> { reader.wait_readable }
    end
  }.freeze

  WORKS.each do |name, prepare|
    # Another fiber is ready, another waits for the time, and another for what has come.
    define_method(:"test_others_run_beside_#{name}") do
      Dir.mktmpdir do |folder|
        turns = []
        steps = 0
        scheduled do
          Fiber.schedule do
            work = prepare.call(folder)
            (work.call && steps += 1) until turns.size == 3 || steps == MOST
          end
          reader, writer = IO.pipe
          writer << "x"
          Fiber.schedule { [Fiber.scheduler.yield, turns << :ready] }
          Fiber.schedule { sleep(0.001) && turns << :time }
          Fiber.schedule { reader.wait_readable && turns << :come }
        end

        assert_equal %i[come ready time], turns.sort
        assert_operator steps, :<, MOST
      end
    end
  end
end
