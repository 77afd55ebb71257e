# frozen_string_literal: true

# A server of several processes that have a listening socket each, at the same address (SO_REUSEPORT): the kernel spreads
# the connections evenly, and no worker wakes in vain. The workers are programs of their own here, not forks.
#
#   script/with-ruby ruby examples/reuse_port_server.rb [WORKERS [PORT]]

require "socket"
require_relative "supervisor"

def bind(port)
  Socket.new(:INET, :STREAM).tap do |socket|
    socket.setsockopt(:SOCKET, :REUSEPORT, true)
    socket.bind(Addrinfo.tcp("127.0.0.1", port))
  end
end

def work(port, name)
  trap(:TERM) { exit }
  server = bind(port)
  server.listen(Socket::SOMAXCONN)
  puts "#{name} listens"
  $stdout.flush
  loop do
    connection, = server.accept
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

def supervise(workers, port)
  # Keeps the port, but does not listen.
  socket = bind(port)
  port = socket.local_address.ip_port
  puts "listening on #{port}"
  Supervisor.new(workers) do |number|
    UM::Process.spawn(RbConfig.ruby, "-W:no-experimental", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, __FILE__, "worker #{number}", port.to_s)
  end.run
end

Fiber.set_scheduler(UM::FiberScheduler.new)
Fiber.schedule do
  name = ARGV.fetch(0, "4")
  name.start_with?("worker") ? work(Integer(ARGV.fetch(1)), name) : supervise(Integer(name), Integer(ARGV.fetch(1, 0)))
end
