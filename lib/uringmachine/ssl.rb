# frozen_string_literal: true

class UringMachine
  # TLS for plain Ruby code under a UM::FiberScheduler: SSLSockets whose bytes go through the ring. OpenSSL then works on
  # memory, and each record costs one receive, where the stock socket tries, waits and tries again.
  module SSL
    # Sockets that are made under a UM::FiberScheduler are put on its ring before their handshake.
    module Accelerated
      # As without us. Once taken, a socket has the methods that it has been extended with.

      def connect = SSL.take(self) ? connect : super

      def accept = SSL.take(self) ? accept : super

      def connect_nonblock(...) = SSL.take(self) ? connect_nonblock(...) : super

      def accept_nonblock(...) = SSL.take(self) ? accept_nonblock(...) : super
    end
    private_constant :Accelerated

    # Puts an SSLSocket on the ring of the current fiber's scheduler, or of the thread's machine. Before its handshake.
    #
    # With `kernel`, the kernel encrypts and decrypts after the handshake, where it offers that for the connection's
    # version and cipher, and OpenSSL does elsewhere, with the same result: see `kernel_sends?`. So with the option
    # OpenSSL::SSL::OP_ENABLE_KTLS of the socket's context.
    #
    # @param socket [OpenSSL::SSL::SSLSocket]
    # @param kernel [Boolean] whether to use kernel TLS (Linux with the module tls)
    # @return [OpenSSL::SSL::SSLSocket] socket
    # @raise [TypeError] if it is no SSLSocket
    # @raise [UringMachine::Error] if OpenSSL is not loaded, or older than 3
    # @example
    #   UM::SSL.accelerate(OpenSSL::SSL::SSLSocket.new(tcp), kernel: true).connect
    def self.accelerate(socket, kernel: false)
      TLS.machine.ssl_set_bio(socket, kernel:)
      socket
    end

    # Puts every SSLSocket that is connected or accepted under a UM::FiberScheduler from now on on its ring: Net::HTTP's
    # and those of other libraries. Sockets elsewhere are left alone.
    #
    # @param kernel [Boolean] as of `accelerate`
    # @return [nil]
    # @example
    #   UM::SSL.accelerate_all
    def self.accelerate_all(kernel: false)
      require "openssl"
      OpenSSL::SSL::SSLSocket.prepend(Accelerated)
      @all = true
      @kernel = kernel
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

    # Whether the kernel encrypts what is sent on a connection. Bytes that are written to the socket's IO then go
    # out encrypted: IO.copy_stream to the SSLSocket moves them within the kernel, and registered buffers are sent
    # from where they are.
    #
    # @param socket [OpenSSL::SSL::SSLSocket]
    # @return [Boolean]
    # @kernel 4.13
    # @example
    #   UM::SSL.kernel_sends?(socket) #=> true
    def self.kernel_sends?(socket) = TLS.kernel_sends?(socket)

    # Whether the kernel decrypts what is received on a connection: IO.copy_stream from the SSLSocket then moves bytes
    # within the kernel. OpenSSL before 3.2 lets the kernel do so for TLS 1.2 only.
    #
    # @param socket [OpenSSL::SSL::SSLSocket]
    # @return [Boolean]
    # @kernel 4.17
    # @example
    #   UM::SSL.kernel_receives?(socket) #=> true
    def self.kernel_receives?(socket) = TLS.kernel_receives?(socket)

    # @api private
    def self.take(socket)
      return false unless @all && FiberScheduler.current && !accelerated?(socket)

      accelerate(socket, kernel: @kernel)
      true
    end
  end
end
