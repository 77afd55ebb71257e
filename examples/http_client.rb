# frozen_string_literal: true

# Fetches pages of many hosts at a time with Net::HTTP, each host by its name, each with a time limit.
#
#   script/with-ruby ruby examples/http_client.rb URL…
#
# Without arguments it starts three small servers on loopback and fetches from them.

require "net/http"
require "socket"
require "timeout"
require "uringmachine"

# A server that answers every request after a moment.
def serve(name)
  server = TCPServer.new("127.0.0.1", 0)
  Fiber.schedule do
    loop do
      connection = server.accept
      Fiber.schedule do
        connection.gets("\r\n\r\n")
        sleep 0.02
        body = "hello from #{name}"
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
        connection.close
      end
    end
  end
  "http://localhost:#{server.addr[1]}/"
end

def fetch(url)
  Timeout.timeout(10) { Net::HTTP.get(URI(url)) }
rescue StandardError => e
  "failed: #{e.message}"
end

Thread.new do
  Fiber.set_scheduler(UM::FiberScheduler.new)
  own = ARGV.empty?
  urls = own ? %w[one two three].map { |name| serve(name) } : ARGV
  left = urls.size
  urls.each do |url|
    Fiber.schedule do
      puts "#{url} #{fetch(url).lines.first&.chomp}"
      # The servers of the example would run for ever.
      exit if (left -= 1).zero? && own
    end
  end
end.join
