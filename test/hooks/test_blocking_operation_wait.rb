# frozen_string_literal: true

require_relative "../test_helper"
require "tmpdir"

# What has no operation in io_uring runs on workers.
class TestBlocking < SchedulerTest
  def test_an_open_that_blocks_leaves_other_fibers_running
    Dir.mktmpdir do |folder|
      fifo = File.join(folder, "fifo")
      File.mkfifo(fifo)
      received = nil
      scheduled do
        # Each open(2) waits for the other.
        Fiber.schedule { File.open(fifo) { |reader| received = reader.read } }
        Fiber.schedule { File.open(fifo, "w") { |writer| writer << "through a fifo" } }
      end
      assert_equal "through a fifo", received
    end
  end

  def test_a_blocked_operation_is_cancelled_by_a_timeout
    Dir.mktmpdir do |folder|
      fifo = File.join(folder, "fifo")
      File.mkfifo(fifo)
      in_fiber do
        3.times { assert_raises(Timeout::Error) { Timeout.timeout(0.01) { File.open(fifo) } } }
      end
    end
  end

  def test_more_operations_than_workers_all_end
    Dir.mktmpdir do |folder|
      scheduled do
        50.times do |number|
          Fiber.schedule do
            path = File.join(folder, number.to_s)
            File.write(path, number.to_s)
            assert_equal number.to_s, File.read(path)
            File.rename(path, "#{path}.new")
            refute_path_exists path
          end
        end
      end
      assert_equal 50, Dir.children(folder).size
    end
  end

  # In a process of their own: other tests need more.
  def test_several_schedulers_share_the_workers
    output, = ruby(<<~'RUBY')
      require "tempfile"
      path = Tempfile.create("um").path
      threads = Array.new(4) do
        Thread.new do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          10.times { Fiber.schedule { File.rename(path, path) } }
        end
      end
      threads.each(&:join)
      puts (1..8) === Thread.list.count { |thread| thread.name == "um-worker" }
    RUBY
    assert_equal "true\n", output
  end

  def test_zlib_runs
    require "zlib"
    assert_equal("abc" * 1000, in_fiber { Zlib.inflate(Zlib.deflate("abc" * 1000)) })
  end

  def test_copy_stream_between_sockets_and_files
    server = TCPServer.new("127.0.0.1", 0)
    copied = received = nil
    Tempfile.create("um") do |file|
      file.write("c" * 2_000_000)
      file.flush
      scheduled do
        Fiber.schedule { received = server.accept.read.bytesize }
        Fiber.schedule do
          socket = TCPSocket.new("127.0.0.1", server.addr[1])
          File.open(file.path) { |source| copied = IO.copy_stream(source, socket) }
          socket.close
        end
      end
    end
    assert_equal [2_000_000, 2_000_000], [copied, received]
  end
end
