# frozen_string_literal: true

require "socket"

class UringMachine
  # TCPSocket.new with a host name races connections by a select(2) that knows no scheduler (ext/socket/ipsocket.c,
  # rsock_init_inetsock) and would stall every fiber of the thread. Under a UM::FiberScheduler the addresses are
  # resolved first, by the scheduler's address_resolve, and tried one after the other.
  module ConnectByAddress
    # Takes what TCPSocket.new takes; an explicit fast_fallback: is the caller's choice.
    def initialize(*arguments, **options, &block)
      options[:fast_fallback] = false if Fiber.current_scheduler.is_a?(FiberScheduler) && !options.key?(:fast_fallback)
      super
    end
  end

  TCPSocket.prepend(ConnectByAddress)
  private_constant :ConnectByAddress
end
