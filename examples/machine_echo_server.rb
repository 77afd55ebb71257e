# frozen_string_literal: true

# An echo server by the machine's own methods: a fiber a connection, a descriptor a socket.
#
#   ruby examples/machine_echo_server.rb [PORT]

require "uringmachine"

machine = UM.new
server = machine.tcp_listen("127.0.0.1", Integer(ARGV.fetch(0, 8080)))
puts "listening on #{machine.sockname(server).join(":")}"
$stdout.flush

def echo(machine, fd)
  buffer = +""
  machine.send(fd, buffer, buffer.bytesize, UM::MSG_WAITALL) while machine.recv(fd, buffer, 8192, 0).positive?
ensure
  machine.close(fd)
end

trap(:TERM) { machine.shutdown(server, UM::SHUT_RD) }
machine.accept_each(server) { |fd| machine.spin { echo(machine, fd) } }
