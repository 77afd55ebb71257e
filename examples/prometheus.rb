# frozen_string_literal: true

# A server that serves its scheduler's metrics in the text format of Prometheus, on a path of their own.
#
#   script/with-ruby ruby examples/prometheus.rb [PORT]
#   curl http://127.0.0.1:PORT/metrics

require "socket"
require "uringmachine"

# The exposition format: https://prometheus.io/docs/instrumenting/exposition_formats/
def exposition(metrics)
  metrics.map do |name, value|
    samples = value.is_a?(Hash) ? value.map { |kind, count| [%({kind="#{kind}"}), count] } : [["", value]]
    type = name.end_with?("_total") ? "counter" : "gauge"
    ["# TYPE uringmachine_#{name} #{type}\n", *samples.map { |labels, number| "uringmachine_#{name}#{labels} #{number}\n" }].join
  end.join
end

server = TCPServer.new("127.0.0.1", Integer(ARGV.fetch(0, 0)))
puts "serving on #{server.addr[1]}"
$stdout.flush

scheduler = UM::FiberScheduler.new
scheduler.machine.profile_mode = true
scheduler.warn_of_stalls(0.05)
Fiber.set_scheduler(scheduler)

Fiber.schedule do
  loop do
    connection = server.accept
    Fiber.schedule do
      request = connection.gets("\r\n\r\n").to_s
      status, body = request.start_with?("GET /metrics ") ? ["200 OK", exposition(scheduler.metrics)] : ["404 Not Found", "metrics are at /metrics\n"]
      connection.write("HTTP/1.1 #{status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n", body)
    rescue SystemCallError => e
      warn "connection lost: #{e.message}"
    ensure
      connection.close
    end
  end
end
