# frozen_string_literal: true

class UringMachine
  # TLS for plain Ruby code under a UM::FiberScheduler: SSLSockets whose bytes go through the ring. OpenSSL then works on
  # memory, and each record costs one receive, where the stock socket tries, waits and tries again.
  module SSL
    # Sockets that are made under a UM::FiberScheduler are put on its ring before their handshake.
    module Accelerated
      %i[connect accept connect_nonblock accept_nonblock].each do |name|
        define_method(name) do |*arguments, **options|
          return super(*arguments, **options) unless SSL.takes?(self)

          SSL.accelerate(self)
          # The methods that the socket has been extended with.
          public_send(name, *arguments, **options)
        end
      end
    end
    private_constant :Accelerated

    # Puts an SSLSocket on the ring of the current fiber's scheduler, or of the thread's machine. Before its handshake.
    #
    # @param socket [OpenSSL::SSL::SSLSocket]
    # @return [OpenSSL::SSL::SSLSocket] socket
    # @raise [TypeError] if it is no SSLSocket
    # @raise [UringMachine::Error] if OpenSSL is not loaded, or older than 3
    # @example
    #   UM::SSL.accelerate(OpenSSL::SSL::SSLSocket.new(tcp)).connect
    def self.accelerate(socket)
      TLS.machine.ssl_set_bio(socket)
      socket
    end

    # Puts every SSLSocket that is connected or accepted under a UM::FiberScheduler from now on on its ring: Net::HTTP's
    # and those of other libraries. Sockets elsewhere are left alone.
    #
    # @return [nil]
    # @example
    #   UM::SSL.accelerate_all
    def self.accelerate_all
      require "openssl"
      OpenSSL::SSL::SSLSocket.prepend(Accelerated)
      @all = true
      nil
    end

    # Ends what `accelerate_all` has begun, for sockets to come.
    #
    # @return [nil]
    # @example
    #   UM::SSL.leave_alone
    def self.leave_alone
      @all = false
      nil
    end

    # @param socket [OpenSSL::SSL::SSLSocket]
    # @return [Boolean] whether its bytes go through a ring
    # @example
    #   UM::SSL.accelerated?(socket) #=> true
    def self.accelerated?(socket)
      socket.instance_variable_defined?(:@__um_bio__)
    end

    # @api private
    def self.takes?(socket)
      @all && Fiber.current_scheduler.is_a?(FiberScheduler) && !accelerated?(socket)
    end
  end
end
