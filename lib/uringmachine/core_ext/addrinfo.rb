# frozen_string_literal: true

require "socket"

class UringMachine
  module CoreGaps
    # As Names, of an address.
    module AddressNames
      # As Addrinfo#getnameinfo.
      def getnameinfo(*)
        machine = CoreGaps.machine or return super
        CoreGaps.pool.process(machine, -> { super })
      end
    end

    Addrinfo.prepend(AddressNames)
  end
end
