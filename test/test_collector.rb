# frozen_string_literal: true

require_relative "test_helper"

# What Ruby's collector frees and moves while fibers wait.
class TestCollector < SchedulerTest
  # Fills what is freed, so that whoever looks at it is seen to.
  FREED_IS_FILLED = { "MALLOC_PERTURB_" => "255" }.freeze

  # A fiber that waits hands over to one that ends, which is collected before the first goes on.
  def test_a_fiber_that_was_switched_to_ends_and_is_collected
    output, status = ruby(<<~'RUBY', env: FREED_IS_FILLED)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      went_on = 0
      rounds = 10.times.map do
        reader, writer = IO.pipe
        Fiber.schedule { Fiber.scheduler.yield; reader.read(1); went_on += 1 }
        Fiber.schedule { Fiber.scheduler.yield }
        writer
      end
      Fiber.schedule { 3.times { Fiber.scheduler.yield }; 3.times { GC.start }; rounds.each { |writer| writer << "x" } }
      Fiber.set_scheduler(nil)
      print went_on
    RUBY

    assert_equal ["10", true], [output, status.success?]
  end

  def test_a_machine_is_found_after_a_compaction
    output, status = ruby(<<~'RUBY')
      holder = Struct.new(:machine)
      holders = Array.new(50) { holder.new(UM.new) }
      holders.each { |it| it.machine.snooze }
      # What lies on the stack is not moved.
      deep = ->(depth) { depth.zero? ? 0 : deep.(depth - 1) + 1 }
      deep.(100)
      Array.new(20_000) { Object.new }
      GC.verify_compaction_references(expand_heap: true, toward: :empty)
      machine = holders.last.machine
      reader, writer = UM.pipe
      fiber = machine.spin { machine.read(reader, +"", 100_000) }
      machine.snooze
      GC.compact
      machine.write(writer, "hello")
      child = fork { $stdout << UM.current.inspect; $stdout.flush; exit!(0) }
      Process.wait(child)
      print UM.current.equal?(machine), machine.join(fiber)
    RUBY

    assert_equal ["niltrue5", true], [output, status.success?]
  end

  def test_a_machine_that_was_collected_is_not_the_current_one
    output, status = ruby(<<~'RUBY', env: FREED_IS_FILLED)
      kept = UM.new.tap(&:snooze)
      use = ->(depth) { depth.zero? ? UM.new.snooze : use.(depth - 1) }
      20.times { use.(50) }
      10.times { GC.start(immediate_sweep: false); UM.current.size; GC.compact; UM.current.size }
      print UM.current.class, kept.owned?
    RUBY

    assert_equal ["UringMachinetrue", true], [output, status.success?]
  end
end
