# frozen_string_literal: true

require "fileutils"
require "socket"
require "tempfile"
require "timeout"
require "tmpdir"
require "zlib"

require_relative "http_load"
require_relative "nginx"
require_relative "peers"

# The workloads. Each takes `spawn` and the number of operations; what it sets up before its block is not measured.
module Workloads
  # A workload: its operations per run; those of plain threads, which are too slow for as many; the ratio to the best other
  # gem that is wanted; the peers that only it has; and its body.
  Workload = Struct.new(:name, :operations, :threads_operations, :wanted, :others, :body) do
    def measure(peer, count)
      return others.fetch(peer).call if others.key?(peer)

      found = nil
      Peers.run(peer) { |spawn| found = body.call(spawn, count) }
      found.respond_to?(:call) ? found.call : found
    end

    # nil if a peer can run it, else why not.
    def missing(peer)
      "it is no server of this" if peer == "nginx" && !others.key?(peer)
    end
  end

  ALL = {}

  def self.workload(name, operations, wanted:, threads: operations, others: {}, &body)
    ALL[name] = Workload.new(name, operations, threads, wanted, others, body)
  end

  def self.client(*arguments, **)
    Process.spawn(RbConfig.ruby, File.join(__dir__, "client.rb"), *arguments.map(&:to_s), **)
  end

  workload "spawn", 100_000, wanted: 0.85, threads: 10_000 do |spawn, count|
    spawn.call { count.times { spawn.call {} } }
  end

  workload "pipe", 100_000, wanted: 0.80, threads: 40_000 do |spawn, count|
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

  workload "ping_pong", 50_000, wanted: 0.80, threads: 10_000 do |spawn, count|
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

  workload "sleep", 20_000, wanted: 0.60, threads: 2_000 do |spawn, count|
    count.times { spawn.call { sleep 0.1 } }
  end

  workload "sleep_zero", 200_000, wanted: 0.17, threads: 20_000 do |spawn, count|
    10.times { spawn.call { (count / 10).times { sleep 0 } } }
  end

  workload "mutex", 100_000, wanted: 0.30, threads: 20_000 do |spawn, count|
    mutex = Mutex.new
    10.times do
      spawn.call do
        (count / 10).times do
          mutex.synchronize { sleep 0 }
        end
      end
    end
  end

  workload "queue", 200_000, wanted: 0.80, threads: 50_000 do |spawn, count|
    queue = SizedQueue.new(16)
    spawn.call { count.times { |number| queue << number } }
    spawn.call { count.times { queue.pop } }
  end

  workload "timeout", 50_000, wanted: 0.35 do |spawn, count|
    spawn.call { count.times { Timeout.timeout(10) { sleep 0 } } }
  end

  workload "pread", 100_000, wanted: 0.72 do |spawn, count|
    file = Tempfile.create("um")
    file.write("f" * 4096 * 64)
    file.flush
    File.unlink(file.path)
    spawn.call do
      buffer = +""
      count.times { |number| file.pread(4096, 4096 * (number % 64), buffer) }
    end
  end

  workload "small_files", 20_000, wanted: 0.95 do |spawn, count|
    folder = Dir.mktmpdir("um")
    paths = Array.new(100) { |number| File.join(folder, number.to_s).tap { |path| File.write(path, "s" * 1024) } }
    spawn.call do
      count.times { |number| File.open(paths[number % 100]) { |file| file.read(1024) } }
      FileUtils.rm_rf(folder)
    end
  end

  workload "file_write", 100_000, wanted: 0.93 do |spawn, count|
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

  # What looks at files, and what computes, is to cost what it does without a scheduler.
  workload "file_stat", 50_000, wanted: 1.2 do |spawn, count|
    spawn.call { count.times { File.stat(__FILE__) } }
  end

  workload "glob", 500, wanted: 1.2 do |spawn, count|
    folder = Dir.mktmpdir("um")
    100.times { |number| File.write(File.join(folder, number.to_s), "") }
    spawn.call do
      count.times { Dir.glob(File.join(folder, "*")) }
      FileUtils.rm_rf(folder)
    end
  end

  workload "inflate", 50_000, wanted: 1.2 do |spawn, count|
    packed = Zlib.deflate("inflated" * 128)
    spawn.call { count.times { Zlib.inflate(packed) } }
  end

  workload "processes", 100, wanted: 0.87 do |spawn, count|
    10.times { spawn.call { (count / 10).times { system("/bin/true") } } }
  end

  workload "copy_stream", 400, wanted: 0.75 do |spawn, count|
    file = Tempfile.create("um")
    file.write("c" * (1 << 22))
    file.flush
    File.unlink(file.path)
    source, sink = UNIXSocket.pair
    drain = client("drain", in: source)
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

  # Sends back what comes, as much at a time, until the client has gone.
  def self.send_back(socket, most)
    buffer = +""
    loop { socket.write(socket.readpartial(most, buffer)) }
  rescue EOFError, SystemCallError
    socket.close
  end

  workload "tcp_echo", 50_000, wanted: 0.80, threads: 20_000 do |spawn, count|
    connections = 100
    server = TCPServer.new("127.0.0.1", 0)
    server.listen(1024)
    client = client("echo", server.addr[1], connections, count / connections)
    spawn.call do
      connections.times do
        socket = server.accept
        spawn.call { send_back(socket, 64) }
      end
      Process.wait(client)
    end
  end

  RESPONSE = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

  # A server of ordinary code: it reads lines until an empty one, and answers.
  def self.serve(spawn, server)
    socket = server.accept
    spawn.call do
      while (line = socket.gets)
        socket.write(RESPONSE) if line == "\r\n"
      end
      socket.close
    rescue SystemCallError
      socket.close
    end
  end

  # An echo server for as many connections.
  def self.echo(spawn, connections)
    server = listen
    # More than the queue of those that ask to be let in holds ask again after seconds.
    load = HttpLoad.new(server.addr[1], connections, echo: true, seconds: connections > 4096 ? 8 : 2)
    spawn.call do
      connections.times do
        socket = server.accept
        spawn.call { send_back(socket, 4096) }
      end
    end
    -> { load.result.then { |found| found.merge(operations: found[:requests]) } }
  end

  # Two fibers that talk to each other while many others wait.
  def self.beside(spawn, waiting, count)
    queue = Thread::Queue.new
    waiting.times { spawn.call { queue.pop } }
    near, far = UNIXSocket.pair
    found = nil
    spawn.call do
      before = Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID)
      count.times { near.write("p") && near.readpartial(8) }
      found = { operations: count, cpu: Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) - before }
      near.close
      waiting.times { queue << nil }
    end
    spawn.call do
      loop { far.write(far.readpartial(8)) }
    rescue EOFError
      far.close
    end
    -> { found }
  end

  # Bytes of memory that fibers need which wait for a line each.
  def self.waiting_for_lines(spawn, waiting)
    pairs = Array.new(waiting) { UNIXSocket.pair }
    GC.start
    before = resident
    grown = nil
    pairs.each { |reader, _| spawn.call { nil while reader.gets } }
    spawn.call do
      # All of them have read a line, and wait for the next.
      pairs.each { |_, writer| writer.write("line\n") }
      20.times { sleep 0 }
      GC.start
      grown = resident - before
      pairs.each { |_, writer| writer.close }
    end
    -> { { bytes: grown / waiting } }
  end

  def self.resident = File.read("/proc/self/statm").split[1].to_i * Etc.sysconf(Etc::SC_PAGESIZE)

  # What bench/growth.rb measures: each with the number that grows.
  GROWTH = {
    "echo" => [[10, 100, 1_000, 10_000], ->(spawn, number) { echo(spawn, number) }],
    "beside" => [[100, 1_000, 10_000, 100_000], ->(spawn, number) { beside(spawn, number, 20_000) }],
    "memory" => [[100, 1_000, 10_000], ->(spawn, number) { waiting_for_lines(spawn, number) }]
  }.freeze

  def self.listen
    TCPServer.new("127.0.0.1", 0).tap { |server| server.listen(4096) }
  end

  def self.http(spawn, connections)
    server = listen
    load = HttpLoad.new(server.addr[1], connections)
    spawn.call { connections.times { serve(spawn, server) } }
    -> { load.result.then { |found| found.merge(operations: found[:requests]) } }
  end

  # Processes that share a listening socket: what they spend is known when they have ended.
  def self.prefork(peer, workers, connections)
    server = listen
    children = Array.new(workers) do
      fork { Peers.run(peer) { |spawn| spawn.call { loop { serve(spawn, server) } } } }
    end
    found = HttpLoad.new(server.addr[1], connections).result
    before = Process.times
    children.each { |pid| Process.kill(:KILL, pid) && Process.wait(pid) }
    spent_by_servers(found, Process.times.then { |times| [times.cutime - before.cutime, times.cstime - before.cstime] })
  end

  def self.nginx(workers, connections)
    nginx = Nginx.new(workers: workers)
    before = nginx.times
    found = HttpLoad.new(nginx.port, connections).result
    spent_by_servers(found, nginx.times.zip(before).map { |now, start| now - start })
  ensure
    nginx&.stop
  end

  def self.spent_by_servers(found, times)
    user, system = times
    found.merge(operations: found[:requests], cpu: user + system, user: user, system: system)
  end

  if HttpLoad.there?
    { 64 => 0.88, 1000 => 0.75 }.each do |connections, wanted|
      others = { "nginx" => -> { nginx(1, connections) } }
      workload("http_#{connections}", 1, wanted: wanted, others: others) { |spawn, _| http(spawn, connections) }
    end
    preforked = (Peers::SCHEDULERS.keys + ["threads"]).to_h { |peer| [peer, -> { prefork(peer, 2, 64) }] }
    workload("http_prefork", 1, wanted: 0.88, others: preforked.merge("nginx" => -> { nginx(2, 64) }))
  else
    warn "http workloads are skipped: wrk is not there (apt-get install wrk)"
  end
end
