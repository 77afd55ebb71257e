# frozen_string_literal: true

require "openssl"
require_relative "test_helper"
require_relative "identity"

# What has moved counts, whatever ends the wait for the rest: no byte twice, and none lost.
class TestProgress < SchedulerTest
  class Stop < StandardError; end

  # A descriptor that takes some bytes and then waits, and whoever reads it. (What is in blocking mode IO#flush does not ask
  # the scheduler about.)
  TARGETS = { pipe: -> { IO.pipe }, socket: -> { UNIXSocket.pair } }.freeze

  # What ends a wait of a fiber: each is given the fiber's wait as a block.
  ENDS = {
    timeout: ->(_, &wait) { Timeout.timeout(0.01, &wait) },
    limit: lambda do |io, &wait|
      io.timeout = 0.01
      wait.call
    ensure
      io.timeout = nil
    end,
    raise: lambda do |_, &wait|
      fiber = Fiber.current
      raised = false
      Fiber.schedule { sleep(0.01) && !raised && fiber.raise(Stop) }
      wait.call
    ensure
      raised = true
    end
  }.freeze

  TARGETS.each do |kind, open|
    ENDS.each do |how, ending|
      define_method(:"test_a_flush_to_a_#{kind}_that_is_cut_off_by_#{how}_sends_no_byte_twice") do
        received = +""
        in_fiber do
          reader, writer = open.call
          fill(reader, writer)
          writer.sync = false
          writer.write("b" * 8000)
          begin
            ending.call(writer) { writer.flush }
            # Once something has been written, it comes at the next wait.
            Fiber.scheduler.yield
          rescue Timeout::Error, IO::TimeoutError, Stop
            # What was written is off the buffer.
          end
          writer.write("c")
          drain = Thread.new { received << reader.readpartial(65_536) until received.end_with?("c") }
          writer.flush
          drain.join
        end

        assert_equal [8000, 1], [received.count("b"), received.count("c")]
      end
    end
  end

  # On the ring, where OpenSSL takes what the socket does not.
  ENDS.each do |how, ending|
    define_method(:"test_what_an_ssl_socket_is_given_again_after_#{how}_goes_once") do
      context = OpenSSL::SSL::SSLContext.new.tap { |made| made.add_certificate(Identity.certificate, Identity.key) }
      bytes = Random.new(1).bytes(1_000_000)
      received = +""
      ends = 0
      in_fiber do
        sockets = UNIXSocket.pair
        contexts = [context, OpenSSL::SSL::SSLContext.new]
        server, client = sockets.zip(contexts).map { |socket, made| UM::SSL.accelerate(OpenSSL::SSL::SSLSocket.new(socket, made)) }
        accepted = Fiber.schedule { server.accept }
        client.connect
        sleep(0) while accepted.alive?
        reader = nil
        sent = 0
        while sent < bytes.bytesize
          begin
            ending.call(client.to_io) { sent += client.syswrite(bytes.byteslice(sent..)) }
          rescue Timeout::Error, IO::TimeoutError, Stop
            ends += 1
          end
          reader ||= Fiber.schedule { received << server.readpartial(65_536) while received.bytesize < bytes.bytesize } if ends > 0
        end
        begin
          client.flush
          sleep(0) while reader.alive?
        rescue Timeout::Error, IO::TimeoutError, Stop
          # It came with the last bytes: their count was the answer.
          retry
        end
        sockets.each(&:close)
      end

      assert_operator ends, :>, 0
      assert received == bytes, "#{received.bytesize} bytes, not those that were sent"
    end
  end

  # Leaves room for a part of what comes.
  def fill(reader, writer)
    loop { writer.write_nonblock("a" * 1024) }
  rescue IO::WaitWritable
    reader.readpartial(5000)
  end

  def test_an_exception_that_comes_with_progress_is_raised_at_the_next_wait
    log = []
    in_fiber do
      reader, writer = IO.pipe
      fill(reader, writer)
      writer.sync = true
      fiber = Fiber.current
      Fiber.schedule do
        Fiber.scheduler.yield
        fiber.raise(Stop)
      end
      log << (writer.syswrite("b" * 100_000) rescue $!.class)
      log << (Fiber.scheduler.yield rescue $!.class)
      log << (Fiber.scheduler.yield rescue $!.class)
    end

    assert_kind_of Integer, log.first
    assert_equal [Stop, nil], log.drop(1)
  end

  # The kernel does not give up an fsync that is under way: the fiber waits for it, and a second exception waits too. How much
  # there must be to write so that it is under way when both have come depends on the disk.
  def test_a_second_exception_while_an_operation_is_given_up_is_raised_at_the_next_wait
    logs = [8, 32, 128, 512].lazy.map do |megabytes|
      Tempfile.create("um", "/var/tmp") do |file|
        log = []
        in_fiber do |scheduler|
          megabytes.times { file.syswrite(Random.bytes(1 << 20)) }
          syncing = Fiber.schedule do
            scheduler.machine.fsync(file.fileno)
          rescue Stop
            log << :first
            begin
              Fiber.scheduler.yield
            rescue ArgumentError
              log << :second
            end
          end
          # It is submitted, and begun, while this fiber waits.
          sleep(0.001)
          syncing.raise(Stop) if syncing.alive?
          log << :under_way if log.empty?
          syncing.raise(ArgumentError) if syncing.alive?
        end
        log
      end
    end

    assert_equal %i[under_way first second], logs.find { |log| log.first == :under_way }
  end

  def test_a_timeout_whose_block_has_ended_is_raised_nowhere
    result = in_fiber do
      reader, writer = IO.pipe
      fill(reader, writer)
      written = Timeout.timeout(0.01) { writer.syswrite("b" * 100_000) } rescue $!.class
      [written, sleep(0.02)]
    end

    assert_includes [Timeout::Error, Integer], result.first.is_a?(Integer) ? Integer : result.first
    assert_equal 0, result.last
  end
end
