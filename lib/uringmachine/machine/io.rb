# frozen_string_literal: true

class UringMachine
  # Makes a buffered stream over a descriptor or an SSLSocket. With a block, gives it to the block; what it has read
  # ahead by the end of that is for whoever reads the descriptor next with this machine.
  #
  # @param target [Integer, OpenSSL::SSL::SSLSocket] file descriptor, or TLS connection
  # @param mode [:fd, :socket, :ssl, nil] as for UM::IO.new
  # @yieldparam io [UringMachine::IO]
  # @return [UringMachine::IO, Object] the stream, or what the block returns
  # @raise [TypeError] if target is neither
  # @example
  #   machine.io(fd) { |io| io.read_line }
  def io(target, mode = nil)
    io = IO.new(self, target, mode)
    return io unless block_given?

    begin
      yield io
    ensure
      io.__send__(:leave)
    end
  end
end
