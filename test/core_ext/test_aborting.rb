# frozen_string_literal: true

require_relative "../test_helper"

# What Thread#status says in a fiber whose end comes by no exception: libraries of databases roll back by it.
class TestAborting < SchedulerTest
  # As ActiveRecord's and Sequel's: what is left by no exception is committed, unless the thread is aborting.
  def transaction
    done = false
    yield
    done = true
  rescue Exception # rubocop:disable Lint/RescueException -- and raised again
    @ended = :rolled_back
    raise
  ensure
    @ended ||= done || Thread.current.status != "aborting" ? :committed : :rolled_back
  end

  # How a transaction ends that something comes to.
  def ended(kind)
    @ended = nil
    Thread.new do
      Thread.current.report_on_exception = false
      Fiber.set_scheduler(UM::FiberScheduler.new)
      fiber = Fiber.schedule do
        transaction { kind == :end ? sleep(0.001) : sleep }
      rescue RuntimeError
        # It was raised in the fiber.
      end
      Fiber.schedule { kind == :kill ? fiber.kill : fiber.raise("boom") } if %i[kill raise].include?(kind)
      thread = Thread.current
      # When the thread's own program waits for its fibers.
      Fiber.schedule { sleep(0.001) && Thread.new { kind == :thread_raise ? thread.raise("boom") : thread.kill }.join } if %i[thread_raise thread_kill].include?(kind)
    end.join
    @ended
  rescue RuntimeError
    @ended
  end

  { end: :committed, kill: :rolled_back, raise: :rolled_back, thread_raise: :rolled_back, thread_kill: :rolled_back }.each do |kind, how|
    define_method(:"test_#{kind}") { assert_equal how, ended(kind) }
  end

  def test_a_throw_commits
    @ended = nil
    in_fiber { catch(:out) { transaction { throw :out } } }
    assert_equal :committed, @ended
  end

  # The other fibers' thread, and whoever asks from another thread, see nothing of it.
  def test_only_in_the_fiber
    seen = []
    in_fiber do
      fiber = Fiber.schedule do
        sleep
      ensure
        seen << Thread.current.status << Thread.main.status
        Fiber.schedule { seen << Thread.current.status }
      end
      fiber.kill
      seen << Thread.current.status
    end
    assert_equal "aborting", seen.first
    assert_equal %w[run run], seen.last(2)
    assert_equal "run", Thread.current.status
  end

  def test_machine
    machine = UM.new
    seen = nil
    fiber = machine.spin do
      machine.yield
    ensure
      seen = Thread.current.status
    end
    machine.snooze
    fiber.kill
    assert_equal ["aborting", "run"], [seen, Thread.current.status]
  end
end
