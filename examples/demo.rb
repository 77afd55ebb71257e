# frozen_string_literal: true

# Ordinary Ruby code, scene by scene: once with plain threads, once with fibers on io_uring. Run by script/demo.

require "net/http"
require "socket"
require "tempfile"
require "timeout"
require "uringmachine"

abort "io_uring cannot be had here: #{UM.unsupported_reason}" unless UM.supported?

# A scene takes `spawn`, a way to start something concurrently, and returns what it has to say.
SCENES = {}

def scene(name, &block) = SCENES[name] = block

scene "1,000 sleeps of 50 ms" do |spawn|
  woken = 0
  1_000.times { spawn.call { woken += 1 if sleep(0.05) } }
  -> { "#{woken} woke up" }
end

scene "pipes and sockets: 100 pairs, 100 messages each" do |spawn|
  received = 0
  100.times do |number|
    source, sink = number.even? ? IO.pipe : UNIXSocket.pair
    spawn.call do
      100.times { sink.puts "message" }
      sink.close
    end
    spawn.call do
      source.each_line { received += 1 }
      source.close
    end
  end
  -> { "#{received} messages" }
end

scene "files: 50 written and read back" do |spawn|
  bytes = 0
  50.times do
    spawn.call do
      Tempfile.create("um") do |file|
        File.write(file.path, "x" * 100_000)
        read = File.read(file.path).bytesize
        bytes += read
      end
    end
  end
  -> { "#{bytes} bytes" }
end

scene "child processes: 20" do |spawn|
  sum = 0
  20.times do |number|
    spawn.call do
      said = `echo #{number}`.to_i
      sum += said
    end
  end
  -> { "their numbers add up to #{sum}" }
end

scene "Mutex, Queue and Timeout" do |spawn|
  mutex = Mutex.new
  queue = Queue.new
  count = timeouts = 0
  100.times { spawn.call { mutex.synchronize { count += queue.pop } } }
  100.times { spawn.call { queue << 1 } }
  20.times do
    spawn.call do
      Timeout.timeout(0.01) { sleep }
    rescue Timeout::Error
      timeouts += 1
    end
  end
  -> { "counted #{count}, timed out #{timeouts}" }
end

scene "name look-ups: localhost, 100 times" do |spawn|
  found = 0
  100.times { spawn.call { found += 1 unless Addrinfo.getaddrinfo("localhost", 80, nil, :STREAM).empty? } }
  -> { "#{found} answers" }
end

# The clients are one thread of the demo's own, on a poll loop, so that they weigh the same on both sides.
def connect_and_ask(port, connections)
  sockets = Array.new(connections) { TCPSocket.new("127.0.0.1", port) }
  sockets.each { |socket| socket.write("GET / HTTP/1.1\r\nHost: demo\r\n\r\n") }
  answers = 0
  until sockets.empty?
    IO.select(sockets).first.each do |socket|
      answers += 1 if socket.readpartial(1024).start_with?("HTTP/1.1 200")
      sockets.delete(socket)
      socket.close
    end
  end
  answers
end

scene "an HTTP server with TCPServer and gets, 1,000 concurrent connections" do |spawn|
  server = TCPServer.new("127.0.0.1", 0)
  server.listen(1_024)
  open = most = answers = 0
  all_there = Queue.new
  client = Thread.new { connect_and_ask(server.addr[1], 1_000) }
  spawn.call do
    1_000.times do
      connection = server.accept
      spawn.call do
        most = [most, open += 1].max
        request = connection.gets
        loop until connection.gets == "\r\n"
        # Nobody is answered before everybody is there: these are 1,000 connections at a time.
        open == 1_000 ? all_there.close : all_there.pop
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: #{request.bytesize}\r\n\r\n#{request}")
        connection.close
      end
    end
    answers = client.value
    server.close
  end
  -> { "#{answers} answers, #{most} connections at a time" }
end

def with_threads(scene)
  threads = Queue.new
  report = scene.call(->(&work) { threads << Thread.new(&work) })
  threads.pop.join until threads.empty?
  report.call
end

def with_scheduler(scene)
  report = nil
  Thread.new do
    Fiber.set_scheduler(UM::FiberScheduler.new)
    report = scene.call(->(&work) { Fiber.schedule(&work) })
  end.join
  report.call
end

def timed
  started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  [yield, (Process.clock_gettime(Process::CLOCK_MONOTONIC) - started) * 1000]
end

Thread.report_on_exception = true
differences = SCENES.count do |name, scene|
  threads, threads_ms = timed { with_threads(scene) }
  fibers, fibers_ms = timed { with_scheduler(scene) }
  puts name, format("  threads  %7.1f ms  %s", threads_ms, threads), format("  io_uring %7.1f ms  %s", fibers_ms, fibers)
  # What is counted must agree; how many were open at a time depends on the thread scheduler.
  threads[/\d+/] != fibers[/\d+/]
end
abort "#{differences} scenes differ" if differences.positive?
