# frozen_string_literal: true

require_relative "../test_helper"

# Registered buffers: UM#register_buffers and UM::BufferPool.
class TestMachineBufferPool < MachineTest
  class TooLate < StandardError; end

  def pipe = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })

  def pool(count = 2, size = 65_536) = machine.register_buffers(count: count, size: size)

  def test_a_buffer_of_the_pool_and_a_slice_of_it_are_read_into_and_written_from
    buffers = pool
    reader, writer = pipe
    bytes = Random.bytes(60_000)
    buffers.acquire do |buffer|
      assert_equal 65_536, buffer.size
      buffer.set_string(bytes)
      assert_equal 60_000, machine.write(writer, buffer, 60_000)
      buffer.clear
      assert_equal 60_000, machine.read(reader, buffer, nil)
      assert_equal bytes, buffer.get_string(0, 60_000)
      slice = buffer.slice(100, 50)
      slice.set_string("slice")
      assert_equal 5, machine.write(writer, slice, 5)
      assert_equal 5, machine.read(reader, slice, nil, 10)
      assert_equal "slice", slice.get_string(10, 5)
    end
    assert_equal 4, machine.metrics[:total_fixed_ops]
    machine.write(writer, IO::Buffer.new(10))
    assert_equal 4, machine.metrics[:total_fixed_ops]
  end

  def test_sockets_too_small_and_large
    one, other = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })
    server = opened(machine.tcp_listen("127.0.0.1", 0))
    client = opened(machine.tcp_connect("127.0.0.1", machine.sockname(server).last))
    accepted = opened(machine.accept(server))
    [[one, other], [client, accepted]].each do |from, to|
      [10, 5_000, 65_536].each do |size|
        pool.acquire do |buffer|
          bytes = Random.bytes(size)
          buffer.set_string(bytes)
          sender = machine.spin { machine.send(from, buffer, size, UM::MSG_WAITALL) }
          received = +"".b
          received << (+"".b).tap { |piece| machine.recv(to, piece, 65_536, 0) } while received.bytesize < size
          assert_equal size, machine.join(sender)
          assert_equal bytes, received
          machine.spin { machine.sendv(from, bytes) }
          there = 0
          there += machine.recv(to, buffer.slice(there), nil, 0) while there < size
          assert_equal bytes, buffer.get_string(0, size)
        end
      end
    end
  end

  def test_files_at_positions_and_without_the_page_cache
    Tempfile.create("um", "/var/tmp") do |file|
      bytes = Random.bytes(65_536)
      pool.acquire do |buffer|
        buffer.set_string(bytes)
        assert_equal 65_536, machine.write(file.fileno, buffer, nil, 4096)
        buffer.clear
        fd = opened(machine.open(file.path, UM::O_RDONLY | UM::O_DIRECT))
        assert_equal 65_536, machine.read(fd, buffer, nil, 0, 4096)
        assert_equal bytes, buffer.get_string
      end
    end
  end

  def test_the_schedulers_hooks_use_them_without_being_asked
    result = nil
    Thread.new do
      Fiber.set_scheduler(scheduler = UM::FiberScheduler.new)
      Fiber.schedule do
        buffers = scheduler.machine.register_buffers(count: 1, size: 65_536)
        Tempfile.create("um", "/var/tmp") do |file|
          bytes = Random.bytes(65_536)
          buffers.acquire do |buffer|
            buffer.set_string(bytes)
            buffer.write(file)
            buffer.clear
            direct = File.open(file.path, File::RDONLY | File::DIRECT)
            buffer.read(direct)
            result = buffer.get_string == bytes && scheduler.machine.metrics[:total_fixed_ops].positive?
          end
        end
      end
    end.join
    assert result
  end

  def test_acquire_waits_for_a_release_first_come_first_served
    buffers = pool(1)
    held = buffers.acquire
    assert_equal 0, buffers.available
    got = []
    fibers = Array.new(3) { |number| machine.spin { buffers.acquire { got << number } } }
    machine.snooze
    assert_empty got
    assert_same buffers, buffers.release(held)
    machine.join(fibers)
    assert_equal [0, 1, 2], got
    assert_equal 1, buffers.available
  end

  def test_acquire_can_time_out_and_be_cut_off
    buffers = pool(1)
    held = buffers.acquire
    assert_raises(IO::TimeoutError) { buffers.acquire(timeout: 0.005) }
    assert_raises(TooLate) { machine.timeout(0.005, TooLate) { buffers.acquire } }
    buffers.release(held)
    assert_same held, buffers.acquire(timeout: 0.005)
  end

  def test_the_block_gives_it_back_however_it_ends
    buffers = pool(1)
    assert_equal(:value, buffers.acquire { :value })
    assert_raises(TooLate) { buffers.acquire { raise TooLate } }
    assert_equal(:left, catch(:out) { buffers.acquire { throw :out, :left } })
    assert_equal 1, buffers.available
  end

  def test_a_release_while_an_operation_runs_is_refused
    buffers = pool(1)
    reader, writer = pipe
    buffer = buffers.acquire
    [buffer, buffer.slice(16, 16)].each do |part|
      fiber = machine.spin { machine.read(reader, part, 16) }
      machine.snooze
      assert_raises(UM::Error) { buffers.release(buffer) }
      machine.write(writer, "x")
      assert_equal 1, machine.join(fiber)
    end
    buffers.release(buffer)
    assert_raises(UM::Error) { buffers.release(buffer) }
    assert_raises(UM::Error) { buffers.release(IO::Buffer.new(1)) }
    assert_raises(UM::Error) { buffers.release(nil) }
  end

  def test_another_machine_uses_it_as_plain_memory
    buffers = pool(1)
    reader, writer = pipe
    buffers.acquire do |buffer|
      other = UM.new
      other.write(writer, "elsewhere")
      assert_equal 9, other.read(reader, buffer, nil)
      assert_equal 0, other.metrics[:total_fixed_ops]
      assert_equal "elsewhere", buffer.get_string(0, 9)
    end
  end

  def test_after_close_nothing_can_be_used
    buffers = pool(2)
    kept = buffers.acquire
    assert_raises(UM::Error) { buffers.close }
    buffers.release(kept)
    refute_predicate buffers, :closed?
    assert_nil buffers.close
    assert_predicate buffers, :closed?
    assert_raises(UM::Error) { buffers.acquire }
    assert_raises(UM::Error) { buffers.close }
    assert_predicate kept, :null?
    assert_equal 0, kept.size
    3.times { pool(2).close }
  end

  def test_pools_that_are_dropped_give_their_memory_back
    assert_equal([1000] * 20, Array.new(20) { pool(1000, 4096).available })
  end

  def test_buffers_survive_compaction
    buffers = pool(4)
    buffer = buffers.acquire
    buffer.set_string("kept")
    GC.verify_compaction_references(toward: :empty, expand_heap: true)
    assert_equal "kept", buffer.get_string(0, 4)
    buffers.release(buffer)
    assert_equal 4, buffers.available
  end

  def test_a_limit_on_locked_memory_is_named
    code = <<~RUBY
      Process::Sys.setuid(65534) if Process.uid.zero?
      Process.setrlimit(:MEMLOCK, 1 << 20)
      begin
        UM.new.register_buffers(count: 64, size: 1 << 20)
      rescue Errno::ENOMEM => e
        puts e.message
      end
    RUBY
    output, = ruby(code)
    assert_match(/67108864 bytes cannot be locked; RLIMIT_MEMLOCK is 1048576 bytes/, output)
  end

  def test_bad_arguments
    assert_names("count", ArgumentError) { machine.register_buffers(count: 0, size: 1) }
    assert_names("count", ArgumentError) { machine.register_buffers(count: 4097, size: 1) }
    assert_names("count", TypeError) { machine.register_buffers(count: "1", size: 1) }
    assert_names("size", ArgumentError) { machine.register_buffers(count: 1, size: 1 << 40) }
    assert_names("size", TypeError) { machine.register_buffers(count: 1, size: nil) }
    assert_raises(ArgumentError) { machine.register_buffers(count: 1) }
    assert_raises(ArgumentError) { machine.register_buffers }
    all = UM.new
    kept = all.register_buffers(count: 4096, size: 1)
    assert_raises(Errno::ENOBUFS) { all.register_buffers(count: 1, size: 1) }
    assert_equal 4096, kept.available
    assert_raises(UM::Error) { UM::BufferPool.new.acquire }
    assert_names("timeout", TypeError) { pool.acquire(timeout: "1") }
    assert_raises(ArgumentError) { pool.acquire(1) }
  end
end
