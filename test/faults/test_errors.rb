# frozen_string_literal: true

require "test_helper"

# Without faults some of the programs would never end.
abort "these tests are of what `rake test:faults` compiles in" unless ENV["UM_FEATURES"] == "faults"

# What a program is told, and keeps, when operations fail that seldom do. Each runs in a process of its own, whose variable
# UM_FAULTS says what fails (src/faults); `rake test:faults` compiles it in.
class TestErrors < PatientTest
  EMFILE = Errno::EMFILE::Errno
  ENOMEM = Errno::ENOMEM::Errno
  PREAMBLE = <<~RUBY
    require "socket"
    require "tempfile"
    def scheduled(&) = Thread.new { Fiber.set_scheduler(UM::FiberScheduler.new) && Fiber.schedule(&) }.join
  RUBY

  def under(faults, code)
    output, status = ruby(PREAMBLE + code, env: { "UM_FAULTS" => faults })
    assert_predicate status, :success?, "#{faults}: #{output}"
    output.lines(chomp: true)
  end

  def test_accept_each_says_what_went_wrong_and_can_be_called_again
    assert_equal %w[20 true], under("1,accept=#{EMFILE}:2", <<~RUBY)
      machine = UM.new
      server = machine.tcp_listen("127.0.0.1", 0)
      port = Socket.for_fd(server).tap { |socket| socket.autoclose = false }.local_address.ip_port
      client = Thread.new { 20.times { TCPSocket.open("127.0.0.1", port) { |socket| socket.read } } }
      accepted = errors = 0
      while accepted < 20
        begin
          machine.accept_each(server) { |fd| break machine.close(fd) }
          accepted += 1
        rescue Errno::EMFILE
          errors += 1
        end
      end
      client.join
      puts accepted, errors.positive?
    RUBY
  end

  def test_a_disk_that_is_full_now_and_then_loses_no_byte_that_was_counted
    assert_equal %w[true true], under("1,least=1,write=#{Errno::ENOSPC::Errno}:3", <<~RUBY)
      machine = UM.new
      file = Tempfile.create
      bytes = Random.new(1).bytes(100_000)
      written = errors = 0
      while written < bytes.bytesize
        begin
          written += machine.write(file.fileno, bytes.byteslice(written, 5000))
        rescue Errno::ENOSPC
          errors += 1
        end
      end
      puts File.binread(file.path) == bytes, errors.positive?
    RUBY
  end

  # What has been received before the error is what was sent, in order.
  def test_a_connection_that_is_reset_in_the_middle_of_a_write
    assert_equal %w[true true], under("1,least=1,send=#{Errno::ECONNRESET::Errno}:20", <<~RUBY)
      bytes = Random.new(1).bytes(3_000_000)
      error = received = nil
      scheduled do
        near, far = UNIXSocket.pair
        reader = Fiber.schedule { received = far.read }
        begin
          near.write(bytes) while true
        rescue Errno::ECONNRESET => error
          near.close
        end
      end
      puts error.is_a?(Errno::ECONNRESET), (bytes * (received.bytesize / bytes.bytesize + 1)).start_with?(received)
    RUBY
  end

  def test_a_machine_that_cannot_be_set_up
    lines = under("1,setup=#{ENOMEM}:1", <<~RUBY)
      [UM, UM::FiberScheduler].each { |made| made.new rescue puts "\#{$!.class}: \#{$!.message.delete("\n")}" }
    RUBY
    assert_equal 2, lines.size
    lines.each { |line| assert_match(/\AUringMachine::UnsupportedError: .*memory/, line) }
  end

  # Another try later finds memory.
  def test_what_cannot_be_registered_is_an_error_and_the_machine_goes_on
    lines = under("1,register=#{ENOMEM}:2", <<~RUBY)
      machine = UM.new
      reader, writer = IO.pipe
      trials = {
        buffers: -> { machine.register_buffers(count: 1, size: 4096) },
        file: -> { machine.register_file(reader.fileno) },
        stream: -> { machine.read_each(reader.fileno) { |bytes| break puts(bytes) } }
      }
      writer << "some"
      trials.each_value do |trial|
        trial.call
      rescue Errno::ENOMEM
        retry
      end
      puts machine.sleep(0).inspect
    RUBY
    assert_equal "some", lines.first
  end

  def test_a_transfer_that_is_cut_short_again_and_again_brings_every_byte
    10.times do |seed|
      assert_equal ["true"] * 3, under("#{seed},least=1", <<~RUBY)
        bytes = Random.new(#{seed}).bytes(200_000)
        scheduled do
          [IO.pipe, UNIXSocket.pair, TCPServer.open("127.0.0.1", 0) { |server| [TCPSocket.new("127.0.0.1", server.addr[1]), server.accept] }].each do |reader, writer|
            reader.binmode
            Fiber.schedule { writer.write(bytes) && writer.close }
            Fiber.schedule { puts reader.read(100_000) + reader.readpartial(1) + reader.read == bytes }
          end
        end
      RUBY
    end
  end
end
