# frozen_string_literal: true

require_relative "test_helper"

# The clock of the day steps, and waits are as long as they were asked to be. For a machine whose clock may be set:
#
#   script/vm bookworm env UM_MAY_SET_CLOCK=1 script/with-ruby ruby -Itest test/test_clock.rb
class TestClock < SchedulerTest
  STEPS = [3600, -7200, 86_400, -82_800].freeze

  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  def step(seconds) = system("date", "-s", "@#{Time.now.to_i + seconds}", out: File::NULL, exception: true)

  WAITS = {
    sleep: -> { sleep(0.2) },
    timeout: -> { Timeout.timeout(0.2) { sleep } rescue Timeout::Error },
    pop: -> { Thread::Queue.new.pop(timeout: 0.2) },
    wait_readable: -> { IO.pipe.then { |reader, writer| reader.wait_readable(0.2) || writer } },
    io_timeout: -> { IO.pipe.then { |reader, writer| (reader.timeout = 0.2) && reader.read(1) || writer } rescue IO::TimeoutError },
    select: -> { IO.pipe.then { |reader, writer| IO.select([reader], nil, nil, 0.2) || writer } },
    condition: -> { Mutex.new.then { |mutex| mutex.synchronize { Thread::ConditionVariable.new.wait(mutex, 0.2) } } },
    join: -> { Thread.new { Thread.stop }.then { |thread| thread.join(0.2) || thread.kill } },
    machine: -> { Fiber.scheduler.machine.sleep(0.2) }
  }.freeze

  def test_waits_are_as_long_as_they_were
    skip "this machine's clock is not the test's to set" unless ENV["UM_MAY_SET_CLOCK"]
    ended = []
    scheduled do
      WAITS.each do |name, wait|
        Fiber.schedule do
          begun = now
          wait.call
          ended << [name, now - begun]
        end
      end
      Fiber.schedule { STEPS.each { |seconds| step(seconds) && sleep(0.01) } }
    end
    assert_equal WAITS.keys.sort, ended.map(&:first).sort
    # None is cut short, and all have ended, by whichever step.
    assert_empty(ended.select { |_, seconds| seconds < 0.19 || seconds > 600 })
  ensure
    step(-STEPS.sum) if ENV["UM_MAY_SET_CLOCK"]
  end
end
