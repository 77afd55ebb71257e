# frozen_string_literal: true

# An echo server of lines on UM::IO, which receives into the machine's own buffers.
#
#   ruby examples/machine_line_server.rb [PORT]

require "uringmachine"

machine = UM.new
server = machine.tcp_listen("127.0.0.1", Integer(ARGV.fetch(0, 8080)))
puts "listening on #{machine.sockname(server).join(":")}"
$stdout.flush

def serve(machine, fd)
  machine.io(fd, :socket) do |io|
    while (line = io.read_line(65_536))
      io.write("You said: ", line, "\n")
    end
  end
ensure
  machine.close(fd)
end

trap(:TERM) { machine.shutdown(server, UM::SHUT_RD) }
machine.accept_each(server) { |fd| machine.spin { serve(machine, fd) } }
