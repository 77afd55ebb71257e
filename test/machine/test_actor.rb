# frozen_string_literal: true

require_relative "../test_helper"

# UM::Actor, and UM::BlockingOperationThreadPool.
class TestMachineActor < MachineTest
  class Failed < StandardError; end

  # What the actors run.
  module Counter
    def setup(count = 0, torn_down: nil)
      @count = count
      @torn_down = torn_down
    end

    def teardown = @torn_down&.push(:torn_down)
    def increment = @count += 1
    def get = @count
    def add(number, times: 1) = @count += number * times
    def fail = raise(Failed)
    def thread = Thread.current
  end

  def test_an_actor_answers_calls_and_takes_casts
    actor = machine.spin_actor(Counter, 5)
    mailbox = UM::Queue.new
    assert_kind_of Fiber, actor
    assert_equal 5, actor.call(mailbox, :get)
    assert_equal 6, actor.call(mailbox, :increment)
    assert_same actor, actor.cast(:increment)
    assert_equal 13, actor.call(mailbox, :add, 2, times: 3)
    assert_same actor, actor.stop
    machine.join(actor)
  end

  def test_what_a_call_raises_is_raised_by_the_caller_and_the_actor_goes_on
    actor = machine.spin_actor(Counter)
    assert_raises(Failed) { actor.call(UM::Queue.new, :fail) }
    assert_equal 1, actor.call(UM::Queue.new, :increment)
    assert_raises(NoMethodError) { actor.call(UM::Queue.new, :nothing) }
  end

  def test_what_a_cast_raises_ends_the_actor_and_tells_who_waits
    actor = machine.spin_actor(Counter)
    _, printed = capture_io do
      caller = machine.spin { actor.cast(:fail).call(UM::Queue.new, :get) }
      assert_instance_of UM::Error, machine.join(caller)
      assert_instance_of Failed, machine.join(actor)
    end
    assert_match(/terminated with exception/, printed)
    assert_raises(UM::Error) { actor.cast(:get) }
    assert_raises(UM::Error) { actor.call(UM::Queue.new, :get) }
  end

  def test_teardown_is_called_at_the_end
    seen = []
    actor = machine.spin_actor(Counter, 0, torn_down: seen)
    actor.stop
    machine.join(actor)
    assert_equal [:torn_down], seen
  end

  def test_an_actor_on_a_thread_of_its_own
    actor = machine.spin_thread_actor(Counter, 7)
    mailbox = UM::Queue.new
    assert_equal 8, actor.call(mailbox, :increment)
    refute_equal Thread.current, actor.call(mailbox, :thread)
    assert_raises(Failed) { actor.call(mailbox, :fail) }
    other = machine.spin { machine.sleep(0) && :ran }
    assert_equal 8, actor.call(mailbox, :get)
    assert_equal :ran, machine.join(other)
    actor.stop
    machine.join(actor)
  end

  def test_bad_arguments
    assert_names("mod", TypeError) { machine.spin_actor(1) }
    assert_names("mod", TypeError) { machine.spin_thread_actor("x") }
    assert_raises(ArgumentError) { machine.spin_thread_actor(Counter, 1, 2, 3) }
    actor = machine.spin_actor(Counter)
    assert_names("mailbox", TypeError) { actor.call([], :get) }
  end

  def test_the_pool_runs_what_blocks_while_other_fibers_run
    pool = UM::BlockingOperationThreadPool.new(2)
    release = Thread::Queue.new
    fibers = Array.new(4) { |number| machine.spin { pool.process(machine, -> { release.pop && number }) } }
    ticks = 0
    ticker = machine.spin { 10.times { machine.sleep(0.001) && ticks += 1 } }
    machine.join(ticker)
    assert_equal 10, ticks
    4.times { release << true }
    assert_equal [0, 1, 2, 3], machine.join(fibers)
  end

  def test_the_pool_raises_what_is_raised_and_goes_on
    pool = UM::BlockingOperationThreadPool.new(1)
    assert_raises(Failed) { pool.process(machine, -> { raise Failed }) }
    assert_raises(NotImplementedError) { pool.process(machine, -> { raise NotImplementedError }) }
    assert_equal 1, pool.process(machine, -> { 1 })
  end

  def test_a_wait_for_the_pool_can_be_cut_off
    pool = UM::BlockingOperationThreadPool.new(1)
    release = Thread::Queue.new
    running = machine.spin { pool.process(machine, -> { release.pop }) }
    machine.snooze
    begun = false
    assert_raises(Failed) { machine.timeout(0.002, Failed) { pool.process(machine, -> { begun = true }) } }
    release << :done
    assert_equal :done, machine.join(running)
    assert_equal 2, pool.process(machine, -> { 2 })
    refute begun
  end

  def test_a_child_of_fork_has_threads_of_its_own
    pool = UM::BlockingOperationThreadPool.new(1)
    pool.process(machine, -> { 1 })
    reader, writer = IO.pipe
    pid = fork do
      writer.print pool.process(UM.new, -> { 2 })
      exit!(0)
    end
    writer.close
    assert_equal "2", reader.read
    Process.wait(pid)
  end

  def test_a_job_that_ends_its_thread_fails_and_the_pool_goes_on
    pool = UM::BlockingOperationThreadPool.new(1)
    [-> { Thread.exit }, -> { Thread.current.kill }, -> { Thread.current.kill && sleep }].each do |job|
      error = assert_raises(UM::Error) { pool.process(machine, job) }
      assert_match(/thread/, error.message)
      assert_equal 1, pool.process(machine, -> { 1 })
    end
    assert_raises(UncaughtThrowError) { catch(:out) { pool.process(machine, -> { throw :out }) } }
    assert_raises(SystemExit) { pool.process(machine, -> { exit }) }
    assert_raises(Exception) { pool.process(machine, -> { raise Exception }) }
    assert_raises(StopIteration) { pool.process(machine, -> { raise StopIteration }) }
    assert_equal 1, pool.process(machine, -> { 1 })
  end

  def pool_threads = Thread.list.select { |thread| thread.name == "um-pool" }

  def test_a_pool_goes_on_whose_threads_are_killed
    pool = UM::BlockingOperationThreadPool.new(2)
    200.times do |round|
      # Idle, about to begin, about to end.
      pool_threads.each(&:kill)
      Thread.pass if round.odd?
      assert_equal round, pool.process(machine, -> { round })
    rescue UM::Error => e
      # It was at the job.
      assert_match(/thread/, e.message)
    end
  end

  def test_jobs_that_wait_for_a_killed_thread_are_done_by_another
    pool = UM::BlockingOperationThreadPool.new(1)
    begun = Thread::Queue.new
    stuck = machine.spin { pool.process(machine, -> { begun << true && sleep }) }
    machine.snooze
    waiting = Array.new(3) { |number| machine.spin { pool.process(machine, -> { number }) } }
    eventually { !begun.empty? && waiting.none?(&:done?) }
    pool_threads.each(&:kill)
    assert_equal [0, 1, 2], machine.join(waiting)
    assert_instance_of UM::Error, machine.join(stuck)
  end

  def test_two_jobs_that_need_each_other
    pool = UM::BlockingOperationThreadPool.new(8)
    500.times do
      there, back = Thread::Queue.new, Thread::Queue.new
      fibers = [machine.spin { pool.process(machine, -> { there << 1 && back.pop }) }, machine.spin { pool.process(machine, -> { there.pop && back << 2 }) }]
      assert_equal 2, machine.join(fibers).first
    end
  end

  def test_a_process_ends_while_jobs_wait
    output, status = ruby(<<~RUBY)
      pool = UM::BlockingOperationThreadPool.new(1)
      begun = Thread::Queue.new
      3.times { Thread.new { pool.process(UM.new, -> { begun << true && sleep }) } }
      begun.pop
      puts "ends"
    RUBY
    assert_equal ["ends\n", true], [output, status.success?]
  end

  def test_an_actor_whose_thread_is_killed_tells_who_waits
    torn_down = []
    actor = machine.spin_thread_actor(Counter, 0, torn_down:)
    thread = actor.call(UM::Queue.new, :thread)
    asking = machine.spin { actor.call(UM::Queue.new, :sleep) }
    machine.snooze
    thread.kill
    assert_instance_of UM::Error, machine.join(asking)
    thread.join
    assert_equal [:torn_down], torn_down
    assert_raises(UM::Error) { actor.call(UM::Queue.new, :get) }
    assert_raises(UM::Error) { actor.cast(:get) }
  end

  # An actor that ends its thread.
  module Ender
    def setup(method = nil) = method && Thread.current.public_send(method)
    def exit = Thread.exit
  end

  def test_an_actor_that_ends_its_thread
    assert_raises(UM::Error) { machine.spin_thread_actor(Ender, :exit) }
    actor = machine.spin_thread_actor(Ender)
    assert_raises(UM::Error) { actor.call(UM::Queue.new, :exit) }
    assert_raises(UM::Error) { actor.call(UM::Queue.new, :exit) }
  end

  def test_bad_pools
    assert_names("max", TypeError) { UM::BlockingOperationThreadPool.new("1") }
    assert_names("max", ArgumentError) { UM::BlockingOperationThreadPool.new(0) }
    assert_names("callable", TypeError) { UM::BlockingOperationThreadPool.new.process(machine, 1) }
  end

  def test_a_thread_actor_without_a_machine_to_be_had
    output, = ruby(<<~RUBY)
      m = UM.new
      m.snooze
      Process.setrlimit(:NOFILE, File.open(File::NULL, &:fileno))
      begin
        m.spin_thread_actor(Module.new { def setup = nil })
      rescue Errno::EMFILE => e
        p e.class
      end
    RUBY
    assert_match(/Errno::EMFILE\n\z/, output)
  end
end
