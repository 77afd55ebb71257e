# frozen_string_literal: true

# A client of Redis: RESP3 on UM::IO, ten connections at once.
#
#   ruby examples/machine_redis.rb [SOCKET_PATH]

require "uringmachine"

# Commands to one server, on one connection.
class Redis
  def initialize(machine, path)
    fd = machine.socket(UM::AF_UNIX, UM::SOCK_STREAM)
    machine.connect(fd, path)
    @io = machine.io(fd, :socket)
    call("HELLO", "3")
  end

  def call(*command)
    @io.resp_write(command)
    reply = @io.resp_read
    raise reply if reply.is_a?(UM::IO::RESPError)

    reply
  end
end

machine = UM.new
path = ARGV.fetch(0, "/run/redis/redis-server.sock")
Redis.new(machine, path).call("DEL", "um:counter")
fibers = Array.new(10) do |number|
  machine.spin do
    redis = Redis.new(machine, path)
    redis.call("SET", "um:#{number}", "value #{number}")
    10.times { redis.call("INCR", "um:counter") }
    redis.call("GET", "um:#{number}")
  end
end
puts machine.join(fibers)
puts "counter: #{Redis.new(machine, path).call("GET", "um:counter")}"
