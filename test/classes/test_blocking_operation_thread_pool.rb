# frozen_string_literal: true

require_relative "../test_helper"

# UM::BlockingOperationThreadPool.
class TestBlockingOperationThreadPool < MachineTest
  class Failed < StandardError; end

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

  def test_bad_pools
    assert_names("max", TypeError) { UM::BlockingOperationThreadPool.new("1") }
    assert_names("max", ArgumentError) { UM::BlockingOperationThreadPool.new(0) }
    assert_names("callable", TypeError) { UM::BlockingOperationThreadPool.new.process(machine, 1) }
  end
end
