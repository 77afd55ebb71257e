# frozen_string_literal: true

# An echo server over TLS, on the ring: an OpenSSL::SSL::SSLSocket whose reads and writes are the scheduler's operations.
#
#   script/with-ruby ruby examples/tls_server.rb CERTIFICATE_AND_KEY.pem [PORT]
#   openssl s_client -quiet -connect 127.0.0.1:PORT

require "openssl"
require "socket"
require "uringmachine"

abort "usage: tls_server.rb CERTIFICATE_AND_KEY.pem [PORT]" unless ARGV.first
pem = File.read(ARGV.first)
context = OpenSSL::SSL::SSLContext.new
context.add_certificate(OpenSSL::X509::Certificate.new(pem), OpenSSL::PKey.read(pem))

server = TCPServer.new("127.0.0.1", Integer(ARGV.fetch(1, 0)))
puts "echoing on #{server.addr[1]}"
$stdout.flush

Fiber.set_scheduler(UM::FiberScheduler.new)
# All that are accepted from now on; `kernel: true` has the kernel encrypt where it can.
UM::SSL.accelerate_all

Fiber.schedule do
  loop do
    socket = server.accept
    # The handshake is the connection's: a peer that is slow keeps nobody else waiting.
    Fiber.schedule do
      socket.timeout = 10
      connection = OpenSSL::SSL::SSLSocket.new(socket, context)
      connection.sync_close = true
      connection.accept
      while (line = connection.gets)
        connection.write(line)
      end
    rescue SystemCallError, IOError, OpenSSL::SSL::SSLError => e
      warn "connection lost: #{e.message}"
    ensure
      (connection || socket).close
    end
  end
end
