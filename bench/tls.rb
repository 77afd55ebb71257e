# frozen_string_literal: true

# TLS between two fibers: plain threads, the scheduler with stock SSLSockets, and the scheduler with SSLSockets on the
# ring. CPU and wall time a message, and the ratio to the stock socket, in one run.
#
#   script/with-ruby ruby bench/tls.rb [MESSAGES]

require "openssl"
require "socket"
require "uringmachine"

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

def exchange(start)
  context = OpenSSL::SSL::SSLContext.new.tap { |server| server.add_certificate(CERTIFICATE, KEY) }
  near, far = UNIXSocket.pair
  server = OpenSSL::SSL::SSLSocket.new(near, context)
  client = OpenSSL::SSL::SSLSocket.new(far, OpenSSL::SSL::SSLContext.new)
  start.call do
    server.accept
    MESSAGES.times { server.syswrite(server.sysread(64)) }
  end
  start.call do
    client.connect
    MESSAGES.times do
      client.syswrite("m" * 64)
      client.sysread(64)
    end
  end
end

def scheduled
  Thread.new do
    Fiber.set_scheduler(UM::FiberScheduler.new)
    exchange(->(&work) { Fiber.schedule(&work) })
  end.join
end

KINDS = {
  "threads" => lambda {
    threads = []
    exchange(->(&work) { threads << Thread.new(&work) })
    threads.each(&:join)
  },
  "stock" => -> { scheduled },
  "ring" => lambda {
    UM::SSL.accelerate_all
    scheduled
    UM::SSL.leave_alone
  }
}.freeze

def measure(work)
  clocks = [Process::CLOCK_PROCESS_CPUTIME_ID, Process::CLOCK_MONOTONIC]
  before = clocks.map { |clock| Process.clock_gettime(clock) }
  work.call
  clocks.zip(before).map { |clock, start| (Process.clock_gettime(clock) - start) / MESSAGES * 1e6 }
end

samples = Hash.new { |hash, kind| hash[kind] = [] }
5.times { KINDS.each { |kind, work| samples[kind] << measure(work) } }
medians = samples.transform_values { |found| found.transpose.map { |values| values.sort[values.size / 2] } }
medians.each { |kind, (cpu, wall)| puts format("%-8s CPU %6.2f us  wall %6.2f us  CPU to stock %.2f", kind, cpu, wall, cpu / medians["stock"][0]) }
