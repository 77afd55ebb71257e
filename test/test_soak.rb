# frozen_string_literal: true

require_relative "test_helper"

# A short piece of what script/soak does for longer.
class TestSoak < PatientTest
  def test_everything_at_once
    reader, writer = IO.pipe
    pid = spawn(RbConfig.ruby, "-W:no-experimental", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, File.join(__dir__, "soak.rb"), "0.25", %i[out err] => writer)
    writer.close
    output = reader.read
    Process.wait(pid)
    assert_predicate $?, :success?, output
    assert_match(/all bytes came back/, output)
  end
end

# Everything at once, with cancellations at any moment: what is read is what was written, and in the end nothing is left.
class TestMachineSoak < MachineTest
  # UM_SOAK=300000 for a long one.
  OPERATIONS = Integer(ENV.fetch("UM_SOAK", 30_000))
  FIBERS = 200
  LARGE = ("b" * 70_000).freeze

  class Stop < StandardError; end

  # One fiber's share, with descriptors of its own.
  class Worker
    STEPS = %i[snooze sleep write write_async read read_in_time take_turns lock send_large terminate read_file accept receive_each poll].freeze

    def initialize(machine, shared, seed)
      @machine = machine
      @shared = shared
      @random = Random.new(seed)
      @reader, @writer = UM.pipe
      @socket, @peer = UM.socketpair(UM::AF_UNIX, UM::SOCK_STREAM, 0)
      @buffer = +""
      @written = +""
      @read = +""
    end

    def run
      __send__(STEPS.sample(random: @random)) while (@shared[:left] -= 1).positive?
      @machine.close(@writer)
      io = @machine.io(@reader)
      while (bytes = io.read(0)) do @read << bytes end
      # Asynchronous writes may be overtaken.
      raise "#{@written.bytesize} bytes were written, #{@read.bytesize} read" unless @written.delete("A") == @read.delete("A") && @written.size == @read.size

      [@reader, @socket, @peer].each { |fd| @machine.close(fd) }
      :done
    end

    private

    def in_time(most, &)
      @machine.timeout(@random.rand * most, Stop, &)
    rescue Stop
      nil
    end

    def snooze = @machine.snooze

    def sleep = @machine.sleep(@random.rand * 0.0005)

    def write
      bytes = "#{@random.rand(1000)};" * @random.rand(1..3)
      @machine.write(@writer, bytes)
      @written << bytes
    end

    def write_async
      @machine.write_async(@writer, "A" * 10)
      @written << ("A" * 10)
    end

    # Short reads go through the machine's memory, long ones into the String's own.
    def read
      return if @written.size == @read.size

      @machine.read(@reader, @buffer, [100, 10_000].sample(random: @random))
      @read << @buffer
    end

    def read_in_time
      in_time(0.0005) { @read << @buffer if @machine.read(@reader, @buffer, [100, 10_000].sample(random: @random)) }
    end

    def take_turns
      @machine.push(@shared[:queue], self)
      raise "not from the queue" unless @machine.shift(@shared[:queue]).is_a?(Worker)
    end

    def lock
      @machine.synchronize(@shared[:mutex]) do
        raise "two fibers are inside" if @shared[:inside]

        @shared[:inside] = self
        @machine.snooze if @random.rand(3).zero?
        @shared[:inside] = nil
      end
    end

    # Either side may give up at any moment.
    def send_large
      fiber = @machine.spin { in_time(0.0005) { @machine.send(@socket, LARGE, LARGE.size, UM::MSG_WAITALL) } }
      @buffer.clear
      received = 0
      in_time(0.002) { received += @machine.recv(@peer, @buffer, 20_000) while received < LARGE.size }
      raise "other bytes than were sent" unless @buffer.count("b") == @buffer.bytesize

      @machine.await(fiber)
      loop { @machine.recv(@peer, @buffer, 20_000, UM::MSG_DONTWAIT) }
    rescue Errno::EAGAIN
      # There is nothing.
    end

    def terminate
      fiber = @machine.spin { @machine.sleep }
      @machine.snooze if @random.rand(2).zero?
      @machine.terminate(fiber)
      @machine.await(fiber)
    end

    def read_file
      @machine.open("/dev/zero", UM::O_RDONLY) do |fd|
        count = @machine.read(fd, @buffer, 5000)
        raise "no zeros" unless @buffer == "\0" * count
      end
    end

    def accept
      fiber = @machine.spin { in_time(0.002) { connect } }
      in_time(0.002) { @machine.close(@machine.accept(@shared[:server])) }
      @machine.await(fiber)
    end

    def connect
      fd = @machine.socket(UM::AF_UNIX, UM::SOCK_STREAM)
      @machine.connect(fd, @shared[:path])
    ensure
      @machine.close(fd)
    end

    def receive_each
      in_time(0.0003) { @machine.recv_each(@peer, 0) { raise "nothing was sent" } }
    end

    def poll
      in_time(0.0004) { @machine.poll(@reader, UM::POLLIN) }
    end
  end

  def test_two_hundred_fibers_do_anything
    path = "\0um-soak-#{Process.pid}"
    server = opened(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
    machine.bind(server, path)
    machine.listen(server)
    # As long as what is measured, until the heap is as large as its garbage makes it.
    soak(server, path, OPERATIONS)
    GC.start # The garbage of other tests has descriptors too.
    descriptors = settled_descriptors
    memory = rss
    soak(server, path, OPERATIONS)
    assert_operator open_descriptors, :<=, descriptors
    eventually { machine.metrics.values_at(:ops_pending, :ops_transient).sum.zero? }
    assert_empty machine.fiber_set
    GC.start
    assert_operator rss - memory, :<, 64 << 10
  end

  def soak(server, path, operations)
    shared = { left: operations, queue: UM::Queue.new, mutex: UM::Mutex.new, inside: nil, server:, path: }
    results = machine.join(Array.new(FIBERS) { |seed| machine.spin { Worker.new(machine, shared, seed).run } })
    assert_equal [:done], results.uniq
    # Connections that nobody has accepted.
    machine.timeout(0.01, Stop) { machine.accept_each(server) { |fd| machine.close(fd) } }
  rescue Stop
    # None is left.
  end
end
