# frozen_string_literal: true

require "socket"
require "tempfile"
require "timeout"
require "tmpdir"

# The workloads. Each takes `spawn` and the number of operations; what it sets up before its block is not measured.
module Workloads
  # A workload: its operations per run, the peers' handicap if any, and its body.
  Workload = Struct.new(:name, :operations, :threads_operations, :body)

  ALL = {}

  # `threads:` is the number of operations for plain threads, where they are too slow for as many.
  def self.workload(name, operations, threads: operations, &body)
    ALL[name] = Workload.new(name, operations, threads, body)
  end

  workload "spawn", 100_000, threads: 10_000 do |spawn, count|
    spawn.call { count.times { spawn.call {} } }
  end

  workload "pipe", 100_000, threads: 40_000 do |spawn, count|
    reader, writer = IO.pipe
    writer.sync = true
    message = "m" * 1024
    spawn.call do
      count.times { writer.write(message) }
      writer.close
    end
    spawn.call do
      buffer = +""
      count.times { reader.readpartial(1024, buffer) }
    end
  end

  workload "ping_pong", 50_000, threads: 10_000 do |spawn, count|
    near, far = UNIXSocket.pair
    message = "p" * 64
    spawn.call do
      buffer = +""
      count.times do
        near.write(message)
        near.readpartial(64, buffer)
      end
    end
    spawn.call do
      buffer = +""
      count.times { far.write(far.readpartial(64, buffer)) }
    end
  end

  workload "sleep", 20_000, threads: 2_000 do |spawn, count|
    count.times { spawn.call { sleep 0.1 } }
  end

  workload "sleep_zero", 200_000, threads: 20_000 do |spawn, count|
    10.times { spawn.call { (count / 10).times { sleep 0 } } }
  end

  workload "mutex", 100_000, threads: 20_000 do |spawn, count|
    mutex = Mutex.new
    10.times do
      spawn.call do
        (count / 10).times do
          mutex.synchronize { sleep 0 }
        end
      end
    end
  end

  workload "queue", 200_000, threads: 50_000 do |spawn, count|
    queue = SizedQueue.new(16)
    spawn.call { count.times { |number| queue << number } }
    spawn.call { count.times { queue.pop } }
  end

  workload "timeout", 50_000 do |spawn, count|
    spawn.call { count.times { Timeout.timeout(10) { sleep 0 } } }
  end

  workload "pread", 100_000 do |spawn, count|
    file = Tempfile.create("um")
    file.write("f" * 4096 * 64)
    file.flush
    File.unlink(file.path)
    spawn.call do
      buffer = +""
      count.times { |number| file.pread(4096, 4096 * (number % 64), buffer) }
    end
  end

  workload "small_files", 20_000 do |spawn, count|
    folder = Dir.mktmpdir("um")
    paths = Array.new(100) { |number| File.join(folder, number.to_s).tap { |path| File.write(path, "s" * 1024) } }
    spawn.call do
      count.times { |number| File.open(paths[number % 100]) { |file| file.read(1024) } }
      FileUtils.rm_rf(folder)
    end
  end

  workload "file_write", 100_000 do |spawn, count|
    file = Tempfile.create("um")
    file.sync = true
    File.unlink(file.path)
    message = "w" * 1024
    spawn.call do
      count.times do |number|
        file.rewind if (number % 1000).zero?
        file.write(message)
      end
    end
  end

  workload "processes", 100 do |spawn, count|
    10.times { spawn.call { (count / 10).times { system("/bin/true") } } }
  end

  workload "copy_stream", 40 do |spawn, count|
    file = Tempfile.create("um")
    file.write("c" * (1 << 22))
    file.flush
    File.unlink(file.path)
    source, sink = UNIXSocket.pair
    drain = fork do
      sink.close
      buffer = +""
      nil while source.read(1 << 20, buffer)
      exit!(0)
    end
    source.close
    spawn.call do
      count.times do
        file.rewind
        IO.copy_stream(file, sink)
      end
      sink.close
      Process.wait(drain)
    end
  end

  # Clients are a process of their own, the same for every peer.
  def self.with_clients(connections, rounds, message, port)
    fork do
      sockets = Array.new(connections) { TCPSocket.new("127.0.0.1", port) }
      buffer = +""
      rounds.times do
        sockets.each { |socket| socket.syswrite(message) }
        sockets.each do |socket|
          left = message.bytesize
          left -= socket.readpartial(left, buffer).bytesize while left.positive?
        end
      end
      exit!(0)
    end
  end

  workload "tcp_echo", 50_000, threads: 20_000 do |spawn, count|
    connections = 100
    server = TCPServer.new("127.0.0.1", 0)
    server.listen(1024)
    client = with_clients(connections, count / connections, "e" * 64, server.addr[1])
    spawn.call do
      connections.times do
        socket = server.accept
        spawn.call do
          buffer = +""
          loop { socket.write(socket.readpartial(64, buffer)) }
        rescue EOFError, Errno::ECONNRESET
          socket.close
        end
      end
      Process.wait(client)
    end
  end

  RESPONSE = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

  def self.http(spawn, count, connections)
    server = TCPServer.new("127.0.0.1", 0)
    server.listen(4096)
    port = server.addr[1]
    served = 0
    log = Tempfile.new("um")
    client = Process.spawn("wrk", "-t1", "-c#{connections}", "-d2s", "http://127.0.0.1:#{port}/", out: log.path, err: log.path)
    spawn.call do
      connections.times do
        socket = server.accept
        spawn.call do
          while (line = socket.gets)
            next unless line == "\r\n"

            socket.write(RESPONSE)
            served += 1
          end
          socket.close
        rescue SystemCallError
          socket.close
        end
      end
      Process.wait(client)
    end
    -> { served.zero? ? count : served }
  end

  if system("command -v wrk >/dev/null")
    workload("http_64", 1) { |spawn, count| http(spawn, count, 64) }
    workload("http_1000", 1) { |spawn, count| http(spawn, count, 1000) }
  else
    warn "http workloads are skipped: wrk is not there (apt-get install wrk)"
  end
end
