# frozen_string_literal: true

# Sends its scheduler's metrics to a collector of OpenTelemetry every so often: OTLP in JSON over HTTP, which needs no gem.
#
#   script/with-ruby ruby examples/open_telemetry.rb [URL] [SECONDS] [TIMES]

require "json"
require "net/http"
require "uringmachine"

# https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
module OpenTelemetry
  CUMULATIVE = 2
  STARTED = Process.clock_gettime(Process::CLOCK_REALTIME, :nanosecond).to_s

  def self.body(metrics)
    scope = { scope: { name: "uringmachine", version: UM::VERSION }, metrics: metrics.map { |name, value| metric(name, value) } }
    { resourceMetrics: [{ resource: { attributes: [attribute("service.name", "example")] }, scopeMetrics: [scope] }] }
  end

  def self.metric(name, value)
    values = value.is_a?(Hash) ? value : { nil => value }
    points = { dataPoints: values.map { |kind, number| point(kind, number) } }
    counter = name.end_with?("_total")
    { name: "uringmachine.#{name.to_s.delete_suffix("_total")}",
      (counter ? :sum : :gauge) => counter ? { **points, aggregationTemporality: CUMULATIVE, isMonotonic: true } : points }
  end

  def self.point(kind, number)
    value = number.is_a?(Float) ? { asDouble: number } : { asInt: number.to_s }
    now = Process.clock_gettime(Process::CLOCK_REALTIME, :nanosecond).to_s
    { startTimeUnixNano: STARTED, timeUnixNano: now, **value, attributes: kind ? [attribute("kind", kind)] : [] }
  end

  def self.attribute(key, value) = { key:, value: { stringValue: value.to_s } }
end

url = URI(ARGV.fetch(0, "http://127.0.0.1:4318/v1/metrics"))
interval = Float(ARGV.fetch(1, 10))
times = Integer(ARGV.fetch(2, 1_000_000))

scheduler = UM::FiberScheduler.new
scheduler.machine.profile_mode = true
Fiber.set_scheduler(scheduler)

Fiber.schedule do
  times.times do
    sleep interval
    response = Net::HTTP.post(url, JSON.generate(OpenTelemetry.body(scheduler.metrics)), "Content-Type" => "application/json")
    puts "sent: #{response.code}"
  rescue SystemCallError => e
    warn "the collector is not there: #{e.message}"
  end
end
