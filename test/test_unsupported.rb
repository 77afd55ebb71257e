# frozen_string_literal: true

require_relative "test_helper"

# What a kernel or a sandbox that refuses io_uring gets.
class TestUnsupported < SchedulerTest
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
