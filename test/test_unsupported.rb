# frozen_string_literal: true

require_relative "test_helper"

# What a kernel or a sandbox that refuses io_uring gets.
class TestUnsupported < SchedulerTest
  # Refuses a system call to the process from now on (seccomp(2)), as sandboxes do.
  REFUSE = <<~RUBY
    def refuse(number, errno = Errno::EPERM::Errno)
      prctl, seccomp = RbConfig::CONFIG["host_cpu"] == "x86_64" ? [157, 317] : [167, 277]
      # The number is loaded; if it is this one, then the errno, else nothing.
      filter = [[0x20, 0, 0, 0], [0x15, 0, 1, number], [0x06, 0, 0, 0x50000 | errno], [0x06, 0, 0, 0x7fff0000]]
      program = [filter.size, steps = filter.map { |step| step.pack("SCCL") }.join].pack("Sx6p")
      syscall(prctl, 38, 1, 0, 0, 0)
      syscall(seccomp, 1, 0, [program].pack("p").unpack1("J"))
    end
  RUBY
  # The same numbers on every processor.
  CALLS = { setup: 425, enter: 426, register: 427 }.freeze

  CALLS.each do |name, number|
    define_method("test_a_sandbox_that_refuses_#{name}") do
      { EPERM: /seccomp/, ENOSYS: /Linux 6\.1/ }.each do |errno, why|
        output, status = ruby(REFUSE + <<~RUBY)
          refuse(#{number}, Errno::#{errno}::Errno)
          puts UM.supported?, UM.unsupported_reason, (UM::FiberScheduler.new rescue $!.class)
          Thread.new { sleep 0.001 }.join
          puts `echo plain Ruby goes on`
        RUBY
        supported, reason, error, last = output.lines(chomp: true)
        assert_equal ["false", "plain Ruby goes on"], [supported, last], output
        assert_match why, reason
        assert_equal "UringMachine::UnsupportedError", error
        assert_predicate status, :success?
      end
    end
  end

  # A filter that comes when the scheduler is there: operations fail, and the program ends.
  def test_a_sandbox_that_refuses_an_operation_later
    output, status = ruby(REFUSE + <<~RUBY)
      $stdout.sync = true
      scheduler = UM::FiberScheduler.new
      Fiber.set_scheduler(scheduler)
      refuse(#{CALLS[:enter]})
      Fiber.schedule do
        reader, = IO.pipe
        reader.read(1)
      rescue SystemCallError => e
        puts e.class
      end
      scheduler.run rescue puts $!.class
      exit!(0)
    RUBY
    assert_equal ["Errno::EPERM"], output.lines(chomp: true).uniq
    assert_predicate status, :success?
  end

  def test_it_is_supported_here
    assert_predicate UM, :supported?
    assert_nil UM.unsupported_reason
  end

  def test_a_shortage_of_descriptors_is_an_errno_and_passes
    output, status = ruby(<<~RUBY)
      Process.setrlimit(:NOFILE, 16)
      files = []
      begin
        loop { files << File.open("/dev/null") }
      rescue Errno::EMFILE
      end
      begin
        UM::FiberScheduler.new
      rescue Errno::EMFILE => error
        puts error.class
      end
      files.each(&:close)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { sleep 0.001; puts "works" }
    RUBY
    assert_equal "Errno::EMFILE\nworks\n", output
    assert_predicate status, :success?
  end

  # Rings count for what a user may lock (RLIMIT_MEMLOCK), where it may not lock more (CAP_IPC_LOCK).
  def test_where_little_memory_may_be_locked_the_ring_is_smaller
    before = %w[setpriv --bounding-set=-ipc_lock prlimit --memlock=16384]
    # Faults may make every ring small.
    output, status = ruby(<<~RUBY, before:, env: { "UM_FAULTS" => nil })
      error = UM.new(size: 256) rescue $!
      puts error.message[/RLIMIT_MEMLOCK/]
      machine = UM.new
      puts machine.size < 256
      machine.sleep(0.001)
    RUBY
    assert_equal %w[RLIMIT_MEMLOCK true], output.lines(chomp: true)
    assert_predicate status, :success?
  end

  def test_a_shortage_inside_an_operation_fails_that_operation_alone
    output, status = ruby(<<~RUBY)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        Process.setrlimit(:NOFILE, 32)
        files = []
        begin
          loop { files << File.open("/dev/null") }
        rescue Errno::EMFILE
          puts "EMFILE"
        end
        sleep 0.001
        files.each(&:close)
      end
      Fiber.schedule { sleep 0.01; puts "others go on" }
    RUBY
    assert_equal ["EMFILE\n", "others go on\n"], output.lines.sort
    assert_predicate status, :success?
  end

  def test_masked_features_leave_every_path_working
    code = <<~RUBY
      require "socket"
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        source, sink = UNIXSocket.pair
        reader, writer = IO.pipe
        Fiber.schedule { sleep 0.001; sink << "socket"; writer << "pipe" }
        puts source.readpartial(10), reader.readpartial(10)
        puts File.read(ARGV[0]).lines.first
        File.write(ARGV[1], "written")
        puts File.read(ARGV[1])
        system("exit 3")
        puts $?.exitstatus
      end
    RUBY
    expected = ["socket", "pipe", "# frozen_string_literal: true", "written", "3"]
    %w[waitid nowait dontwait defer_taskrun no_sqarray registered_ring waitid,nowait,dontwait,defer_taskrun,no_sqarray].each do |mask|
      Tempfile.create("um") do |file|
        output, = ruby(code, __FILE__, file.path, env: { "UM_MASK" => mask })
        assert_equal expected, output.lines.map(&:chomp), mask
      end
    end
  end
end
