# frozen_string_literal: true

require_relative "test_helper"
require_relative "machine_waits"

# As test_cancellation.rb, of the machine's own methods: whatever waits is ended in every way, at every moment. It ends, by
# what ended it or by its own result; no byte is lost, none comes to a buffer afterwards; nothing is left over, and the next
# one works. docs/reliability.md has the table.
class TestMachineCancellation < MachineTest
  class Stop < StandardError; end

  # `completed`: what it waits for has come; `seen`: the machine knows, and the fiber does not yet.
  MOMENTS = %i[before_submission submitted completed seen after].freeze
  COMPLETE = %i[completed seen after].freeze
  # They take their time.
  FOR_FORKS = %i[submitted completed].freeze

  # Ways to end a fiber's wait: what is done to it, and what the wait may raise. `:killed`: it is unwound by nothing that can
  # be rescued; `:other`: it returns the value that the fiber was scheduled with. `closes`: its descriptor is closed.
  Way = Struct.new(:raises, :act, :around, :closes, keyword_init: true)

  CLOSED = [IOError, Errno::EBADF, Errno::ECANCELED].freeze

  WAYS = {
    "schedule" => Way.new(raises: [Stop], act: ->(machine, fiber, _) { machine.schedule(fiber, Stop.new) }),
    "schedule with a value" => Way.new(raises: [:other], act: ->(machine, fiber, _) { machine.schedule(fiber, Waits::OTHER) }),
    "terminate" => Way.new(raises: [UM::Terminate], act: ->(machine, fiber, _) { machine.terminate(fiber) }),
    "timeout" => Way.new(raises: [Stop], act: ->(machine, fiber, _) { machine.await(fiber) },
                         around: ->(machine, body) { machine.timeout(0.001, Stop) { body.call } }),
    "Fiber#raise" => Way.new(raises: [Stop], act: ->(_, fiber, _) { fiber.raise(Stop) if fiber.alive? }),
    "Fiber#kill" => Way.new(raises: [:killed], act: ->(_, fiber, _) { fiber.kill }),
    "close" => Way.new(raises: CLOSED, closes: true, act: ->(machine, _, wait) { machine.close(wait.fd) }),
    "IO#close" => Way.new(raises: CLOSED, closes: true, act: ->(_, _, wait) { IO.for_fd(wait.fd).close }),
    "IO#close by a thread" => Way.new(raises: CLOSED, closes: true, act: lambda do |machine, _, wait|
      closing = Thread.new { IO.for_fd(wait.fd).close }
      machine.sleep(0.0002) while closing.alive?
      closing.value
    end),
    "fork" => Way.new(raises: [], act: ->(_, _, _) { Process.wait2(fork { exit!(0) }).last.success? || raise("the child has crashed") })
  }.freeze

  # What ends the whole thread: in what it waits meanwhile, and what is done to it. A machine that waits goes on with what was
  # begun; if the thread does, nothing has happened since.
  ENDS = {
    "Thread#raise" => [->(machine) { machine.sleep }, ->(thread) { thread.raise(Stop) }],
    "Thread#kill" => [->(machine) { machine.sleep }, ->(thread) { thread.kill }],
    "Thread#kill of one that waits elsewhere" => [->(_) { sleep }, ->(thread) { thread.kill }],
    "the end of its thread" => [->(_) {}, ->(_) {}]
  }.freeze

  def test_every_method_that_waits_is_in_the_table
    methods = Waits.classes_of_machines.flat_map { |owner, prefix| owner.public_instance_methods(false).map { |name| :"#{prefix}#{name}" } }
    never = Waits::NEVER[:machine].values.flatten
    covered = Waits.covered(:machine)
    assert_empty methods - never - covered
    assert_empty (covered + never).uniq - methods
    assert_empty covered & never
  end

  # Its thread goes on when that of whoever waits for it ends.
  GOES_ON = :spin_thread_actor

  def self.test_name(name, end_name) = "test_#{name}_ended_by_#{end_name}".gsub(/\W+/, "_")

  Waits::ALL[:machine].each do |name, (_, prepare)|
    WAYS.each do |way_name, way|
      define_method(test_name(name, way_name)) do
        moments = way_name == "fork" ? FOR_FORKS : MOMENTS
        moments.each { |moment| leaves_nothing(moment) { end_of(prepare, way, moment) } }
      end
    end

    next if name == GOES_ON

    ENDS.each do |end_name, (body, act)|
      define_method(test_name(name, end_name)) do
        MOMENTS.first(3).each { |moment| leaves_nothing(moment) { end_of_thread(prepare, body, act, moment) } }
      end
    end

    define_method(test_name(name, "the collector")) { leaves_nothing(:submitted) { lose(prepare) } }
  end

  MOMENTS.first(3).each do |moment|
    define_method("test_all_that_waits_ended_by_exit_#{moment}") { end_of_process(moment) }
  end

  def setup
    super
    # What is made once.
    machine.snooze
    Thread.new {}.join
  end

  # The block's descriptors are closed, at the latest when its threads have ended and objects are collected.
  def leaves_nothing(moment)
    before = open_descriptors
    yield
    1000.times do |count|
      return if open_descriptors <= before

      GC.start if (count % 100).zero?
      sleep 0.001
    end
    flunk "#{moment}: it has left #{open_descriptors - before} descriptors"
  end

  # Nothing is in flight any more.
  def assert_settled(moment)
    left = nil
    1000.times do
      left = machine.metrics.slice(:ops_pending, :ops_transient, :ops_unsubmitted, :ops_runqueue).reject { |_, count| count.zero? }
      break if left.empty?

      machine.sleep(0.0005)
    end
    assert_empty left, moment
    assert_empty machine.fiber_set, moment
  end

  # A wait of a new fiber, begun as far as the moment says; what it has returned, once it has.
  def begin_in_fiber(machine, prepare, moment)
    wait = prepare.call(machine)
    value = nil
    machine.spin { value = wait.wait.call }
    machine.snooze
    reach(machine, wait, moment)
    [wait, -> { value }]
  end

  def reach(machine, wait, moment)
    machine.submit unless moment == :before_submission
    wait.complete.call if COMPLETE.include?(moment)
    machine.submit if moment == :seen
  end

  def end_of(prepare, way, moment)
    wait = prepare.call(machine)
    return if COMPLETE.include?(moment) && wait.endless

    way = WAYS.fetch("schedule") if (way.closes && wait.fd.nil?) || (way.raises.empty? && wait.endless)
    value = outcome = nil
    fiber = machine.spin do
      outcome = :killed
      value = way.around ? way.around.call(machine, wait.wait) : wait.wait.call
      outcome = value.equal?(Waits::OTHER) ? :other : :value
      value = nil if outcome == :other
      # What came when the wait was over is raised at the next.
      2.times { machine.snooze }
    rescue Stop, UM::Terminate, *CLOSED => e
      outcome = e.class
    end
    machine.snooze
    reach(machine, wait, moment)
    machine.await(fiber) if moment == :after
    way.act.call(machine, fiber, wait)
    closed = way.closes && Waits.disown(wait.fd)
    wait.complete.call unless closed || COMPLETE.include?(moment)
    ended = machine.timeout(Waits::PATIENCE, RuntimeError, "#{moment}: the wait does not end") { machine.join(fiber) }
    refute_kind_of Exception, ended

    assert_includes [:value, *way.raises], outcome, moment
    return if closed

    whole = wait.check.call(machine, value)
    # Who is killed once the kernel has moved bytes cannot be given them, as a thread cannot.
    assert whole, "#{moment}: lost" unless outcome == :killed && (wait.partly || COMPLETE.include?(moment))
  ensure
    Waits.close_all_of(machine)
    assert_settled(moment)
  end

  def end_of_thread(prepare, body, act, moment)
    begun = Thread::Queue.new
    thread = Thread.new do
      Thread.current.report_on_exception = false
      machine = UM.new
      begun << begin_in_fiber(machine, prepare, moment)
      body.call(machine)
    rescue Stop
      # As it should.
    end
    wait, value = begun.pop || thread.value
    act.call(thread)
    thread.join
    # What has been done in a thread that ends is lost with it, and so is what its machine has.
    return if moment == :completed || wait.held || wait.endless

    wait.complete.call
    assert wait.check.call(machine, value.call) || wait.partly, "#{moment}: lost"
  ensure
    Waits.close_all_of(machine)
  end

  # Nobody has the machine and the fiber any more, then their thread ends.
  def lose(prepare)
    thread = Thread.new do
      kept = nil
      # Far from the frames that are looked at.
      deep = ->(depth) { depth.zero? ? kept = begin_in_fiber(UM.new, prepare, :submitted).first.to_h.slice(:buffer, :peer) : deep.call(depth - 1) }
      deep.call(20)
      before = kept[:buffer] && Waits.contents(kept[:buffer])
      GC.start
      kept[:peer] << "later\n" if kept[:peer]
      GC.start
      [kept[:buffer], before]
    end
    buffer, before = thread.value
    # What is written to a String that is read into by a block of the machine's own is not written to it.
    assert Waits.contents(buffer).end_with?("#" * (before.bytesize - 64)) if buffer
  ensure
    Waits.close_all_of(machine)
  end

  def end_of_process(moment)
    Dir.mktmpdir do |folder|
      # Ruby's collector looks at the stacks of threads that a child does not have, of those that were in a fiber (cont.c,
      # rb_execution_context_mark; thread.c, terminate_atfork_i).
      (Thread.list - [Thread.current, @watchdog]).each { |thread| thread.kill.join unless thread.name&.start_with?("um-") }
      pid = fork do
        ENV["TMPDIR"] = folder
        machine = UM.new
        Waits::ALL[:machine].each_value { |_, prepare| begin_in_fiber(machine, prepare, moment) }
        exit(7)
      end
      assert_equal 7, Process.wait2(pid).last.exitstatus
    end
  end
end
