# frozen_string_literal: true

require_relative "../test_helper"

# The hooks as Ruby 4.1 will call them: (offset, length), at most `length` bytes, -EAGAIN allowed.
class TestInterface4 < SchedulerTest
  def test_the_buffer_hooks_speak_interface_4_where_ruby_says_so
    output, status = ruby(<<~RUBY, env: { "UM_SCHEDULER_INTERFACE" => "4" })
      require "socket"
      abort "not 4" unless UM::FiberScheduler.interface_version == 4
      source, sink = UNIXSocket.pair
      reader, writer = IO.pipe
      scheduler = UM::FiberScheduler.new
      buffer = IO::Buffer.new(16)
      Fiber.set_scheduler(scheduler)
      Fiber.new(blocking: false) do
        buffer.set_string("0123456789")
        p scheduler.io_write(sink, buffer, 2, 3)
        p scheduler.io_read(source, buffer, 10, 2)
        p buffer.get_string(0, 12)
        p scheduler.io_read(source, buffer, 0, 0)
        p scheduler.io_read(source, buffer, 0, 16)
        p scheduler.io_read(reader, buffer, 0, 1) == -Errno::EAGAIN::Errno
        File.open("/dev/zero") { |file| p scheduler.io_pread(file, buffer, 0, 4, 8) }
        p buffer.get_string(0, 4)
      end.resume
    RUBY
    assert_equal [3, 2, "012345678923", 0, 1, true, 8, "4123"].map(&:inspect), output.lines.map(&:chomp)
    assert_predicate status, :success?
  end
end
