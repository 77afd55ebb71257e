# frozen_string_literal: true

require_relative "../test_helper"

# UM::Actor.
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
