# frozen_string_literal: true

class UringMachine
  module CoreGaps
    # IO#fsync and IO#fdatasync wait for the disk.
    module Syncing
      # As IO#fsync.
      def fsync
        machine = CoreGaps.machine or return super
        flush
        CoreGaps.naming(self, "rb_io_fsync") { machine.fsync(fileno) }
      end

      # As IO#fdatasync.
      def fdatasync
        machine = CoreGaps.machine or return super
        flush
        # By this name: where there is no fdatasync(2) to be had, Ruby tries fsync(2).
        CoreGaps.naming(self, "rb_io_fsync") { machine.fdatasync(fileno) }
      end
    end

    # IO#write_nonblock asks no hook, as those of turns.rb. Prepended by `take_turns` there.
    module Writing
      # As IO#write_nonblock.
      def write_nonblock(buf, exception: true)
        CoreGaps.take_turn
        super
      end
    end

    ::IO.prepend(Syncing)
  end
end
