# frozen_string_literal: true

require "digest"
require "net/http"
require "open-uri"
require_relative "../identity"
require_relative "compat_helper"

# HTTP clients, against nginx with a certificate of ours.
class TestHTTPClients < CompatTest
  ROW = "HTTP clients"
  ADDRESS = "https://localhost"
  LARGE = sized = FIGURES ? 100_000_000 : 4_000_000
  BODY = "from nginx\n" * 1000

  def setup
    super
    @nginx = need_command("nginx")
  end

  # What stands in for an application behind nginx: what is sent there is measured, and comes back as its length and digest.
  def with_upload_counter
    server = TCPServer.new("127.0.0.1", 0)
    thread = Thread.new do
      loop do
        Thread.new(server.accept) do |connection|
          while (line = connection.gets)
            length = 0
            length = $1.to_i if line =~ /\Acontent-length: (\d+)/i
            until (header = connection.gets) == "\r\n"
              length = header[/\d+/].to_i if header.match?(/\Acontent-length:/i)
            end
            digest = Digest::SHA256.new
            left = length
            left -= (chunk = connection.readpartial([left, 100_000].min)).bytesize.tap { digest << chunk } while left.positive?
            answer = "#{length} #{digest}"
            connection.write("HTTP/1.1 200 OK\r\nContent-Length: #{answer.size}\r\n\r\n#{answer}")
          end
        ensure
          connection.close
        end
      end
    end
    yield server.addr[1]
  ensure
    thread&.kill&.join
    server&.close
  end
end
