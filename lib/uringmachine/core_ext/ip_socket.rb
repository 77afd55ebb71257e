# frozen_string_literal: true

require "socket"

class UringMachine
  module CoreGaps
    # As Names, of a socket's ends.
    module SocketNames
      # As IPSocket#addr.
      def addr(reverse_lookup = nil)
        machine = CoreGaps.machine
        return super unless machine && looks_up?(reverse_lookup)

        CoreGaps.pool.process(machine, -> { super })
      end

      # As IPSocket#peeraddr.
      def peeraddr(reverse_lookup = nil)
        machine = CoreGaps.machine
        return super unless machine && looks_up?(reverse_lookup)

        CoreGaps.pool.process(machine, -> { super })
      end

      private

      def looks_up?(flag) = flag.nil? ? !do_not_reverse_lookup : [true, :hostname].include?(flag)
    end

    IPSocket.prepend(SocketNames)
  end
end
