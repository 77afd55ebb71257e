# frozen_string_literal: true

class UringMachine
  # An exception that ends a fiber without being reported.
  TERMINATE_EXCEPTION = Ractor.make_shareable(Terminate.new)

  # Ends fibers by raising a UM::Terminate in each. Does not wait for them.
  #
  # @param fibers [Array<Fiber, Enumerable<Fiber>>] fibers, or one Enumerable of them; those that have ended are left alone
  # @return [UringMachine] self
  # @raise [TypeError] if one is no Fiber
  # @example
  #   machine.terminate(fiber)
  def terminate(*fibers)
    fibers = fibers.first if fibers.size == 1 && fibers.first.is_a?(Enumerable)
    fibers.each { |fiber| schedule(fiber, Terminate.new) unless fiber.is_a?(Fiber) && fiber.done? }
    self
  end

  # Waits for fibers to end.
  #
  # @param fibers [Array<Fiber, Proc, Enumerable<Fiber, Proc>>] fibers of `spin`, of any machine; or one Enumerable of them. A proc is run by
  #   a fiber of its own
  # @return [Object, Array] the result of a single fiber; else an array of results, in the fibers' order. A fiber that
  #   failed has its exception for a result: it is returned, not raised
  # @raise [TypeError] if one is neither
  # @example
  #   machine.join(-> { machine.sleep(0.02); :a }, -> { :b }) #=> [:a, :b]
  def join(*fibers)
    list = to_fibers(fibers)
    value = await_all(list)
    return value if value

    fibers.size == 1 && !fibers.first.is_a?(Enumerable) ? list.first.result : list.map(&:result)
  end

  # Waits for fibers to end, without their results.
  #
  # @param fibers [Array<Fiber, Proc, Enumerable<Fiber, Proc>>] as for `join`
  # @return [Integer] how many there were
  # @raise [TypeError] if one is neither a Fiber nor a Proc
  # @example
  #   machine.await(first, second) #=> 2
  def await(*fibers)
    list = to_fibers(fibers)
    await_all(list) || list.size
  end

  private

  def to_fibers(fibers)
    fibers = fibers.first.to_a if fibers.size == 1 && fibers.first.is_a?(Enumerable)
    fibers.map do |fiber|
      case fiber
      when Fiber then fiber
      when Proc then fiber.arity.zero? ? spin { fiber.call } : spin(&fiber)
      else raise TypeError, "fibers must be Fibers or Procs, not #{fiber.class}"
      end
    end
  end

  # A queue of its own: nobody else's message ends the wait. What does is a value that the fiber was scheduled with, which is
  # returned.
  def await_all(fibers)
    pending = fibers.reject(&:done?).uniq
    return if pending.empty?

    queue = Queue.new
    pending.each { |fiber| fiber.add_done_listener(queue) }
    pending.size.times do
      ended = shift(queue)
      return ended unless ended.is_a?(Fiber)
    end
    nil
  end
end
