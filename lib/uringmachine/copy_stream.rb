# frozen_string_literal: true

class UringMachine
  # IO.copy_stream under a UM::FiberScheduler moves bytes within the kernel, where both ends are descriptors and the
  # target is no regular file; else Ruby's own does what it does. (Ruby's own copies a file to a file in one call of the
  # kernel, on a worker thread.)
  module CopyStream
    # As IO.copy_stream.
    def copy_stream(source, destination, length = nil, offset = nil)
      scheduler = Fiber.current_scheduler
      return super unless scheduler.is_a?(FiberScheduler) && count?(length) && count?(offset)

      ends = Ends.of(source, destination)
      return super unless ends

      begin
        ends.copy(scheduler, length, offset) { |rest, from| super(ends.source, ends.destination, rest, from) }
      ensure
        ends.close
      end
    end

    private

    # What Ruby makes of other things is for it to say.
    def count?(number) = number.nil? || (number.is_a?(Integer) && !number.negative?)

    # The two ends of a copy, opened from their paths if need be.
    class Ends
      attr_reader :source, :destination

      # nil if Ruby's own copy is the one to do it.
      def self.of(source, destination)
        return unless descriptor?(source) && destination.is_a?(::IO) && !destination.closed?
        return if destination.stat.file?

        new(source, destination)
      end

      def self.descriptor?(source)
        source.is_a?(String) || source.respond_to?(:to_path) || (source.is_a?(::IO) && !source.closed?)
      end

      def initialize(source, destination)
        @opened = source unless source.is_a?(::IO)
        @source = @opened ? File.open(@opened, "rb") : source
        @destination = destination
      end

      # Returns the bytes copied. The block copies what cannot be moved within the kernel.
      def copy(scheduler, length, offset)
        @destination.flush
        copied = offset ? 0 : copy_read_ahead(length)
        loop do
          rest = length && (length - copied)
          break if rest&.zero?

          moved = scheduler.io_splice(@source, @destination, rest, offset && (offset + copied))
          return copied + yield(rest, offset && (offset + copied)) if refused?(moved)
          raise SystemCallError.new("copy_stream", -moved) if moved.negative?
          break if moved.zero?

          copied += moved
        end
        copied
      end

      def close
        @source.close if @opened
      end

      private

      # Neither is what splice(2) takes.
      REFUSED = [Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EBADF].map { |error| -error::Errno }.freeze
      private_constant :REFUSED

      def refused?(moved) = REFUSED.include?(moved)

      # What Ruby has read and the program has not goes first.
      def copy_read_ahead(length)
        copied = 0
        while FiberScheduler.read_ahead?(@source) && (length.nil? || copied < length)
          bytes = @source.readpartial(length ? [length - copied, 65_536].min : 65_536)
          @destination.write(bytes)
          copied += bytes.bytesize
        end
        @destination.flush if copied.positive?
        copied
      end
    end
    private_constant :Ends
  end

  ::IO.singleton_class.prepend(CopyStream)
  private_constant :CopyStream
end
