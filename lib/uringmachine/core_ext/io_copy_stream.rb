# frozen_string_literal: true

class UringMachine
  # IO.copy_stream under a UM::FiberScheduler moves bytes within the kernel, where both ends are descriptors; else Ruby's
  # own does what it does. (Ruby's own copies a file to a file in one call of the kernel, on a worker thread.) An SSLSocket
  # is a descriptor where the kernel encrypts: see UM::SSL.accelerate.
  module CopyStream
    # As IO.copy_stream.
    def copy_stream(source, destination, length = nil, offset = nil)
      scheduler = FiberScheduler.current
      return super unless scheduler && count?(length) && count?(offset)

      copy = Copy.of(scheduler, source, destination, offset)
      return super unless copy

      begin
        plain = ->(rest, from) { super(copy.source, copy.destination, rest, from) }
        copy.moves?(offset) ? copy.run(length, offset, &plain) : plain.call(length, offset)
      ensure
        copy.close
      end
    end

    private

    # What Ruby makes of other things is for it to say.
    def count?(number) = number.nil? || (number.is_a?(Integer) && number.between?(0, (1 << 63) - 1))
  end

  ::IO.singleton_class.prepend(CopyStream)
  private_constant :CopyStream
end
