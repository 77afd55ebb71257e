# frozen_string_literal: true

require "socket"

class UringMachine
  # TCPSocket.new with a host name races connections by a select(2) that knows no scheduler (ext/socket/ipsocket.c,
  # rsock_init_inetsock) and would stall every fiber of the thread. Under a UM::FiberScheduler the addresses are
  # resolved by the scheduler's address_resolve, and the race is our own.
  module ConnectByAddress
    # What the race knows; the rest is Ruby's.
    OPTIONS = [:resolv_timeout, :connect_timeout, *(:open_timeout if RUBY_VERSION >= "4")].freeze
    private_constant :OPTIONS

    # Takes what TCPSocket.new takes.
    def initialize(*arguments, fast_fallback: nil, **options, &block)
      scheduler = FiberScheduler.current
      CoreGaps.meet_openssl if scheduler
      if scheduler.nil?
        super
      elsif races?(fast_fallback, arguments, options)
        race(scheduler.machine, arguments, options)
      else
        super(*arguments, fast_fallback: false, **options, &block)
      end
    end

    private

    def race(machine, arguments, options)
      winner = ConnectionRace.new(machine, *arguments, **options).winner
      winner.autoclose = false
      # There is no other way to give a socket that has been allocated its descriptor.
      connected = BasicSocket.method(:for_fd).unbind.bind_call(self.class, winner.fileno)
      ::IO.instance_method(:initialize_copy).bind_call(self, connected)
      connected.close
    end

    def races?(wanted, arguments, options)
      host = arguments.first
      wanted = Socket.tcp_fast_fallback if wanted.nil?
      return false unless wanted && arguments.size.between?(2, 4) && (options.keys - OPTIONS).empty?
      return false if options[:open_timeout] && (options[:resolv_timeout] || options[:connect_timeout])

      # A name: no address, and none of those for the host itself.
      host.is_a?(String) && !host.empty? && !host.match?(/:|\A[\d.]+\z|\A</)
    end
  end

  TCPSocket.prepend(ConnectByAddress)
  private_constant :ConnectByAddress
end
