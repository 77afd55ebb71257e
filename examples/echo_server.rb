# frozen_string_literal: true

# An echo server in plain Ruby: a fiber per connection, thousands of them on one thread.
#
#   script/with-ruby ruby examples/echo_server.rb [PORT]

require "socket"
require "uringmachine"

server = TCPServer.new("127.0.0.1", Integer(ARGV.fetch(0, 0)))
puts "echoing on #{server.addr[1]}"
$stdout.flush

Fiber.set_scheduler(UM::FiberScheduler.new)

Fiber.schedule do
  loop do
    connection = server.accept
    Fiber.schedule do
      while (line = connection.gets)
        connection.write(line)
      end
    rescue SystemCallError => e
      warn "connection lost: #{e.message}"
    ensure
      connection.close
    end
  end
end
