# frozen_string_literal: true

# Clients, a server that asks a slow database for them, and a connection pool that is too small, as a trace: it can be opened in
# https://ui.perfetto.dev, or in docs/trace_viewer.html.
#
#   script/with-ruby ruby examples/trace.rb [trace.json]

require "socket"
require "timeout"
require "uringmachine"

CLIENTS = 4

# Two connections of a database, which answers after a moment; the third query is slow.
class Database
  def initialize
    @pool = Queue.new
    2.times { |number| @pool << number }
    @queries = 0
  end

  def query
    connection = @pool.pop
    sleep((@queries += 1) == 3 ? 0.04 : 0.004)
  ensure
    @pool << connection if connection
  end
end

def serve(server, database)
  CLIENTS.times do
    connection = server.accept
    Fiber.schedule do
      while (line = connection.gets)
        database.query
        # What computes keeps the thread.
        digest = Array.new(4_000) { |number| number.hash }.sum
        connection.write("#{line.chomp}: #{digest}\n")
      end
    rescue Errno::EPIPE, Errno::ECONNRESET
      # The client waits no more.
    ensure
      connection.close
    end
  end
end

def ask(port, name)
  TCPSocket.open("127.0.0.1", port) do |socket|
    2.times do |number|
      socket.write("#{name}, #{number}\n")
      Timeout.timeout(0.02) { socket.gets }
    end
  end
rescue Timeout::Error
  puts "#{name} has waited for too long"
end

path = ARGV.fetch(0, "trace.json")
scheduler = UM::FiberScheduler.new
Fiber.set_scheduler(scheduler)
UM.trace(path) do
  server = TCPServer.new("127.0.0.1", 0)
  database = Database.new
  Fiber.schedule { serve(server, database) }
  CLIENTS.times { |number| Fiber.schedule { ask(server.addr[1], "client #{number}") } }
  scheduler.run
end
puts "#{path} is written"
