# frozen_string_literal: true

require_relative "../test_helper"

# register_file and unregister_file.
class TestMachineRegisteredFiles < MachineTest
  def setup
    super
    @reader, @writer = UM.pipe
  end

  def teardown
    [@reader, @writer].each { |fd| machine.close(fd) rescue nil }
    super
  end

  # close(2), past the machine, and past Ruby.
  def close_elsewhere(fd) = syscall(RbConfig::CONFIG["host_cpu"] == "aarch64" ? 57 : 3, fd)

  def read(fd = @reader)
    buffer = +""
    machine.read(fd, buffer, 100)
    buffer
  end

  def test_operations_use_the_file_and_not_the_descriptor
    assert_equal @reader, machine.register_file(@reader)
    machine.write(@writer, "one")
    close_elsewhere(@reader)
    assert_equal "one", read
    machine.write(@writer, "two")
    assert_equal UM::POLLIN, machine.poll(@reader, UM::POLLIN)
    assert_equal "two", read
    assert_equal true, machine.unregister_file(@reader)
    assert_equal false, machine.unregister_file(@reader)
    assert_raises(Errno::EBADF) { read }
    # An older kernel lets go of the file a moment later.
    assert_raises(Errno::EPIPE) { machine.sleep(0.001) while machine.write(@writer, "nobody reads") }
  end

  def test_every_kind_of_operation
    listener = TCPServer.new("127.0.0.1", 0)
    machine.register_file(listener.fileno)
    client = TCPSocket.new("127.0.0.1", listener.addr[1])
    server = machine.accept(listener.fileno)
    [client.fileno, server].each { |fd| machine.register_file(fd) }
    pool = machine.register_buffers(count: 1, size: 65_536)
    pool.acquire do |buffer|
      buffer.set_string("f" * 65_536)
      sends = [-> { machine.send(client.fileno, "sent", 4, 0) }, -> { machine.write(client.fileno, "written") },
               -> { machine.writev(client.fileno, "vec", "tor") }, -> { machine.send(client.fileno, buffer, 65_536, UM::MSG_WAITALL) },
               -> { machine.write(client.fileno, buffer, 1000) }]
      sender = machine.spin { sends.each(&:call) }
      expected = "sentwrittenvector#{"f" * 66_536}"
      received = +""
      part = +""
      received << part while received.bytesize < expected.bytesize && machine.recv(server, part, 100_000, 0).positive?
      assert_equal expected, received
      machine.join(sender)
    end
    pool.close
    machine.spin { machine.write(client.fileno, "streamed") }
    machine.read_each(server) do |part|
      assert_equal "streamed", part
      break
    end
    Tempfile.create do |file|
      machine.register_file(file.fileno)
      assert_equal 5, machine.write(file.fileno, "bytes")
      assert_equal 0, machine.fsync(file.fileno)
      assert_equal 5, machine.statx(file.fileno, "", UM::AT_EMPTY_PATH, UM::STATX_ALL)[:size]
      machine.unregister_file(file.fileno)
    end
    [client, listener].each { |io| machine.unregister_file(io.fileno) && io.close }
    machine.close(server)
  end

  def test_the_machines_closes_take_it_out
    %i[close close_async].each do |close|
      reader, writer = UM.pipe
      machine.register_file(writer)
      machine.public_send(close, writer)
      assert_equal "", read(reader)
      assert_equal false, machine.unregister_file(writer)
      machine.close(reader)
    end
  end

  def test_the_close_of_an_io_under_the_scheduler_takes_it_out
    reader, writer = IO.pipe
    Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        Fiber.scheduler.machine.register_file(writer.fileno)
        writer.write("through the scheduler")
        writer.close
        assert_equal "through the scheduler", reader.read
      end
    end.join
  end

  def test_the_close_of_an_io_by_another_thread_takes_it_out
    reader, writer = IO.pipe
    registered = Thread::Queue.new
    closed = Thread::Queue.new
    thread = Thread.new do
      own = UM.new
      own.register_file(writer.fileno)
      registered << true
      own.sleep(0.001) while closed.empty?
    end
    registered.pop
    writer.close
    # The machine may take a moment.
    assert reader.wait_readable(20)
    assert_nil reader.read_nonblock(1, exception: false)
    closed << true
    thread.join
  end

  def test_the_end_of_a_machine_or_its_scheduler_lets_it_go
    ends = {
      scheduler: ->(fd) { Fiber.set_scheduler(UM::FiberScheduler.new) && Fiber.schedule { Fiber.scheduler.machine.register_file(fd) } },
      machine: ->(fd) { UM.new.register_file(fd) }
    }
    ends.each do |name, use|
      reader, writer = IO.pipe
      Thread.new { use.call(writer.fileno) && nil }.join
      writer.close
      # The machine's end is the collector's to find.
      read = nil
      eventually do
        GC.start
        (read = reader.read_nonblock(1, exception: false)) != :wait_readable
      end
      assert_nil read, name
    end
  end

  def test_a_block_has_it_registered_while_it_runs
    result = machine.register_file(@writer) do |fd|
      assert_equal @writer, fd
      machine.write(fd, "x")
      :done
    end
    assert_equal :done, result
    assert_equal false, machine.unregister_file(@writer)
    assert_raises(KeyError) { machine.register_file(@writer) { raise KeyError } }
    assert_equal false, machine.unregister_file(@writer)
  end

  def test_a_descriptor_that_is_another_files_by_now_is_registered_anew
    machine.register_file(@reader)
    close_elsewhere(@reader)
    # The lowest number that is free.
    reader, writer = UM.pipe
    assert_equal @reader, reader
    machine.register_file(reader)
    machine.write(writer, "the new one")
    assert_equal "the new one", read
    machine.close(writer)
  end

  def test_what_is_queued_is_done_before_a_file_is_taken_out
    machine.register_file(@writer)
    machine.write_async(@writer, "queued")
    machine.unregister_file(@writer)
    assert_equal "queued", read
    waiting = machine.spin { read }
    machine.snooze
    machine.register_file(@reader)
    machine.unregister_file(@reader)
    machine.write(@writer, "waited for")
    assert_equal "waited for", machine.join(waiting)
  end

  def test_with_a_thread_of_the_kernel_that_submits
    output, status = ruby(<<~RUBY)
      machine = UM.new(sqpoll: true)
      reader, writer = UM.pipe
      100.times do
        machine.register_file(writer)
        machine.write_async(writer, "x")
        machine.unregister_file(writer)
      end
      buffer = +""
      # FIONREAD: IO#nread is not in every Ruby.
      there = -> { [0].pack("i").tap { |count| IO.for_fd(reader, autoclose: false).ioctl(0x541B, count) }.unpack1("i") }
      machine.sleep(0.001) until there.call == 100
      machine.read(reader, buffer, 200)
      print buffer.bytesize
    RUBY
    assert_equal ["100", true], [output, status.success?]
  end

  def test_many_and_none
    output, = ruby(<<~RUBY)
      Process.setrlimit(:NOFILE, [4096, Process.getrlimit(:NOFILE)[1]].min, Process.getrlimit(:NOFILE)[1])
      machine = UM.new
      pipes = Array.new(513) { UM.pipe }.flatten
      registered = pipes.take_while { |fd| machine.register_file(fd) rescue break(p(fd: pipes.index(fd), error: $!.class)) }
      machine.unregister_file(pipes[3])
      p machine.register_file(pipes[1025]) == pipes[1025]
    RUBY
    assert_equal "{fd: 1024, error: Errno::ENOBUFS}\ntrue\n", output
    assert_raises(Errno::EBADF) { machine.register_file(-1) }
    assert_raises(Errno::EBADF) { machine.register_file(1_000_000) }
    assert_names("fd", TypeError) { machine.register_file(nil) }
    assert_names("fd", TypeError) { machine.unregister_file("1") }
    assert_equal false, machine.unregister_file(-1)
  end
end
