# frozen_string_literal: true

# The other end of what is measured, in a process of its own, the same for every peer.
#
#   client.rb echo PORT CONNECTIONS ROUNDS     sends 64 bytes on each connection, and reads them on each
#   client.rb drain                            reads its standard input to the end

require "socket"

def echo(port, connections, rounds)
  message = "e" * 64
  sockets = Array.new(connections) { TCPSocket.new("127.0.0.1", port) }
  buffer = +""
  rounds.times do
    sockets.each { |socket| socket.syswrite(message) }
    sockets.each do |socket|
      left = message.bytesize
      left -= socket.readpartial(left, buffer).bytesize while left.positive?
    end
  end
end

def drain
  buffer = +""
  nil while $stdin.read(1 << 20, buffer)
end

command, *numbers = ARGV
send(command, *numbers.map { |number| Integer(number) })
