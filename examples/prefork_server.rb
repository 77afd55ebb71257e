# frozen_string_literal: true

# A server of several processes that share one listening socket: it is made once, then the workers are forked, each with
# a ring and a scheduler of its own. A supervisor keeps them alive. Each line is answered with the worker's number.
#
#   script/with-ruby ruby examples/prefork_server.rb [WORKERS [PORT]]

require "socket"
require_relative "supervisor"

workers = Integer(ARGV.fetch(0, 4))
server = TCPServer.new("127.0.0.1", Integer(ARGV.fetch(1, 0)))

# What a worker does, until a signal ends it.
def serve(server, name)
  Fiber.schedule do
    loop do
      connection = server.accept
      Fiber.schedule do
        while (line = connection.gets)
          connection.write("#{name}: #{line}")
        end
      rescue SystemCallError
        # The client is gone.
      ensure
        connection.close
      end
    end
  end
  Fiber.scheduler.run
end

# The place to connect anew to databases, and the like.
UM.after_fork { |scheduler| $0 = "prefork worker" if scheduler }

Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew))
Fiber.schedule do
  puts "listening on #{server.addr[1]}"
  Supervisor.new(workers) { |number| UM::Process.fork { serve(server, "worker #{number}") } }.run
end
