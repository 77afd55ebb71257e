# frozen_string_literal: true

require "weakref"
require_relative "../test_helper"

# spin, schedule, switch, yield, join and what every Fiber gets.
class TestMachineFibers < MachineTest
  class Failed < StandardError; end
  class MyFiber < Fiber; end

  def test_a_spun_fiber_runs_when_the_current_one_waits
    seen = []
    fiber = machine.spin(42) { |value| seen << value }
    assert_kind_of Fiber, fiber
    assert_empty seen
    assert_nil fiber.done?
    machine.snooze
    assert_equal [42], seen
    assert_equal true, fiber.done?
    refute_predicate fiber, :alive?
  end

  def test_a_fiber_of_a_class
    fiber = machine.spin(1, MyFiber) { |value| value + 1 }
    assert_instance_of MyFiber, fiber
    assert_equal 2, machine.join(fiber)
    assert_names("klass", TypeError) { machine.spin(nil, String) {} }
    assert_names("klass", TypeError) { machine.spin(nil, 1) {} }
    assert_raises(ArgumentError) { machine.spin }
  end

  def test_fibers_run_in_the_order_they_were_spun
    order = []
    3.times { |number| machine.spin { 2.times { (order << number) && machine.snooze } } }
    machine.snooze until order.size == 6
    assert_equal [0, 1, 2, 0, 1, 2], order
  end

  def test_join_returns_results_in_order
    first = machine.spin { machine.sleep(0.01) && :first }
    second = machine.spin { :second }
    assert_equal :second, machine.join(second)
    assert_equal %i[first second], machine.join(first, second)
    assert_equal %i[first second], machine.join([first, second])
    assert_equal [:first], machine.join([first])
    assert_equal %i[a b c], machine.join(-> { machine.sleep(0.01) && :a }, ->(_) { :b }, proc { :c })
    assert_equal 2, machine.await(first, second)
    assert_equal 1, machine.await([first])
    assert_names("fibers", TypeError) { machine.join(1) }
    assert_names("fibers", TypeError) { machine.await([nil]) }
  end

  def test_join_of_one_fiber_twice_and_of_none
    fiber = machine.spin { machine.sleep(0) }
    assert_equal [0, 0], machine.join(fiber, fiber)
    assert_equal [], machine.join([])
    assert_equal 0, machine.await
  end

  def test_join_waits_for_the_end_whatever_else_comes_to_the_mailbox
    fiber = machine.spin { machine.sleep(0.005) && :done }
    machine.push(Fiber.current.mailbox, :message)
    assert_equal :done, machine.join(fiber)
    assert_equal :message, machine.shift(Fiber.current.mailbox)
  end

  def test_join_of_a_fiber_of_another_thread
    queue = UM::Queue.new
    fibers = UM::Queue.new
    thread = Thread.new do
      other = UM.new
      fiber = other.spin { other.shift(queue) }
      other.push(fibers, fiber)
      other.join(fiber)
    end
    fiber = machine.shift(fibers)
    machine.push(queue, :over_there)
    assert_equal :over_there, machine.join(fiber)
    thread.join
  end

  def test_an_exception_is_the_result_and_is_reported_unless_somebody_waits
    assert_instance_of Failed, machine.join(machine.spin { raise Failed })
    _, printed = capture_io do
      fiber = machine.spin { raise Failed, "unheard" }
      machine.snooze
      assert_instance_of Failed, fiber.result
    end
    assert_match(/terminated with exception.*unheard/m, printed)
    _, printed = capture_io do
      machine.terminate(fiber = machine.spin { machine.sleep })
      eventually { fiber.done? }
    end
    assert_empty printed
  end

  def test_exit_in_a_fiber_exits
    output, status = ruby("m = UM.new; m.spin { begin; exit 3; ensure; puts :ensured; end }; m.sleep(10); puts :not_reached")
    assert_equal 3, status.exitstatus
    assert_equal "ensured\n", output
  end

  def test_schedule_gives_a_value_to_yield_and_switch
    main = Fiber.current
    seen = []
    fiber = Fiber.new do |value|
      seen << value
      machine.schedule(main, 21)
      seen << machine.switch
    end
    machine.schedule(fiber, 11)
    assert_equal 21, machine.yield
    assert_equal [11], seen
    machine.schedule(fiber, 12)
    machine.snooze
    assert_equal [11, 12], seen
  end

  def test_values_scheduled_one_after_another_all_arrive
    main = Fiber.current
    machine.spin { 3.times { |number| machine.schedule(main, number) } }
    assert_equal([0, 1, 2], Array.new(3) { machine.yield })
    machine.schedule(main, :early)
    assert_equal :early, machine.yield
  end

  def test_schedule_with_an_exception_raises_at_the_wait
    waits = {
      yield: -> { machine.yield }, switch: -> { machine.switch }, sleep: -> { machine.sleep },
      read: -> { machine.read(opened(IO.pipe.map { |io| io.autoclose = false; io.fileno }).first, +"", 1) },
      shift: -> { machine.shift(UM::Queue.new) }
    }
    waits.each do |name, wait|
      fiber = machine.spin do
        wait.call
      rescue Failed
        name
      end
      machine.snooze
      machine.schedule(fiber, Failed.new)
      assert_equal name, machine.join(fiber)
    end
  end

  def test_an_exception_scheduled_before_the_start_is_raised_instead_of_the_block
    started = false
    fiber = machine.spin { started = true }
    machine.schedule(fiber, Failed.new)
    assert_instance_of Failed, machine.join(fiber)
    refute started
  end

  def test_an_exception_scheduled_while_it_runs_is_raised_at_its_next_wait
    fiber = machine.spin do
      machine.schedule(Fiber.current, Failed.new)
      ran_on = true
      machine.snooze
    rescue Failed
      ran_on
    end
    assert_equal true, machine.join(fiber)
  end

  def test_who_raises_in_a_fiber_by_ruby_goes_on
    order = []
    fiber = machine.spin do
      machine.sleep
    rescue Failed
      order << :failed
      machine.sleep
    end
    raiser = machine.spin do
      fiber.raise(Failed)
      order << :back
      assert_same fiber, fiber.kill
      order << fiber.alive?
    end
    machine.join(raiser)
    fiber.raise(Failed) if fiber.alive?
    assert_equal [:failed, :back, false], order
    unborn = machine.spin { flunk }
    assert_raises(FiberError) { unborn.raise(Failed) }
    assert_same unborn, unborn.kill
    machine.snooze
    assert_predicate unborn, :done?
  end

  def test_two_exceptions_are_both_raised_in_order
    raised = []
    fiber = machine.spin do
      2.times do
        machine.sleep
      rescue ArgumentError, Failed => e
        raised << e.class
      end
    end
    machine.snooze
    machine.schedule(fiber, Failed.new)
    machine.schedule(fiber, ArgumentError.new)
    machine.join(fiber)
    assert_equal [Failed, ArgumentError], raised
  end

  def test_a_second_exception_during_the_cancelling_of_a_read_is_raised_later
    reader, = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
    raised = []
    fiber = machine.spin do
      [-> { machine.read(reader, +"", 1) }, -> { machine.sleep }].each do |wait|
        wait.call
      rescue ArgumentError, Failed => e
        raised << e.class
      end
    end
    machine.snooze
    machine.schedule(fiber, Failed.new)
    machine.schedule(fiber, ArgumentError.new)
    machine.join(fiber)
    assert_equal [Failed, ArgumentError], raised
  end

  def test_a_finished_fiber_is_left_alone_and_wakes_nobody
    fiber = machine.spin {}
    machine.snooze
    machine.schedule(fiber, :value)
    started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    assert_equal 0.02, machine.sleep(0.02)
    assert_operator Process.clock_gettime(Process::CLOCK_MONOTONIC) - started, :>=, 0.02
  end

  def test_schedule_from_another_thread_ends_the_sleep_in_the_kernel
    main = Fiber.current
    thread = Thread.new { machine.schedule(main, :from_there) }
    assert_equal :from_there, machine.yield
    thread.join
  end

  def test_wakeup_from_another_thread_does_no_harm
    thread = Thread.new { 10.times { machine.wakeup } }
    assert_equal 0.01, machine.sleep(0.01)
    thread.join
    assert_nil machine.wakeup
  end

  def test_terminate_ends_fibers_and_runs_their_ensure_blocks
    ended = []
    fibers = Array.new(3) { |number| machine.spin { machine.sleep }.tap { |fiber| machine.spin { machine.join(fiber) && (ended << number) } } }
    machine.snooze
    assert_same machine, machine.terminate(fibers.first)
    machine.terminate(fibers.last(2))
    machine.join(fibers)
    fibers.each { |fiber| assert_instance_of UM::Terminate, fiber.result }
    assert_instance_of UM::Terminate, UM::TERMINATE_EXCEPTION
    assert_names("fiber", TypeError) { machine.terminate(:fiber) }
  end

  def test_a_fiber_that_snoozes_in_a_loop_does_not_keep_io_from_going_on
    reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
    done = false
    snoozer = machine.spin { machine.snooze until done }
    machine.spin { machine.sleep(0.005) && machine.write(writer, "x") }
    assert_equal 1, machine.read(reader, +"", 1)
    done = true
    machine.join(snoozer)
  end

  def test_fiber_set_and_pending_fibers_are_the_callers_own
    fiber = machine.spin { machine.sleep }
    assert_equal Set[fiber], machine.fiber_set
    assert_equal Set[], machine.pending_fibers
    machine.snooze
    assert_equal Set[fiber], machine.pending_fibers
    machine.pending_fibers.clear
    machine.fiber_set.clear
    assert_equal Set[fiber], machine.pending_fibers
    machine.terminate(fiber)
    machine.join(fiber)
    assert_empty machine.fiber_set
  end

  def test_fibers_that_have_switched_away_for_good_are_collected
    references = Array.new(50) { WeakRef.new(Fiber.new { machine.switch }.tap { |fiber| machine.schedule(fiber, nil) }) }
    machine.snooze
    3.times { GC.start }
    assert_operator references.count(&:weakref_alive?), :<, 25
  end

  def test_a_fiber_that_nobody_refers_to_is_kept_while_it_waits
    seen = 0
    100.times { machine.spin { machine.sleep(0.01) && seen += 1 } }
    machine.snooze
    GC.start
    machine.sleep(0.05) until seen == 100
  end

  def test_run_sets_the_result_of_a_fiber_of_the_programs_own
    fiber = nil
    fiber = Fiber.new { machine.run(fiber) { 42 } }
    machine.schedule(fiber, nil)
    assert_equal 42, machine.join(fiber)
    failing = nil
    failing = Fiber.new { machine.run(failing) { raise Failed } }
    machine.schedule(failing, nil)
    assert_instance_of Failed, machine.join(failing)
    assert_names("fiber", TypeError) { machine.run(nil) {} }
    assert_raises(ArgumentError) { machine.run(fiber) }
  end

  def test_done_listeners_and_mailboxes
    queue = UM::Queue.new
    fiber = machine.spin { 1 }
    assert_nil fiber.done_listeners
    assert_same fiber, fiber.add_done_listener(queue)
    assert_equal [queue], fiber.done_listeners
    assert_same fiber, machine.shift(queue)
    fiber.add_done_listener(queue)
    assert_same fiber, machine.shift(queue)
    assert_instance_of UM::Queue, fiber.mailbox
    assert_same fiber.mailbox, fiber.mailbox
    assert_names("queue", TypeError) { fiber.add_done_listener([]) }
    other = Fiber.new {}
    other.set_result(5)
    other.mark_as_done
    assert_equal 5, machine.join(other)
  end

  def test_a_program_that_has_methods_of_these_names_on_fiber_keeps_them
    output, = ruby(<<~RUBY)
      class Fiber; def result = :mine; end
      m = UM.new
      p m.spin { 1 }.tap { m.snooze }.result
    RUBY
    assert_equal ":mine\n", output
  end

  def test_a_signal_is_raised_in_the_root_fiber_and_not_in_the_one_that_waited_last
    output, status = ruby(<<~RUBY)
      m = UM.new
      m.spin { begin; m.sleep(30); rescue Interrupt; puts "wrong fiber"; end }
      m.spin { m.sleep(0.01); Process.kill(:INT, Process.pid) }
      begin
        m.sleep(30)
      rescue Interrupt
        puts "interrupted"
      end
    RUBY
    assert_equal "interrupted\n", output
    assert_predicate status, :success?
  end

  def test_a_trap_handler_runs_while_the_machine_sleeps
    output, = ruby(<<~RUBY)
      m = UM.new
      main = Fiber.current
      trap(:USR1) { puts "trapped"; m.schedule(main, :trapped) }
      m.spin { m.sleep(0.01); Process.kill(:USR1, Process.pid) }
      p m.yield
    RUBY
    assert_equal "trapped\n:trapped\n", output
  end

  def test_thread_raise_and_kill_unwind_a_wait
    [->(thread) { thread.raise(Failed) }, :kill.to_proc].each do |interrupt|
      ensured = false
      thread = Thread.new do
        Thread.current.report_on_exception = false
        other = UM.new
        other.sleep
      ensure
        ensured = true
      end
      Thread.pass until thread.status == "sleep"
      interrupt.call(thread)
      begin
        thread.join
      rescue Failed
        # As asked.
      end
      assert ensured
    end
  end

  def test_wrong_arguments
    assert_names("fiber", TypeError) { machine.schedule(nil, 1) }
    assert_names("fiber", TypeError) { machine.schedule(Thread.current, 1) }
    assert_raises(ArgumentError) { machine.schedule(Fiber.current) }
    assert_raises(ArgumentError) { machine.switch(1) }
    assert_raises(ArgumentError) { machine.yield(1) }
    assert_raises(ArgumentError) { machine.snooze(1) }
  end

  def test_a_trap_handler_waits_in_the_middle_of_a_wait
    output, = ruby(<<~RUBY)
      m = UM.new
      (reader, writer), (other_reader, other_writer) = UM.pipe, UM.pipe
      main = Thread.current
      trap(:USR1) do
        # What is waited for outside comes while the handler waits, and the other way round.
        m.write(writer, "outside")
        m.sleep(0.001)
        m.spin { m.write(other_writer, "inside") }
        buffer = +""
        p m.read(other_reader, buffer, 8192), buffer
      end
      buffer = "z" * 8192
      Thread.new { Thread.pass until main.status == "sleep"; Process.kill(:USR1, $$) }
      p m.read(reader, buffer, 8192), buffer
      trap(:USR1) { m.sleep(0.001) }
      waker = Thread.new { Thread.pass until main.status == "sleep"; Process.kill(:USR1, $$) }
      p m.timeout(0.05, [:value]) { m.read(reader, buffer, 8192) }
      fiber = m.spin { m.yield }
      trap(:USR1) { p m.schedule(fiber, :scheduled).join(fiber); m.schedule(Fiber.current, :woken) }
      Thread.new { Thread.pass until main.status == "sleep"; Process.kill(:USR1, $$) }
      p m.sleep
      p m.metrics[:ops_pending], m.pending_fibers.size, m.fiber_set.size
    RUBY
    assert_equal [6, "inside", 7, "outside", [:value], :scheduled, :woken, 0, 0, 0].map { |value| "#{value.inspect}\n" }.join, output
  end

  def test_an_exception_of_a_trap_handler_that_has_waited_ends_the_wait
    output, = ruby(<<~RUBY)
      m = UM.new
      reader, writer = UM.pipe
      main = Thread.current
      trap(:USR1) { m.sleep(0.001); m.write(writer, "late"); raise "from the handler" }
      Thread.new { Thread.pass until main.status == "sleep"; Process.kill(:USR1, $$) }
      buffer = +""
      begin
        m.sleep
      rescue RuntimeError => e
        p e.message
      end
      p m.read(reader, buffer, 8192), m.metrics[:ops_pending], m.pending_fibers.size
    RUBY
    assert_equal %("from the handler"\n4\n0\n0\n), output
  end

  def test_a_fiber_that_has_switched_away_is_scheduled_after_a_trap_handler_has_waited_in_it
    output, = ruby(<<~RUBY)
      m = UM.new
      main = Thread.current
      handled = Queue.new
      fiber = Fiber.new { p m.switch }
      trap(:USR1) { m.sleep(0.001); handled << true }
      Thread.new do
        Thread.pass until main.status == "sleep"
        Process.kill(:USR1, $$)
        handled.pop
        Thread.pass until main.status == "sleep"
        m.schedule(fiber, :scheduled)
      end
      fiber.resume
    RUBY
    assert_equal ":scheduled\n", output
  end

  def test_a_fiber_that_is_killed_before_it_begins
    other = machine.spin { flunk }
    fiber = machine.spin { flunk }
    queue = UM::Queue.new
    fiber.add_done_listener(queue)
    [other, fiber].each(&:kill)
    assert_same fiber, machine.shift(queue)
    assert_nil machine.join(other)
    assert_predicate other, :done?
    assert_empty machine.fiber_set
  end

  def test_a_fiber_of_the_programs_own_that_has_ended_is_joined
    fiber = Fiber.new { 3 }
    fiber.resume
    assert_nil machine.join(fiber)
  end
end
