# frozen_string_literal: true

require "socket"

class UringMachine
  module CoreGaps
    # An address as text.
    NUMERIC = /:|\A[\d.]+\z/
    private_constant :NUMERIC

    # Names of addresses are asked for over the network.
    module Names
      # As Socket.getnameinfo. (An Array may hold a name, which Ruby has the scheduler look up first.)
      def getnameinfo(*arguments)
        machine = CoreGaps.machine
        address = arguments.first
        return super unless machine && (address.is_a?(String) || (address.is_a?(Array) && address.last.to_s.match?(NUMERIC)))

        CoreGaps.pool.process(machine, -> { super })
      end
    end

    Socket.singleton_class.prepend(Names)
  end
end
