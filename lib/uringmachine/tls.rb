# frozen_string_literal: true

class UringMachine
  # TLS over the ring: what `ssl_set_bio` does with an OpenSSL::SSL::SSLSocket.
  module TLS
    # The machine for a thread that is not the one of the machine that a socket was put on.
    def self.machine = FiberScheduler.current&.machine || Thread.current.machine

    # Extends an SSLSocket on the ring. The handshake and its kin are the openssl gem's own, in their kinds that do not
    # wait: callbacks, checks of certificates and errors are what they are without us, and only the waits are the
    # ring's.
    module Socket
      # Methods of the same names in OpenSSL::SSL::SSLSocket and OpenSSL::Buffering, see there.

      def connect
        TLS.drive(self) { um_stock(:connect_nonblock, exception: false) }
      end

      def accept
        TLS.drive(self) { um_stock(:accept_nonblock, exception: false) }
      end

      def connect_nonblock(exception: true)
        um_attempt(exception) { um_stock(:connect_nonblock, exception: false) }
      end

      def accept_nonblock(exception: true)
        um_attempt(exception) { um_stock(:accept_nonblock, exception: false) }
      end

      def sysread(length, buffer = nil)
        buffer = buffer.nil? ? String.new : um_string(buffer)
        return buffer.clear if length == 0
        raise EOFError, "end of file reached" if TLS.read(self, buffer, length).zero?

        buffer
      end

      def sysread_nonblock(length, buffer = nil, exception: true)
        arguments = buffer.nil? ? [length] : [length, buffer]
        result = um_attempt(exception) { um_stock(:sysread_nonblock, *arguments, exception: false) }
        raise EOFError, "end of file reached" if result.nil? && exception

        result
      end

      # Unlike the openssl gem's, it writes all of the string, unless something ends it meanwhile: then the count is what
      # has been taken.
      def syswrite(string)
        TLS.write_counted(self, um_string(string).dup)
      end

      def syswrite_nonblock(string, exception: true)
        um_attempt(exception) do
          TLS.takes_now?(self) ? um_stock(:syswrite_nonblock, string, exception: false) : :wait_writable
        end
      end

      # As without us; with sync_close, fibers that wait for the socket raise IOError.
      def sysclose
        return if closed?

        stop
        return unless sync_close

        TLS.abandon(self)
        io.close
      end

      # Whether bytes have been read from the descriptor that the program has not.
      def um_read_ahead? = !@rbuffer.empty? || TLS.holds_bytes?(self)

      # Has bytes be the next to be read.
      def um_unread(bytes)
        @rbuffer[0, 0] = bytes
      end

      private

      # Sends a close_notify, if the socket takes it now, and does not wait for the peer's.
      def stop
        TLS.attempt(self) { um_stock(:stop) }
      end

      # The openssl gem's own method.
      def um_stock(name, *, **)
        OpenSSL::SSL::SSLSocket.instance_method(name).bind_call(self, *, **)
      end

      def um_string(string)
        string.is_a?(String) ? string : String.try_convert(string) || raise(TypeError, "no implicit conversion of #{string.class} into String")
      end

      def um_attempt(exception, &)
        CoreGaps.take_turn
        result = TLS.attempt(self, &)
        return result unless exception

        case result
        when :wait_readable then raise OpenSSL::SSL::SSLErrorWaitReadable, "read would block"
        when :wait_writable then raise OpenSSL::SSL::SSLErrorWaitWritable, "write would block"
        else result
        end
      end

      # Buffering's, for fibers: what is being written is nobody else's meanwhile, and what was not written when an
      # exception came is written later, once.
      def do_write(string)
        @wbuffer = @wbuffer.to_s.b unless @wbuffer.instance_of?(String)
        @wbuffer << string.b
        return unless @sync || @wbuffer.bytesize > OpenSSL::Buffering::BLOCK_SIZE

        taken = @wbuffer
        @wbuffer = String.new
        begin
          TLS.write(self, taken)
        ensure
          @wbuffer = taken << @wbuffer unless taken.empty?
        end
      end
    end
  end

  private_constant :TLS
end
