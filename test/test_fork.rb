# frozen_string_literal: true

require_relative "test_helper"

# fork leaves the parent's ring alone, and the child without a scheduler.
class TestFork < SchedulerTest
  def test_the_child_has_no_scheduler_and_the_parent_goes_on
    in_fiber do
      reader, writer = IO.pipe
      pid = fork do
        writer.write(Fiber.scheduler.inspect)
        sleep 0.001
        exit!(0)
      end
      writer.close
      assert_equal "nil", reader.read
      Process.wait(pid)
      sleep 0.001
    end
  end

  def test_a_child_may_install_a_scheduler_of_its_own_at_once
    in_fiber do
      reader, writer = IO.pipe
      pid = fork do
        Thread.new do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          3.times { |number| Fiber.schedule { sleep(0.001 * number) && writer.syswrite(number.to_s) } }
        end.join
        exit!(0)
      end
      writer.close
      assert_equal "012", reader.read
      Process.wait(pid)
    end
  end

  def test_a_child_of_a_busy_parent_disturbs_nothing
    received = []
    scheduled do
      source, sink = UNIXSocket.pair
      Fiber.schedule { 20.times { received << source.readpartial(1) } }
      Fiber.schedule do
        20.times do |number|
          Process.wait(fork { exit!(0) }) if (number % 5).zero?
          sink << "x"
          sleep 0
        end
      end
    end
    assert_equal 20, received.size
  end

  def test_the_parents_scheduler_object_is_refused_in_the_child
    scheduler = UM::FiberScheduler.new
    reader, writer = IO.pipe
    pid = fork do
      scheduler.kernel_sleep(1)
    rescue UM::Error => e
      writer.write(e.message)
    ensure
      exit!(0)
    end
    writer.close
    assert_match(/parent/, reader.read)
    Process.wait(pid)
  end

  # What a child writes, and its status. The child runs the block with the writer, and ends with it.
  def child_of(fork_by = ->(&block) { fork(&block) })
    reader, writer = IO.pipe
    pid = fork_by.call do
      reader.close
      yield writer
      exit!(0)
    end
    writer.close
    output = reader.read
    Process.wait(pid)
    [output, $?]
  end

  # The kernel's names of the ring and of the eventfd of a machine, among this process's descriptors.
  KERNELS = /\Aanon_inode:\[(io_uring|eventfd)\]/

  def kernels
    Dir.children("/proc/self/fd").filter_map do |fd|
      name = File.readlink("/proc/self/fd/#{fd}")
      name if name.match?(KERNELS)
    rescue Errno::ENOENT
      # The folder's own.
    end
  end

  # Ruby's own timer thread has such descriptors as well, which it makes anew.
  def kernels_of_rubys_child
    own, = ruby(<<~RUBY)
      puts fork { Dir.children("/proc/self/fd").each { |fd| puts File.readlink("/proc/self/fd/\#{fd}") if File.exist?("/proc/self/fd/\#{fd}") } }
      Process.wait
    RUBY
    own.lines(chomp: true).grep(KERNELS).sort
  end

  def test_a_child_has_no_descriptor_of_its_parents_machines
    machines = Array.new(3) { UM.new }
    machines.first.sleep(0)
    source, sink = UNIXSocket.pair
    # One with provided buffers, too.
    fiber = machines.last.spin { machines.last.read_each(source.fileno) { |bytes| break bytes.dup } }
    machines.last.snooze
    allowed = kernels_of_rubys_child
    assert_operator kernels.size, :>=, allowed.size + 6
    output, = child_of { |writer| writer.puts(kernels.sort) }
    assert_equal allowed, output.lines(chomp: true)
    sink << "still here"
    assert_equal "still here", machines.last.join(fiber)
  end

  # Their threads know the eventfd, too.
  def test_a_child_has_no_ring_of_a_scheduler_with_operations_on_workers
    allowed = kernels_of_rubys_child
    in_fiber do
      release, held = IO.pipe
      path = "/proc/self/fd/#{release.fileno}"
      Fiber.schedule { File.read(path) }
      Fiber.schedule { Addrinfo.getaddrinfo("localhost", nil) }
      output, = child_of { |writer| writer.puts(kernels.sort) }
      assert_equal allowed, output.lines(chomp: true)
      held.close
    end
  end

  def test_a_renewed_scheduler_has_a_ring_of_its_own
    scheduled(UM::FiberScheduler.new(UM.new(size: 64), fork: :renew)) do |parents|
      Fiber.schedule do
        output, = child_of do |writer|
          scheduler = Fiber.scheduler
          writer.puts(kernels.grep(/io_uring/).size, scheduler.equal?(parents), scheduler.class, scheduler.machine.size, scheduler.abort_on_exception)
        end
        assert_equal %w[1 false UringMachine::FiberScheduler 64 true], output.lines(chomp: true)
      end
    end
  end

  def test_a_renewed_scheduler_runs_what_it_is_given
    scheduled(UM::FiberScheduler.new(fork: :renew)) do
      Fiber.schedule do
        reader, writer = IO.pipe
        pid = fork do
          reader.close
          Fiber.schedule { writer.write("second") if sleep(0.01) }
          Fiber.schedule { writer.write("first ") }
          # No exit!: the end of the child waits for its fibers.
        end
        writer.close
        assert_equal "first second", reader.read
        Process.wait(pid)
        assert_predicate $?, :success?
      end
    end
  end

  def test_the_forking_fiber_is_the_childs_root
    %i[discard renew].each do |mode|
      scheduled(UM::FiberScheduler.new(fork: mode)) do
        Fiber.schedule do
          output, = child_of do |writer|
            # It waits; on Ruby 3.4 with a fresh scheduler other fibers may run meanwhile.
            sleep 0.001
            inner, outer = IO.pipe
            outer << "x"
            writer.write([Fiber.scheduler.class, inner.readpartial(1), Process.wait(spawn("exit 0")).positive?].inspect)
          end
          assert_equal [mode == :renew ? UM::FiberScheduler : NilClass, "x", true].inspect, output
        end
      end
    end
  end

  def test_a_child_may_install_a_scheduler_in_the_forking_fiber
    in_fiber do
      output, = child_of do |writer|
        Fiber.set_scheduler(UM::FiberScheduler.new)
        3.times { |number| Fiber.schedule { writer.syswrite(number.to_s) if sleep(0.001 * number) } }
        Fiber.set_scheduler(nil)
        writer.syswrite("3")
      end
      assert_equal "0123", output
    end
  end

  # A fork without a block: the fiber's block goes on in the child, and its end is the child's.
  def test_the_end_of_the_forking_fibers_block_is_the_childs_end
    bodies = { "exit 3" => [3, ""], "nil" => [0, ""], "raise 'lost'" => [1, "lost"] }
    starts = {
      "Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule { %s }; Fiber.set_scheduler(nil)" => false,
      "Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew)); Fiber.schedule { %s }; Fiber.set_scheduler(nil)" => true,
      "machine = UM.new; machine.join(machine.spin { %s })" => false
    }
    starts.each do |start, renews|
      bodies.each do |body, (status, message)|
        inner = renews && body != "exit 3" ? "Fiber.schedule { puts 'slept' if sleep(0.001) }; " : ""
        output, = ruby(<<~RUBY)
          at_exit { puts "end of \#{Process.pid == $parent ? :parent : :child}" }
          $stdout.sync = true
          $parent = Process.pid
          #{format(start, "if (pid = fork) then Process.wait(pid); puts $?.exitstatus else #{inner}#{body} end")}
        RUBY
        lines = output.lines(chomp: true)
        told = "#{start} #{body}: #{output}"
        assert_equal ["end of child", status.to_s, "end of parent"], lines.grep(/\Aend|\A\d/), told
        assert_match(message, output, told)
        assert_equal inner.empty? ? 0 : 1, lines.count("slept"), told
      end
    end
  end

  def test_a_fork_in_a_thread
    output, = ruby(<<~RUBY)
      $stdout.sync = true
      main = Fiber.set_scheduler(UM::FiberScheduler.new)
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew))
        Fiber.schedule do
          pid = fork do
            puts Fiber.scheduler.equal?(main), Thread.list.size, Fiber.scheduler.class
            Fiber.schedule { puts "slept" if sleep(0.001) }
          end
          Process.wait(pid)
          puts $?.success?
        end
      end.join
      # A thread without a scheduler: its child has none.
      Thread.new { Process.wait(fork { puts Fiber.scheduler.inspect, UM.current.inspect }) }.join
    RUBY
    assert_equal %w[false 1 UringMachine::FiberScheduler slept true nil nil], output.lines(chomp: true)
  end

  def test_nested_forks
    output, = ruby(<<~RUBY)
      $stdout.sync = true
      UM.after_fork { |scheduler| puts "depth \#{$depth += 1} \#{scheduler.class}" }
      $depth = 0
      Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew))
      Fiber.schedule do
        Process.wait(fork do
          Fiber.schedule do
            puts "sleeps" if sleep(0.001)
            Process.wait(fork { Fiber.schedule { puts "sleeps deeper" if sleep(0.001) } })
            puts "depth \#{$depth}"
          end
        end)
        puts "depth \#{$depth}"
      end
    RUBY
    assert_equal [
      "depth 1 UringMachine::FiberScheduler", "sleeps", "depth 2 UringMachine::FiberScheduler", "sleeps deeper", "depth 1", "depth 0"
    ], output.lines(chomp: true)
  end

  def test_whatever_forks
    output, = ruby(<<~'RUBY')
      $stdout.sync = true
      UM.after_fork { |scheduler| $told = scheduler.class }
      Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew))
      rings = -> { Dir.children("/proc/self/fd").count { |fd| (File.readlink("/proc/self/fd/#{fd}") rescue "").include?("io_uring") } }
      Fiber.schedule do
        if (io = IO.popen("-"))
          puts io.read
          io.close
        else
          puts "popen #{$told} #{rings.call}"
          exit!(0)
        end
        Process.wait(Process.fork { puts "fork #{$told} #{rings.call}" })
        Process.wait(fork do
          reader, writer = IO.pipe
          Process.daemon(true, true)
          puts "daemon #{$told} #{rings.call} #{Fiber.scheduler.class}"
          Fiber.schedule { puts "slept" if sleep(0.001) }
        end)
      end
    RUBY
    of = "UringMachine::FiberScheduler"
    assert_equal ["popen #{of} 1", "fork #{of} 1", "daemon #{of} 1 #{of}", "slept"], output.lines(chomp: true)
  end

  def test_a_daemon_by_including_process
    output, = ruby(<<~'RUBY')
      $stdout.sync = true
      UM.after_fork { |scheduler| $told = scheduler.class }
      class Including; include Process; def start = daemon(true, true); end
      puts (Including.new.daemon rescue $!.class)
      Process.wait(fork do
        Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew))
        Fiber.schedule do
          Including.new.start
          rings = Dir.children("/proc/self/fd").count { |fd| (File.readlink("/proc/self/fd/#{fd}") rescue "").include?("io_uring") }
          puts "daemon #{$told} #{rings} #{Fiber.scheduler.class}"
        end
      end)
    RUBY
    of = "UringMachine::FiberScheduler"
    assert_equal ["NoMethodError", "daemon #{of} 1 #{of}"], output.lines(chomp: true)
  end

  def test_blocks_run_in_the_child_in_their_order
    output, = ruby(<<~'RUBY')
      $stdout.sync = true
      first = proc { |scheduler| puts "first #{scheduler.inspect}" }
      puts UM.after_fork(&first).equal?(first)
      UM.after_fork { raise ArgumentError, "the second fails" }
      UM.after_fork { puts "third" }
      Process.wait(fork { puts "child" })
      puts $?.success?
      UM.after_fork { exit 4 }
      UM.after_fork { puts "never" }
      pid = begin
        fork { puts "never" }
      rescue SystemExit
        puts "exits"
        raise
      end
      Process.wait(pid)
      puts $?.exitstatus
      puts((UM.after_fork rescue $!.message))
    RUBY
    lines = output.lines(chomp: true).grep_v(/\A\s|\A-e:/)
    assert_equal ["true", "first nil", "third", "child", "true", "first nil", "third", "exits", "4", "no block given (after_fork)"], lines
    assert_equal 2, output.scan("the second fails").size
  end

  class Renewing < UM::FiberScheduler
    attr_accessor :given

    def initialize(machine = nil, given: nil)
      super(machine, fork: :renew)
      @given = given
    end

    def process_fork
      Renewing.new(given: "#{given} again").tap { |scheduler| Fiber.set_scheduler(scheduler) }
    end
  end

  class Failing < UM::FiberScheduler
    def process_fork = raise("there is none to be had")
  end

  def test_the_hook_may_be_overridden
    scheduled(Renewing.new(given: "given")) do
      Fiber.schedule do
        output, = child_of { |writer| writer.write(Fiber.scheduler.given) }
        assert_equal "given again", output
      end
    end
    scheduled(Failing.new) do
      Fiber.schedule do
        error, output = IO.pipe
        before = $stderr
        $stderr = output
        told, = child_of { |writer| writer.write(Fiber.scheduler.inspect) }
        $stderr = before
        output.close
        assert_equal "nil", told
        assert_match(/none to be had/, error.read)
      end
    end
  end

  def test_the_hook_is_for_a_child
    scheduled(UM::FiberScheduler.new(fork: :renew)) do |scheduler|
      assert_match(/child/, assert_raises(UM::Error) { scheduler.process_fork }.message)
    end
    [:other, nil, "renew"].each { |mode| assert_match(/fork/, assert_raises(ArgumentError) { UM::FiberScheduler.new(fork: mode) }.message) }
    assert_raises(ArgumentError) { UM::FiberScheduler.new(spoon: :renew) }
  end

  def test_a_parents_operations_complete_after_many_forks
    received = +""
    sent = +""
    scheduled(UM::FiberScheduler.new(fork: :renew)) do
      source, sink = UNIXSocket.pair
      Fiber.schedule { received << source.readpartial(100_000) while received.bytesize < 500_000 }
      Fiber.schedule do
        25.times do |number|
          pid = fork { Fiber.schedule { sleep 0 } if number.odd? }
          text = number.chr * 20_000
          sent << text
          sink.write(text)
          Process.wait(pid)
          assert_predicate $?, :success?
        end
      end
    end
    assert_equal sent, received
  end

  def test_a_machines_operations_complete_after_many_forks
    machine = UM.new
    reader, writer = UM.pipe
    fiber = machine.spin do
      buffer = +""
      Array.new(25) { machine.read(reader, buffer, 5000) && buffer.dup }
    end
    25.times do |number|
      machine.snooze
      pid = fork do
        machine.sleep(0)
      rescue UM::Error
        exit!(7)
      end
      Process.wait(pid)
      assert_equal 7, $?.exitstatus
      machine.write(writer, number.chr * 5000)
      machine.snooze
    end
    assert_equal Array.new(25) { |number| number.chr * 5000 }, machine.join(fiber)
  ensure
    [reader, writer].each { |fd| machine.close(fd) }
  end

  def test_a_child_keeps_nothing_of_its_parents_fibers
    output, = ruby(<<~RUBY)
      class Kept; end
      machine = UM.new
      # In a frame of its own, whose values are gone.
      1000.times { machine.spin { kept = Kept.new; machine.yield; kept } }
      machine.snooze
      puts ObjectSpace.each_object(Kept).count
      $stdout.flush
      Process.wait(fork do
        GC.start
        # A few may be found where the collector looks for what might be a value.
        puts ObjectSpace.each_object(Kept).count < 100
        puts machine.pending_fibers.size, machine.fiber_set.size
      end)
      puts machine.fiber_set.size
    RUBY
    assert_equal %w[1000 true 0 0 1000], output.lines(chomp: true)
  end

  def test_the_pools_of_a_child_are_its_own
    scheduled(UM::FiberScheduler.new(fork: :renew)) do
      pool = UM::BlockingOperationThreadPool.new(2)
      use = lambda do
        [Addrinfo.getaddrinfo("localhost", nil).any?, File.read("/proc/self/stat").to_i == Process.pid, pool.process(Fiber.scheduler.machine, -> { 42 })]
      end
      Fiber.schedule do
        assert_equal [true, true, 42], use.call
        # Workers begin and end while it forks.
        busy = true
        Fiber.schedule { File.read("/proc/self/stat") while busy }
        10.times do
          output, = child_of do |writer|
            Fiber.schedule { writer.write(use.call.inspect) }
            Fiber.set_scheduler(nil)
          end
          assert_equal "[true, true, 42]", output
        end
      ensure
        busy = false
      end
    end
  end

  def test_a_fiber_of_the_parents_that_is_unwound_in_the_child_ends
    machine = UM.new
    reader, writer = UM.pipe
    waits = proc { machine.read(reader, +"", 10) }
    sleeps = proc { machine.sleep }
    fibers = [waits, sleeps].map { |work| machine.spin(&work) }
    machine.snooze
    output, = child_of do |told|
      fibers.each do |fiber|
        fiber.raise(UM::Terminate)
      rescue StandardError => e
        told.puts(e.class)
      end
      told.puts "goes on"
    end
    assert_equal "goes on", output.lines(chomp: true).last
    fibers.each { |fiber| machine.schedule(fiber, UM::Terminate.new) }
    machine.join(fibers)
  ensure
    [reader, writer].each { |fd| machine.close(fd) }
  end

  def test_what_the_parents_operations_have_locked_is_the_childs_to_use
    machine = UM.new
    pool = machine.register_buffers(count: 2, size: 65_536)
    large = "x" * 1_000_000
    buffers = [IO::Buffer.new(65_536), IO::Buffer.new(65_536).slice(0, 10_000), pool.acquire, pool.acquire.slice(0, 100)]
    strings = [+"", String.new(capacity: 100_000)]
    pipes = Array.new(8) { UM.pipe }
    readers = pipes.map(&:first)
    work = (buffers + strings).zip(readers).map { |into, from| proc { machine.read(from, into, into.is_a?(String) ? 100_000 : nil) } }
    source = IO::Buffer.new(1_000_000)
    work << proc { machine.write(pipes[6].last, source) } << proc { machine.writev(pipes[7].last, large, "end") }
    fibers = work.map { |body| machine.spin(&body) }
    machine.snooze
    all = [*buffers, source]
    assert(all.all?(&:locked?))
    assert_raises(RuntimeError) { strings.last << "more" }
    output, = child_of do |told|
      fibers.each do |fiber|
        fiber.raise(UM::Terminate)
      rescue StandardError => e
        told.puts(e.class) unless e.is_a?(UM::Error)
      end
      told.puts all.any?(&:locked?)
      strings.each { |string| string << "more" }
      large << "more"
      own = UM.new
      reader, writer = UM.pipe
      [*all, *strings].each do |buffer|
        own.write(writer, "own")
        own.read(reader, buffer, 3)
        told.write buffer.is_a?(String) ? buffer[0, 3] : buffer.get_string(0, 3)
      end
      told.puts
      all.each(&:free)
      told.puts all.all?(&:null?)
    end
    assert_equal ["false", "own" * 7, "true"], output.lines(chomp: true)
    assert(all.all?(&:locked?))
    pipes.first(6).map(&:last).each { |writer| machine.write(writer, "parents") }
    machine.join(fibers.first(6))
    assert_equal ["parents"] * 6, buffers.map { |buffer| buffer.get_string(0, 7) } + strings
    fibers.last(2).each { |fiber| machine.schedule(fiber, UM::Terminate.new) }
    machine.join(fibers.last(2))
    refute(all.any?(&:locked?))
  ensure
    pipes&.flatten&.each { |fd| machine.close(fd) }
  end

  def test_the_view_of_a_block_that_forks_ends_in_the_child_too
    output, = ruby(<<~RUBY)
      $stdout.sync = true
      machine = UM.new
      reader, writer = UM.pipe
      machine.write(writer, "bytes")
      machine.close(writer)
      pid = view = nil
      machine.io(reader).read_each { |bytes| pid = fork; view = bytes; break unless pid }
      puts view.null?
      exit!(0) unless pid
      Process.wait(pid)
    RUBY
    assert_equal "true\n" * 2, output
  end

  # A lock of the program's own stays.
  def test_what_hooks_have_locked_is_the_childs_to_use
    in_fiber do
      # A pipe is waited for without its buffer being locked.
      pairs = Array.new(2) { UNIXSocket.pair }
      buffer = IO::Buffer.new(65_536)
      ours = IO::Buffer.new(65_536)
      reading = [Fiber.schedule { buffer.read(pairs[0][0], 0) }, Fiber.schedule { ours.locked { ours.read(pairs[1][0], 0) } }]
      output, = child_of { |told| told.puts(buffer.locked?, ours.locked?, buffer.free.null?) }
      assert_equal %w[false true true], output.lines(chomp: true)
      assert_predicate buffer, :locked?
      pairs.map(&:last).each { |writer| writer << "x" }
      sleep 0 while reading.any?(&:alive?)
      assert_equal(%w[x x], [buffer, ours].map { |each| each.get_string(0, 1) })
      refute_predicate buffer, :locked?
    end
  end
end
