# frozen_string_literal: true

require_relative "test_helper"
require_relative "waits"

# Everything that waits, ended in every way, at every moment: it ends, by what ended it or by its own result, nothing is lost
# or left over, and the next one works. docs/reliability.md has the table.
class TestCancellation < SchedulerTest
  class Stop < StandardError; end

  MOMENTS = %i[before_submission submitted completed after].freeze

  # Ways to end a wait: what is done to the fiber, and what the wait may raise. `:killed`: it is unwound by nothing that can be
  # rescued.
  Way = Struct.new(:raises, :act, :around, keyword_init: true)

  def self.interrupt(fiber) = (fiber.raise(IOError) if fiber.alive?)

  WAYS = {
    "Fiber#raise" => Way.new(raises: [Stop], act: ->(fiber, _) { fiber.raise(Stop) if fiber.alive? }),
    "Fiber#kill" => Way.new(raises: [:killed], act: ->(fiber, _) { fiber.kill }),
    "Timeout" => Way.new(raises: [Stop], act: ->(fiber, _) { sleep(0.0005) while fiber.alive? },
                         around: ->(_, body) { Timeout.timeout(0.001, Stop) { body.call } }),
    "io.timeout" => Way.new(raises: [IO::TimeoutError], act: ->(fiber, _) { (sleep(0.002) if fiber.alive?) },
                            around: ->(wait, body) { (wait.io&.timeout = 0.001) && body.call }),
    "IO#close" => Way.new(raises: [IOError, Errno::EBADF], act: ->(fiber, wait) { wait.io ? wait.io.close : interrupt(fiber) }),
    "IO#close by a thread" => Way.new(raises: [IOError, Errno::EBADF], act: ->(fiber, wait) { wait.io ? Thread.new { wait.io.close }.join : interrupt(fiber) }),
    "fork" => Way.new(raises: [], act: ->(_, _) { Process.wait2(fork { exit!(0) }).last.success? || raise("the child has crashed") })
  }.freeze

  def test_every_hook_that_waits_is_in_the_table
    hooks = UM::FiberScheduler.instance_methods(false)
    assert_empty hooks - Waits::NEVER[:scheduler] - Waits.covered(:scheduler)
    assert_empty Waits.covered(:scheduler) - hooks
  end

  Waits::ALL[:scheduler].each do |name, (_, prepare)|
    WAYS.each do |way_name, way|
      define_method("test_#{name}_ended_by_#{way_name}".gsub(/\W+/, "_")) do
        MOMENTS.each { |moment| cell(prepare, way, moment) }
      end
    end
  end

  # The whole thread is ended, by an exception or by a kill.
  ENDS = { "Thread#raise" => ->(thread) { thread.raise(Stop) }, "Thread#kill" => ->(thread) { thread.kill } }.freeze

  Waits::ALL[:scheduler].each do |name, (_, prepare)|
    ENDS.each do |end_name, act|
      define_method("test_#{name}_ended_by_#{end_name}".gsub(/\W+/, "_")) do
        MOMENTS.first(3).each { |moment| leaves_nothing(moment) { end_of_thread(prepare, act, moment) } }
      end
    end

    define_method("test_#{name}_goes_on_when_its_thread_ends".gsub(/\W+/, "_")) do
      MOMENTS.first(3).each { |moment| leaves_nothing(moment) { close_of_scheduler(prepare, moment) } }
    end

    define_method("test_#{name}_ended_by_exit".gsub(/\W+/, "_")) do
      MOMENTS.first(3).each { |moment| end_of_process(prepare, moment) }
    end
  end

  def cell(prepare, way, moment)
    leaves_nothing(moment) do
      outcome = in_fiber { end_of(prepare.call, way, moment) }
      assert_includes [:value, *way.raises], outcome, moment
    end
  end

  # Ruby raises what has come to the thread after accept4(2) has returned a socket, and forgets that (thread.c,
  # rb_thread_io_blocking_call); Ruby 3.4 that another thread has closed the server, too.
  def forgets_a_socket?(moment)
    comes = RUBY_VERSION < "4.0" ? /accept_ended_by_(Thread_raise|Thread_kill|IO_close_by_a_thread)/ : /accept_ended_by_Thread/
    moment == :completed && name.match?(comes)
  end

  def leaves_nothing(moment)
    GC.start
    before = open_descriptors
    yield
    GC.start
    assert_operator open_descriptors, :<=, before + (forgets_a_socket?(moment) ? 1 : 0), moment
  end

  # The wait of a fiber, begun as far as the moment says.
  def begin_in_fiber(prepare, moment)
    wait = prepare.call
    value = nil
    Fiber.schedule { value = wait.wait.call }
    Fiber.scheduler.machine.submit unless moment == :before_submission
    wait.complete.call if moment == :completed
    [wait, -> { value }]
  end

  def end_of_thread(prepare, act, moment)
    begun = Thread::Queue.new
    thread = Thread.new do
      Thread.current.report_on_exception = false
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        begun << begin_in_fiber(prepare, moment)
        sleep
      end
    end
    wait, value = begun.pop
    act.call(thread)
    assert_nil((thread.join rescue nil)&.status || nil)
    # What has been done in a thread that ends is lost with it, as without a scheduler.
    return if moment == :completed || wait.io.nil? || wait.io.closed?

    wait.complete.call
    assert wait.check.call(value.call), "#{moment}: lost"
  ensure
    Waits.close_all
  end

  # The thread ends, and with it its scheduler, which waits for its fibers.
  def close_of_scheduler(prepare, moment)
    begun = Thread::Queue.new
    thread = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      begun << begin_in_fiber(prepare, moment)
    end
    wait, value = begun.pop
    wait.complete.call unless moment == :completed
    thread.join
    assert wait.check.call(value.call), "#{moment}: lost"
  ensure
    Waits.close_all
  end

  def end_of_process(prepare, moment)
    pid = fork do
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule do
          begin_in_fiber(prepare, moment)
          exit!(3) unless UM.supported?
          exit(7)
        end
      end.join
      exit!(4)
    end
    assert_equal 7, Process.wait2(pid).last.exitstatus, moment
  end

  def end_of(wait, way, moment)
    value = outcome = nil
    fiber = Fiber.schedule do
      outcome = :killed
      value = way.around ? way.around.call(wait, wait.wait) : wait.wait.call
      outcome = :value
      # What came when the wait was over is raised at the next, or, from a thread whose close found it running, at the one after.
      2.times { sleep(0) }
    rescue Stop, IOError, SystemCallError => e
      outcome = e.class
    end
    completes = %i[completed after].include?(moment)
    Fiber.scheduler.machine.submit unless moment == :before_submission
    wait.complete.call if completes
    sleep(0) while moment == :after && fiber.alive?
    way.act.call(fiber, wait)
    wait.complete.call unless completes || wait.io&.closed?
    sleep(0) while fiber.alive?
    wait.io&.timeout = nil unless wait.io&.closed?
    # Who is killed once the kernel has moved bytes cannot be given them, as a thread cannot.
    unless wait.io&.closed? || (outcome == :killed && moment == :completed)
      assert wait.check.call(value), "#{moment}: lost"
    end
    outcome
  ensure
    Waits.close_all
  end
end
