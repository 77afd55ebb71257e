# frozen_string_literal: true

class UringMachine
  # A fiber that runs the methods of an object, one at a time, as messages ask for them. `spin_actor` and
  # `spin_thread_actor` make them.
  #
  # (Within it `raise` is Fiber#raise: Kernel.raise is what raises.)
  class Actor < Fiber
    # Ends an actor.
    class Stop < Error; end

    # The object whose methods it runs. It has a machine of its own thread only.
    #
    # @return [Object]
    # @example
    #   actor.target
    attr_reader :target

    # @api private
    def self.start(machine, mod)
      raise TypeError, "mod must be a Module, not #{mod.class}" unless mod.is_a?(Module)

      target = Object.new.extend(mod)
      actor = nil
      actor = machine.spin(nil, self) { actor.run(machine, target, actor.mailbox) }
      actor.prepare(machine, target)
      actor
    end

    # @api private
    def prepare(machine, target)
      @machine = machine
      @target = target
    end

    # Handles messages until the actor is stopped. Called by the fiber itself.
    #
    # @param machine [UringMachine]
    # @param target [Object]
    # @param mailbox [UringMachine::Queue]
    # @return [void]
    # @api private
    def run(machine, target, mailbox)
      prepare(machine, target)
      loop { handle(*machine.shift(mailbox)) }
    rescue Stop
      # As asked.
    ensure
      refuse_messages(machine, mailbox)
      target.teardown if target.respond_to?(:teardown)
    end

    # Has a method run, without waiting for it. What it raises ends the actor.
    #
    # @param method [Symbol]
    # @return [UringMachine::Actor] self
    # @raise [UringMachine::Error] if the actor has ended
    # @example
    #   counter.cast(:reset)
    def cast(method, *arguments, **options)
      post([nil, method, arguments, options])
    end

    # Has a method run and waits for what it returns. What it raises is raised here, and the actor goes on.
    #
    # @param mailbox [UringMachine::Queue] where the answer is put: one that nobody else uses meanwhile
    # @param method [Symbol]
    # @return [Object]
    # @raise [UringMachine::Error] if the actor has ended, or ends before it answers
    # @raise [TypeError] if mailbox is no UM::Queue
    # @example
    #   counter.call(UM::Queue.new, :get) #=> 0
    def call(mailbox, method, *arguments, **options)
      Kernel.raise TypeError, "mailbox must be a UM::Queue, not #{mailbox.class}" unless mailbox.is_a?(Queue)

      post([mailbox, method, arguments, options])
      machine = @machine.owned? ? @machine : UringMachine.current || Thread.current.machine
      answer = machine.shift(mailbox)
      # A value that the fiber was scheduled with.
      return answer unless answer.is_a?(Array)

      succeeded, result = answer
      Kernel.raise result unless succeeded

      result
    end

    # Ends the actor once it has handled the message it is at.
    #
    # @return [UringMachine::Actor] self
    # @example
    #   counter.stop
    def stop
      @machine.schedule(self, Stop.new)
      self
    end

    private

    def post(message)
      Kernel.raise Error, "the actor has ended" if done?

      @machine.push(mailbox, message)
      self
    end

    def handle(mailbox, method, arguments, options)
      answer = [true, @target.__send__(method, *arguments, **options)]
    rescue Stop => e
      answer = [false, Error.new("the actor has ended")]
      Kernel.raise e
    rescue StandardError => e
      Kernel.raise e unless mailbox

      answer = [false, e]
    ensure
      @machine.push(mailbox, answer || [false, Error.new("the actor has ended")]) if mailbox
    end

    # Whoever waits for an answer that will not come is told so.
    def refuse_messages(machine, queue)
      mark_as_done
      until queue.count.zero?
        waiting, = machine.shift(queue)
        machine.push(waiting, [false, Error.new("the actor has ended")]) if waiting
      end
    end
  end
end
