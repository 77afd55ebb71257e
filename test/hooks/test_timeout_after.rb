# frozen_string_literal: true

require_relative "../test_helper"

# Timeout.
class TestTimeoutAfter < SchedulerTest
  def test_a_timeout_ends_what_waits
    in_fiber do
      reader, = IO.pipe
      [-> { sleep }, -> { Queue.new.pop }, -> { reader.readpartial(1) }, -> { reader.wait_readable }, -> { IO.select([reader]) }].each do |wait|
        assert_raises(Timeout::Error) { Timeout.timeout(0.005) { wait.call } }
      end
    end
  end

  def test_a_timeout_raises_the_class_and_message_asked_for
    in_fiber do
      error = assert_raises(IOError) { Timeout.timeout(0.001, IOError, "too late") { sleep } }
      assert_equal "too late", error.message
    end
  end

  # What Timeout.timeout answers to, each for a wait that ends in time, or not.
  CALLS = {
    plain: ->(wait) { Timeout.timeout(0.01) { wait.call } },
    rational: ->(wait) { Timeout.timeout(1/100r) { wait.call } },
    given: ->(_) { Timeout.timeout(10) { |seconds| seconds } },
    a_class: ->(wait) { Timeout.timeout(0.01, IOError) { wait.call } },
    a_message: ->(wait) { Timeout.timeout(0.01, nil, "late") { wait.call } },
    both: ->(wait) { Timeout.timeout(0.01, IOError, "late") { wait.call } },
    no_class: ->(wait) { Timeout.timeout(0.01, false, false) { wait.call } },
    the_error: ->(wait) { Timeout.timeout(0.01, Timeout::Error) { wait.call } },
    none: ->(_) { Timeout.timeout(nil) { |seconds| seconds.inspect } },
    zero: ->(_) { Timeout.timeout(0) { |seconds| seconds } },
    tiny: ->(_) { Timeout.timeout(0.0) { |seconds| seconds } },
    negative: ->(_) { Timeout.timeout(-1) { 1 } },
    a_string: ->(_) { Timeout.timeout("1") { 1 } },
    no_argument: ->(_) { Timeout.timeout { 1 } },
    too_many: ->(_) { Timeout.timeout(1, nil, nil, nil) { 1 } },
    keywords: ->(_) { Timeout.timeout(1, wrong: 1) { 1 } },
    next: ->(_) { Timeout.timeout(1) { next 2 } },
    break: ->(_) { Timeout.timeout(1) { break 3 } },
    return: lambda { |_|
      Timeout.timeout(1) { return 4 }
      5
    },
    throw: ->(_) { catch(:out) { Timeout.timeout(1) { throw :out, 6 } } },
    error: ->(_) { Timeout.timeout(1) { raise IOError, "of the block" } },
    seen_inside: lambda { |wait|
      Timeout.timeout(0.01) do
        wait.call
      rescue Exception => e # rubocop:disable Lint/RescueException
        [e.class.name, e.message]
      end
    },
    standard_inside: lambda { |wait|
      Timeout.timeout(0.01) do
        wait.call
      rescue StandardError
        "taken for an error of the block"
      end
    },
    nested: lambda { |wait|
      Timeout.timeout(10) do
        Timeout.timeout(0.01, IOError, "inner") { wait.call }
      rescue IOError => e
        e.message
      end
    },
    outer: ->(wait) { Timeout.timeout(0.01, IOError, "outer") { Timeout.timeout(10) { wait.call } } },
    private: ->(wait) { Object.new.extend(Timeout).__send__(:timeout, 0.01) { wait.call } }
  }.freeze

  CALLS.each do |name, call|
    define_method("test_timeout_is_as_in_a_thread_#{name}") do
      [-> { 7 }, -> { sleep }].each do |wait|
        answer = lambda do
          call.call(wait)
        rescue StandardError => e
          [e.class.name, e.message, e.cause.class.name]
        end
        assert_equal Thread.new(&answer).value, in_fiber { answer.call }
      end
    end
  end

  # A class of a program's own has the hook called.
  def test_a_schedulers_own_hook_is_called
    limits = []
    own = Class.new(UM::FiberScheduler) do
      define_method(:timeout_after) { |duration, *rest, &block| (limits << duration) && super(duration, *rest, &block) }
    end
    Thread.new do
      Fiber.set_scheduler(own.new)
      Fiber.schedule { Timeout.timeout(10) { sleep 0 } }
    end.join
    assert_equal [10], limits
  end

  def test_a_timeout_that_does_not_fire_returns_the_value_and_leaves_nothing
    in_fiber do
      assert_equal :value, Timeout.timeout(0.002) { :value }
      # The next wait outlives the deadline that is no more.
      started = now
      sleep 0.01
      assert_operator now - started, :>=, 0.01
    end
  end

  def test_a_limit_that_is_not_reached_leaves_no_timer
    in_fiber do |scheduler|
      pending = -> { scheduler.machine.metrics[:ops_pending] }
      reader, writer = UNIXSocket.pair
      reader.timeout = 3600
      queue = Thread::Queue.new
      waits = {
        read: -> { reader.readpartial(1) }, wait: -> { reader.wait_readable(3600) && reader.read_nonblock(1) },
        select: -> { IO.select([reader], nil, nil, 3600) && reader.read_nonblock(1) }, block: -> { queue.pop(timeout: 3600) },
        timeout: -> { Timeout.timeout(3600) { queue.pop } }, sleep: -> { Timeout.timeout(3600) { sleep 0.001 } }
      }
      waits.each do |name, wait|
        before = pending.call
        Fiber.schedule do
          scheduler.yield
          writer << "x"
          queue << 1
        end
        wait.call
        reader.read_nonblock(1, exception: false)
        queue.clear
        assert_equal before, pending.call, name
      end
    end
  end

  def test_nested_timeouts_raise_inside_their_own_block
    in_fiber do
      log = []
      begin
        Timeout.timeout(0.005) do
          Timeout.timeout(1) { sleep }
        rescue Timeout::Error
          log << :inner
          raise
        end
      rescue Timeout::Error
        log << :outer
      end
      assert_equal :outer, log.last
      assert_raises(Timeout::Error) { Timeout.timeout(1) { Timeout.timeout(0.001) { sleep } } }
    end
  end

  def test_a_timeout_reaches_a_fiber_that_waits_in_an_enumerator
    in_fiber do
      enumerator = Enumerator.new { |yielder| yielder << sleep }
      assert_raises(Timeout::Error) { Timeout.timeout(0.005) { enumerator.next } }
    end
  end

  def test_a_timeout_reaches_a_fiber_that_waits_in_another_while_others_are_ready
    done = false
    result = nil
    reader, writer = IO.pipe
    scheduled do
      Fiber.schedule { Fiber.scheduler.yield until done }
      Fiber.schedule do
        result = assert_raises(Timeout::Error) { Timeout.timeout(0.01) { Fiber.new { reader.read(1) }.resume } }
      ensure
        done = true
      end
    end

    assert_instance_of Timeout::Error, result
  ensure
    # It is no garbage until here.
    [reader, writer].each(&:close)
  end

  def test_timeout_error_is_caught_where_plain_ruby_catches_it
    in_fiber do
      outcome = begin
        Timeout.timeout(0.001) do
          sleep
        rescue StandardError
          :inside
        end
      rescue Timeout::Error
        :outside
      end
      assert_includes %i[inside outside], outcome
    end
  end

  private

  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
end
