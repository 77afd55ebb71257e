# frozen_string_literal: true

# TLS between two fibers that exchange small messages: plain threads, Async and the scheduler with stock SSLSockets, and
# the scheduler with SSLSockets on the ring.
#
#   script/with-ruby ruby bench/tls.rb [MESSAGES]

require "openssl"
require "socket"
require_relative "comparison"

MESSAGES = Integer(ARGV.fetch(0, 20_000))
KEY = OpenSSL::PKey::EC.generate("prime256v1")
CERTIFICATE = OpenSSL::X509::Certificate.new.tap do |certificate|
  certificate.version = 2
  certificate.subject = certificate.issuer = OpenSSL::X509::Name.parse("/CN=localhost")
  certificate.public_key = KEY
  certificate.not_before = Time.now - 60
  certificate.not_after = Time.now + 3600
  certificate.sign(KEY, "SHA256")
end

def exchange(spawn)
  context = OpenSSL::SSL::SSLContext.new.tap { |server| server.add_certificate(CERTIFICATE, KEY) }
  near, far = UNIXSocket.pair
  server = OpenSSL::SSL::SSLSocket.new(near, context)
  client = OpenSSL::SSL::SSLSocket.new(far, OpenSSL::SSL::SSLContext.new)
  spawn.call do
    server.accept
    MESSAGES.times { server.syswrite(server.sysread(64)) }
  end
  spawn.call do
    client.connect
    MESSAGES.times do
      client.syswrite("m" * 64)
      client.sysread(64)
    end
  end
end

comparison = Comparison.new("#{MESSAGES} messages over TLS", operations: MESSAGES, unit: "message")
comparison.peers(%w[threads um async-epoll async-uring]) { |spawn| exchange(spawn) }
comparison.way("um, on the ring") do
  UM::SSL.accelerate_all
  Peers.run("um") { |spawn| exchange(spawn) }
  UM::SSL.leave_alone
end
comparison.run
