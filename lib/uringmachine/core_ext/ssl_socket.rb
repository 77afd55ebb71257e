# frozen_string_literal: true

class UringMachine
  module CoreGaps
    # Those of OpenSSL's sockets that are on no ring.
    module Encrypting
      # As OpenSSL::Buffering#read_nonblock.
      def read_nonblock(maxlen, buf = nil, exception: true)
        CoreGaps.take_turn
        super
      end

      # As OpenSSL::Buffering#write_nonblock.
      def write_nonblock(s, exception: true)
        CoreGaps.take_turn
        super
      end
    end

    # Has OpenSSL's sockets take turns. A program may load it after us: whoever makes a scheduler looks for it, and whoever
    # connects under one.
    def self.meet_openssl
      return if !Object.const_defined?(:OpenSSL) || Object.autoload?(:OpenSSL) || !defined?(::OpenSSL::SSL::SSLSocket)

      sockets = ::OpenSSL::SSL::SSLSocket
      return if sockets < Encrypting

      sockets.prepend(Encrypting)
      take_turns_in(sockets, %i[sysread syswrite])
    end
  end
end
