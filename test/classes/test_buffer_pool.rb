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

  # Both buffers of the pool: their alignment is the pool's doing, not luck.
  def test_files_at_positions_and_without_the_page_cache
    buffers = pool(2)
    both = Array.new(2) { buffers.acquire }
    both.each do |buffer|
      Tempfile.create("um", "/var/tmp") do |file|
        bytes = Random.bytes(65_536)
        buffer.set_string(bytes)
        assert_equal 65_536, machine.write(file.fileno, buffer, nil, 4096)
        buffer.clear
        fd = opened(machine.open(file.path, UM::O_RDWR | UM::O_DIRECT))
        assert_equal 65_536, machine.read(fd, buffer, nil, 0, 4096)
        assert_equal bytes, buffer.get_string
        assert_equal 65_536, machine.write(fd, buffer, nil, 0)
        assert_equal bytes, File.binread(file.path, 65_536)
      end
    end
    assert_equal 6, machine.metrics[:total_fixed_ops]
  end

  # Runs the block; returns how many operations on registered buffers it made.
  def fixed_operations(machine = self.machine)
    before = machine.metrics[:total_fixed_ops]
    yield
    machine.metrics[:total_fixed_ops] - before
  end

  # A connection over TCP: UNIX sockets send nothing without a copy.
  def connection
    server = opened(machine.tcp_listen("127.0.0.1", 0))
    client = opened(machine.tcp_connect("127.0.0.1", machine.sockname(server).last))
    [client, opened(machine.accept(server))]
  end

  def test_each_operation_uses_them
    client, peer = connection
    reader, writer = pipe
    Tempfile.create("um", "/var/tmp") do |file|
      pool.acquire do |buffer|
        [buffer, buffer.slice(4096, 32_768)].each do |part|
          operations = {
            "write" => -> { machine.write(writer, part, 100) },
            "read" => -> { machine.read(reader, part, 100) },
            "write at" => -> { machine.write(file.fileno, part, 4096, 0) },
            "read at" => -> { machine.read(file.fileno, part, 4096, 0, 0) },
            "small send" => -> { machine.send(client, part, (16 << 10) - 1, UM::MSG_WAITALL) },
            "large send" => -> { machine.send(client, part, 16 << 10, UM::MSG_WAITALL) },
            "recv" => -> { machine.recv(peer, part, nil, 0) }
          }
          operations.each { |name, operation| assert_equal 1, fixed_operations(&operation), name }
        end
      end
    end
  end

  # What can be read without waiting is read without the ring. Ruby 3.4 has no hook for pwrite.
  def test_the_schedulers_hooks_use_them_without_being_asked
    ENV["UM_MASK"] = "nowait"
    counts = {}
    Thread.new do
      Fiber.set_scheduler(scheduler = UM::FiberScheduler.new)
      Fiber.schedule do
        Tempfile.create("um", "/var/tmp") do |file|
          direct = File.open(file.path, File::RDWR | File::DIRECT)
          scheduler.machine.register_buffers(count: 2, size: 65_536).acquire do |buffer|
            { whole: buffer, slice: buffer.slice(4096, 8192) }.each do |name, part|
              bytes = Random.bytes(part.size)
              part.set_string(bytes)
              operations = {
                write: -> { part.write(direct) }, pwrite: -> { part.pwrite(direct, 0) },
                read: -> { direct.rewind && part.clear && part.read(direct) }, pread: -> { part.clear && part.pread(direct, 0) }
              }
              operations.delete(:pwrite) if UM::FiberScheduler.interface_version < 3
              operations.each do |operation, run|
                counts["#{operation} #{name}"] = fixed_operations(scheduler.machine, &run)
                counts["#{operation} #{name}"] = :lost unless part.get_string == bytes
              end
              direct.rewind
            end
          end
        end
      end
    end.join
    assert_equal UM::FiberScheduler.interface_version < 3 ? 6 : 8, counts.size
    counts.each { |name, count| assert_equal 1, count, name }
  ensure
    ENV.delete("UM_MASK")
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

  # Below 16 KiB the kernel copies; above it sends from the buffer itself.
  def test_a_release_while_a_send_runs_is_refused
    [4096, 65_536].each do |size|
      client, peer = connection
      full = Socket.for_fd(client).tap { |socket| socket.autoclose = false }
      queued = 0
      while (count = full.write_nonblock("x" * 65_536, exception: false)) != :wait_writable
        queued += count
      end
      buffers = pool(1)
      buffer = buffers.acquire
      buffer.set_string(bytes = Random.bytes(size))
      sender = machine.spin { machine.send(client, buffer, size, UM::MSG_WAITALL) }
      machine.snooze
      assert_raises(UM::Error) { buffers.release(buffer) }
      assert_raises(UM::Error) { buffers.close }
      received = +"".b
      received << (+"".b).tap { |piece| machine.recv(peer, piece, 65_536, 0) } while received.bytesize < queued + size
      assert_equal size, machine.join(sender)
      assert_equal bytes, received[queued..]
      buffers.release(buffer)
      buffers.close
    end
  end

  def test_acquire_never_returns_what_is_no_buffer_of_the_pool_any_more
    buffers = pool(1)
    spoil = [:free, :transfer, ->(buffer) { buffer.resize(10) }, ->(buffer) { buffer.free.resize(65_536) }]
    spoil.each do |how|
      buffer = buffers.acquire
      buffer.set_string("kept")
      how.to_proc.call(buffer)
      assert_same buffers, buffers.release(buffer)
      assert_raises(UM::Error) { buffers.release(buffer) }
      fresh = buffers.acquire
      refute_same buffer, fresh
      assert_equal [65_536, "kept"], [fresh.size, fresh.get_string(0, 4)]
      assert_raises(UM::Error) { buffers.release(buffer) }
      assert_equal(1, fixed_operations { machine.write(pipe.last, fresh, 1) })
      # One that is spoilt after its release, too.
      buffers.release(fresh)
      how.to_proc.call(fresh)
      assert_equal(65_536, buffers.acquire(&:size))
      assert_equal(:value, buffers.acquire { |other| how.to_proc.call(other) && :value })
    end
    assert_equal 1, buffers.available
  end

  def test_neither_a_buffer_nor_a_slice_of_it_grows
    reader, writer = pipe
    machine.write(writer, "here")
    pool.acquire do |buffer|
      [buffer, buffer.slice(0, 16)].each do |part|
        assert_raises(IO::Buffer::AccessError) { machine.read(reader, part, part.size + 1) }
        refute_predicate part, :locked?
      end
      assert_equal 4, machine.read(reader, buffer, 16)
    end
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

  def test_after_close_a_slice_and_what_was_transferred_are_invalid
    buffers = pool(2)
    two = [buffers.acquire, buffers.acquire]
    parts = [two.first.slice(0, 4), two.last.slice(4, 4).slice(1, 2), two.last.transfer]
    two.each { |buffer| buffers.release(buffer) }
    two.first.locked { assert_raises(UM::Error) { buffers.close } }
    buffers.close
    parts.each { |part| assert_raises(IO::Buffer::InvalidatedError) { part.get_string } }
  end

  # KiB of memory that a child would find empty, as that of pools; and a way to leave nothing on the stack.
  HELPERS = <<~'RUBY'
    def registered = File.read("/proc/self/smaps").split(/^(?=\h+-\h+ )/).grep(/^VmFlags:.* wf\b/).sum { |mapping| mapping[/^Size:\s+(\d+)/, 1].to_i }
    def rss = File.read("/proc/self/status")[/VmRSS:\s+(\d+)/, 1].to_i
    def apart(&block) = Thread.new(&block).value
    def collect = 3.times { apart { GC.start } }
  RUBY

  def test_the_memory_lives_as_long_as_any_view_of_it
    views = {
      "buffer" => "buffer", "slice" => "buffer.slice(0, 4)", "slice of a slice" => "buffer.slice(0, 8).slice(0, 4)",
      "transferred" => "buffer.transfer", "slice of transferred" => "buffer.transfer.slice(0, 4)", "transferred slice" => "buffer.slice(0, 4).transfer"
    }
    ends = {
      "scheduler" => "Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule { make.call(Fiber.scheduler.machine) }",
      "machine" => "make.call(UM.new)"
    }
    ends.each do |owner, start|
      output, = ruby(<<~RUBY)
        #{HELPERS}
        views = {}
        #{views.map { |name, code| "make = ->(machine) { views[#{name.inspect}] = machine.register_buffers(count: 2, size: 65_536).acquire.then { |buffer| buffer.set_string('kept'); #{code} } }; apart { #{start} }" }.join("\n")}
        collect
        # What may lie where the memory was.
        kept = Array.new(200_000) { Object.new }
        views.each { |name, view| puts "\#{name}: \#{view.get_string(0, 4)}" }
        pool = nil
        apart { pool = UM.new.register_buffers(count: 1, size: 4096) }
        collect
        puts pool.available
      RUBY
      assert_equal [*views.keys.map { |name| "#{name}: kept" }, "1"], output.lines(chomp: true), owner
    end
  end

  def test_the_memory_is_given_back_after_the_pool_is_gone
    output, = ruby(<<~RUBY)
      #{HELPERS}
      machine = UM.new
      before = [registered, rss]
      make = -> { 32.times { machine.register_buffers(count: 16, size: 131_072).acquire.slice(0, 4) } }
      Fiber.new { make.call }.resume
      collect
      # Before it sleeps, a machine gives up what nobody wants any more.
      machine.sleep(0.001)
      puts registered - before[0] < 16_384, rss - before[1] < 32_768
      pools = Array.new(8) { machine.register_buffers(count: 16, size: 131_072) }
      full = rss
      pools.each(&:close)
      puts full - rss > 12_000
    RUBY
    assert_equal %w[true true true], output.lines(chomp: true)
  end

  # The heap grows in the child before the child knows that it is one: whatever is done to memory that the child does
  # not have is done to the heap.
  GROWING = <<~RUBY
    UM.singleton_class.prepend(Module.new { def forked(parents) = ($heap = Array.new(300_000) { Object.new }) && super })
  RUBY

  def test_a_child_of_fork_has_its_heap
    told = "puts $heap.map(&:class).uniq, :ok"
    ["fork { #{told} }", "fork || (#{told}; exit!(0))"].each do |fork|
      body = "Process.wait(#{fork}); puts $?.success?"
      register = "register_buffers(count: 2, size: 65_536)"
      starts = [
        "pool = UM.new.#{register}; #{body}",
        "Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew)); Fiber.schedule { pool = Fiber.scheduler.machine.#{register}; #{body} }",
        # The memory of multishot reads.
        "machine = UM.new; reader, = UM.pipe; machine.spin { machine.read_each(reader) { break } }; machine.snooze; #{body}"
      ]
      starts.each do |start|
        output, = ruby("#{GROWING}; $stdout.sync = true; #{start}")
        assert_equal %w[Object ok true], output.lines(chomp: true), start
      end
    end
  end

  def test_in_a_child_of_fork_the_buffers_are_readable_and_empty_and_the_pool_is_the_parents
    output, = ruby(<<~RUBY)
      #{HELPERS}
      $stdout.sync = true
      machine = UM.new
      pool = machine.register_buffers(count: 2, size: 65_536)
      buffer = pool.acquire
      buffer.set_string("parents")
      views = [buffer, buffer.slice(0, 4), pool.acquire.transfer]
      Process.wait(fork do
        puts views.all? { |view| view.get_string.bytes.sum.zero? }
        buffer.set_string("child")
        own = UM.new
        reader, writer = UM.pipe
        own.write(writer, buffer, 5)
        own.read(reader, views[1])
        puts buffer.get_string(0, 5)
        puts [-> { pool.acquire }, -> { pool.close }].map { |call| call.call rescue $!.class }
        pool.release(buffer)
        puts own.register_buffers(count: 2, size: 65_536).acquire { |mine| own.write(writer, mine, 1) }
        views = buffer = pool = machine = nil
      end)
      puts $?.success?, buffer.get_string(0, 7)
      pool.release(buffer)
      puts pool.available
    RUBY
    assert_equal %w[true child UringMachine::Error UringMachine::Error 1 true parents 1], output.lines(chomp: true)
  end

  def test_a_child_of_fork_does_not_pay_for_its_parents_pools
    output, = ruby(<<~RUBY)
      #{HELPERS}
      machine = UM.new
      pools = Array.new(32) { machine.register_buffers(count: 16, size: 131_072) }
      parents = [registered, rss]
      Process.wait(fork do
        puts registered > 60_000, parents[1] - rss > 60_000
        pools.clear
        GC.start
        puts registered < 16_384
      end)
      puts registered == parents[0], pools.sum(&:available)
    RUBY
    assert_equal %w[true true true true 512], output.lines(chomp: true)
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
