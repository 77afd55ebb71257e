# frozen_string_literal: true

class UringMachine
  module CoreGaps
    # File#flock waits by sleeping; File#truncate calls the file system.
    module Files
      # As File#flock: an attempt that does not wait; then the wait is the machine's.
      def flock(operation)
        CoreGaps.take_turn
        machine = CoreGaps.machine
        return super unless machine && operation.is_a?(Integer) && operation.nobits?(File::LOCK_NB) && operation != File::LOCK_UN
        return 0 if super(operation | File::LOCK_NB)

        FiberScheduler.current.__send__(:waiting_on, self) do
          CoreGaps.naming(self, "rb_file_flock") { machine.flock(fileno, operation) }
        end
      end

      # As File#truncate.
      def truncate(length)
        machine = CoreGaps.machine
        return super unless machine && length.is_a?(Integer) && length >= 0 && length.bit_length < 64

        flush
        begin
          CoreGaps.naming(self, "rb_file_truncate") { machine.ftruncate(fileno, length) }
        rescue Errno::EINVAL
          # Not open for writing: Ruby has an error of its own for it.
          super
        end
      end
    end

    File.prepend(Files)
  end
end
