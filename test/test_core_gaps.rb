# frozen_string_literal: true

require_relative "test_helper"

# Core methods that reach no hook of Ruby's: other fibers run meanwhile.
class TestCoreGaps < SchedulerTest
  class TooLate < StandardError; end

  def file
    Tempfile.create("um").tap { |file| (@files ||= []) << file }
  end

  def teardown
    @files&.each { |file| file.close && File.unlink(file.path) }
    super
  end

  def test_flock_waits_while_others_run
    path = file.path
    order = []
    scheduled do
      Fiber.schedule do
        File.open(path) do |holder|
          assert_equal 0, holder.flock(File::LOCK_EX)
          Fiber.schedule do
            File.open(path) do |waiting|
              assert_equal false, waiting.flock(File::LOCK_EX | File::LOCK_NB)
              order << :waits
              assert_equal 0, waiting.flock(File::LOCK_EX)
              order << :has_it
              assert_equal 0, waiting.flock(File::LOCK_UN)
            end
          end
          5.times { sleep(0.001) && (order << :runs) }
          holder.flock(File::LOCK_UN)
        end
      end
    end
    assert_equal [:waits, *[:runs] * 5, :has_it], order
  end

  def test_flock_can_be_cut_off
    path = file.path
    in_fiber do
      File.open(path) do |holder|
        holder.flock(File::LOCK_EX)
        File.open(path) { |waiting| assert_raises(TooLate) { Timeout.timeout(0.01, TooLate) { waiting.flock(File::LOCK_SH) } } }
        holder.flock(File::LOCK_UN)
        File.open(path) { |next_one| assert_equal 0, next_one.flock(File::LOCK_EX | File::LOCK_NB) }
      end
    end
  end

  def test_syncing_and_truncating_flush_first
    io = file
    in_fiber do
      io.write("buffered")
      assert_equal 0, io.fsync
      assert_equal 8, File.size(io.path)
      io.write(" and more")
      assert_equal 0, io.fdatasync
      assert_equal 17, File.size(io.path)
      io.write("!")
      assert_equal 0, io.truncate(3)
      assert_equal 3, File.size(io.path)
    end
  end

  def test_errors_are_those_of_plain_ruby
    reader, = IO.pipe
    closed = file.dup.tap(&:close)
    calls = [-> { reader.fsync }, -> { closed.fsync }, -> { closed.flock(File::LOCK_EX) }, -> { file.truncate(-1) }, -> { file.flock("x") },
             -> { File.open(__FILE__) { |io| io.truncate(1) } }]
    classes = ->(*) { calls.map { |call| call.call && nil rescue $!.class } }
    assert_equal classes.call, in_fiber(&classes)
  end

  def test_names_of_addresses
    address = Addrinfo.tcp("127.0.0.1", 80)
    expected = [address.getnameinfo, Socket.getnameinfo(address.to_sockaddr)]
    assert_equal(expected, in_fiber { [address.getnameinfo, Socket.getnameinfo(address.to_sockaddr)] })
    assert_equal(Socket.getnameinfo(["AF_INET", 80, "localhost"]), in_fiber { Socket.getnameinfo(["AF_INET", 80, "localhost"]) })
  end

  def test_without_our_scheduler_nothing_changes
    io = file
    assert_equal [0, 0, 0], [io.flock(File::LOCK_EX), io.fsync, io.truncate(0)]
  end
end
