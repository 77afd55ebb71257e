# frozen_string_literal: true

class UringMachine
  # Starts an actor on this machine: a fiber that has an object of its own and runs its methods one at a time, as
  # messages ask for them.
  #
  # @param mod [Module] the methods of the object. `setup` is called first, with the arguments; `teardown`, if there is
  #   one, last
  # @return [UringMachine::Actor]
  # @raise [TypeError] if mod is no Module
  # @example
  #   counter = machine.spin_actor(Counter, 0)
  #   counter.call(UM::Queue.new, :increment) #=> 1
  def spin_actor(mod, *, **)
    Actor.start(self, mod).tap do |actor|
      actor.target.setup(*, **)
      snooze
    end
  end

  # As `spin_actor`, on a machine and a thread of its own.
  #
  # @param mod [Module] as for `spin_actor`; `setup` too is called on that thread
  # @return [UringMachine::Actor] once it is set up
  # @raise [TypeError] if mod is no Module
  # @raise [Exception] what `setup` raises
  # @raise [UringMachine::Error] if it ends the thread, or somebody kills that
  # @example
  #   worker = machine.spin_thread_actor(Worker)
  def spin_thread_actor(mod, *, **)
    raise TypeError, "mod must be a Module, not #{mod.class}" unless mod.is_a?(Module)

    started = Queue.new
    # What ends the thread, a kill too, comes where its end is told.
    thread = Thread.handle_interrupt(Object => :never) { Thread.new { run_thread_actor(started, mod, *, **) } }
    result = shift(started)
    raise result if result.is_a?(Exception)

    result
  ensure
    # Nobody else knows of it.
    thread&.kill unless result.is_a?(Actor)
  end

  private

  # The body of a thread that is an actor's.
  def run_thread_actor(started, mod, *, **)
    actor = nil
    Thread.handle_interrupt(Object => :immediate) do
      machine = UringMachine.new
      actor = Actor.start(machine, mod)
      actor.target.setup(*, **)
      push(started, actor)
      machine.join(actor)
    end
  rescue Exception => e # rubocop:disable Lint/RescueException -- it is raised by the method
    push(started, e)
  ensure
    # Who waits for an answer, or for the actor, is told.
    actor.kill unless actor.nil? || actor.done?
    push(started, Error.new("the actor's thread was ended"))
  end
end
