# frozen_string_literal: true

require_relative "test_helper"
require "json"
require "tempfile"
require "tmpdir"
require_relative "identity"

# Every example does what it says.
class TestExamples < SchedulerTest
  EXAMPLES = File.expand_path("../examples", __dir__)

  def test_echo_server
    IO.popen(command("echo_server.rb")) do |server|
      port = Integer(server.gets[/\d+/])
      sockets = Array.new(20) { TCPSocket.new("127.0.0.1", port) }
      sockets.each_with_index { |socket, number| socket.puts "line #{number}" }
      sockets.each_with_index { |socket, number| assert_equal "line #{number}\n", socket.gets }
      sockets.each(&:close)
      Process.kill(:TERM, server.pid)
    end
  end

  def test_tls_server
    Tempfile.create("um") do |file|
      file.write(Identity.certificate.to_pem, Identity.key.to_pem)
      file.flush
      IO.popen(command("tls_server.rb", file.path)) do |server|
        port = Integer(server.gets[/\d+/])
        context = OpenSSL::SSL::SSLContext.new.tap { |client| client.set_params(cert_store: OpenSSL::X509::Store.new.tap { |store| store.add_cert(Identity.certificate) }) }
        idle = TCPSocket.new("127.0.0.1", port)
        sockets = Array.new(20) do
          OpenSSL::SSL::SSLSocket.new(TCPSocket.new("127.0.0.1", port), context).tap { |socket| (socket.hostname = "localhost") && (socket.sync_close = true) && socket.connect }
        end
        sockets.each_with_index { |socket, number| socket.puts "line #{number}" }
        sockets.each_with_index { |socket, number| assert_equal "line #{number}\n", socket.gets }
        [idle, *sockets].each(&:close)
        Process.kill(:TERM, server.pid)
      end
    end
  end

  def test_http_client
    lines = run_example("http_client.rb").lines
    assert_equal ["hello from one", "hello from three", "hello from two"], lines.map { |line| line.split(" ", 2).last.chomp }.sort
  end

  def test_copy_files
    Dir.mktmpdir do |folder|
      sources = %w[a b].map { |name| File.join(folder, name).tap { |path| File.write(path, name * 3_000_000) } }
      target = File.join(folder, "target")
      Dir.mkdir(target)
      assert_equal 2, run_example("copy_files.rb", *sources, target).lines.size
      sources.each { |source| assert_equal File.read(source), File.read(File.join(target, File.basename(source))) }
    end
  end

  def test_trace
    Dir.mktmpdir do |folder|
      path = File.join(folder, "trace.json")
      assert_equal "#{path} is written", run_example("trace.rb", path).lines.last.chomp
      names = JSON.parse(File.read(path)).fetch("traceEvents").map { |event| event["name"] }
      assert_empty ["Thread::Queue", "sleep", "poll", "running", "kernel sleep"] - names
    end
  end

  def test_workers
    output = run_example("workers.rb")
    assert_equal 8, output.lines.size
    assert_equal 4, output.lines.grep(/ended with 1/).size
  end

  def test_demo
    output = run_example("demo.rb")
    assert_match(/1000 answers, 1000 connections at a time/, output.lines.last)
  end

  def test_machine_echo_server
    with_server("machine_echo_server.rb") do |port|
      sockets = Array.new(20) { TCPSocket.new("127.0.0.1", port) }
      sockets.each_with_index { |socket, number| socket.write("bytes #{number}") }
      sockets.each_with_index { |socket, number| assert_equal "bytes #{number}", socket.readpartial(100) }
      sockets.each(&:close)
    end
  end

  def test_machine_line_server
    with_server("machine_line_server.rb") do |port|
      sockets = Array.new(20) { TCPSocket.new("127.0.0.1", port) }
      sockets.each_with_index { |socket, number| socket.write("line #{number}\nnext\n") }
      sockets.each_with_index { |socket, number| assert_equal ["You said: line #{number}\n", "You said: next\n"], [socket.gets, socket.gets] }
      sockets.each(&:close)
    end
  end

  # A server that ends, and well, when it is told to.
  def with_server(example)
    IO.popen(command(example, "0")) do |server|
      yield Integer(server.gets[/\d+$/])
      Process.kill(:TERM, server.pid)
    end
    assert_predicate $?, :success?
  end

  def test_machine_fibers
    lines = run_example("machine_fibers.rb").lines(chomp: true)
    assert_equal [*(1..5).map { |count| "#{count} Mississippi" }, "5 lines", "too slow", "cancelled"], lines - [""]
  end

  def test_machine_queue
    assert_equal "sum: 5050\n", run_example("machine_queue.rb")
  end

  def test_machine_redis
    Dir.mktmpdir do |folder|
      path = File.join(folder, "redis.sock")
      server = Process.spawn("redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder, out: File::NULL)
      Thread.pass until File.socket?(path)
      lines = run_example("machine_redis.rb", path).lines(chomp: true)
      assert_equal [*Array.new(10) { |number| "value #{number}" }, "counter: 100"], lines
    ensure
      Process.kill(:TERM, server)
      Process.wait(server)
    end
  end

  def test_prometheus
    IO.popen(command("prometheus.rb")) do |server|
      port = Integer(server.gets[/\d+/])
      get = lambda do |path|
        TCPSocket.open("127.0.0.1", port) do |socket|
          socket.write("GET #{path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
          socket.read.split("\r\n\r\n", 2)
        end
      end
      head, body = get.call("/metrics")
      assert_match(%r{\AHTTP/1\.1 200 OK\r\n}, head)
      names = body.lines.grep_v(/\A#/).map { |line| line[/\A(uringmachine_\w+)(\{kind="\w+"\})? -?\d+(\.\d+(e-?\d+)?)?$/, 1] or flunk(line) }
      assert_empty %w[uringmachine_fibers uringmachine_switches_total uringmachine_utilization uringmachine_stalls_total] - names
      assert_empty names - body.scan(/^# TYPE (\w+) (?:counter|gauge)$/).flatten
      assert_match(/404/, get.call("/").first)
    ensure
      Process.kill(:TERM, server.pid)
    end
  end

  def test_open_telemetry
    server = TCPServer.new("127.0.0.1", 0)
    bodies = Thread.new do
      Array.new(2) do
        socket = server.accept
        head = socket.gets("\r\n\r\n")
        JSON.parse(socket.read(Integer(head[/content-length: (\d+)/i, 1])))
      ensure
        socket&.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        socket&.close
      end
    end
    output = run_example("open_telemetry.rb", "http://127.0.0.1:#{server.addr[1]}/v1/metrics", "0.001", "2")
    assert_equal "sent: 200\nsent: 200\n", output
    metrics = bodies.value.last.dig("resourceMetrics", 0, "scopeMetrics", 0, "metrics")
    kinds = metrics.to_h { |metric| [metric["name"], metric.keys.last] }
    assert_equal %w[gauge sum], kinds.values_at("uringmachine.fibers", "uringmachine.operations")
    points = metrics.find { |metric| metric["name"] == "uringmachine.operations" }.dig("sum", "dataPoints")
    assert_includes points.map { |point| point.dig("attributes", 0, "value", "stringValue") }, "poll"
  ensure
    server&.close
  end

  # A supervisor of commands, or of servers: ends well, with its workers, when it is told to.
  def supervise(example, *arguments)
    rest = IO.popen(command(example, *arguments)) do |supervisor|
      begin
        yield supervisor
      ensure
        # What fails is told, not waited for: Ruby waits for the child.
        Process.kill(:TERM, supervisor.pid)
      end
      supervisor.read
    end
    assert_predicate $?, :success?
    rest
  end

  # Reads lines until one matches; returns the match.
  def await_line(io, pattern)
    while (line = io.gets)
      match = pattern.match(line)
      return match if match
    end
    flunk "no #{pattern.inspect}"
  end

  def test_supervisor_starts_anew_what_crashes_at_growing_intervals
    supervise("supervisor.rb", "--workers=1", "exit 3") do |supervisor|
      delays = Array.new(3) { Float(await_line(supervisor, /ended by status 3, starts anew in (\S+) s/)[1]) }
      assert_equal [0.1, 0.2, 0.4], delays
    end
  end

  def test_supervisor_starts_anew_what_was_killed_and_stops_what_is_well
    rest = supervise("supervisor.rb", "--workers=2", "exec sleep 1000") do |supervisor|
      pids = Array.new(2) { Integer(await_line(supervisor, /started as (\d+)/)[1]) }
      Process.kill(:KILL, pids.first)
      assert await_line(supervisor, /ended by SIGKILL, starts anew/)
      pids[0] = Integer(await_line(supervisor, /started as (\d+)/)[1])
      pids.each { |pid| assert Process.kill(0, pid) }
      @pids = pids
    end
    assert_equal 2, rest.scan("ended by SIGTERM\n").size
    @pids.each { |pid| assert_raises(Errno::ESRCH) { Process.kill(0, pid) } }
  end

  def test_supervisor_kills_what_ignores_sigterm
    rest = supervise("supervisor.rb", "--workers=2", "--grace=0.1", "trap '' TERM; echo ignoring; exec sleep 1000") do |supervisor|
      2.times { await_line(supervisor, /ignoring/) }
    end
    assert_equal 2, rest.scan("does not end: killed\n").size
    assert_equal 2, rest.scan("ended by SIGKILL\n").size
  end

  # What a worker answers to one line, on a connection of its own.
  def ask(port)
    TCPSocket.open("127.0.0.1", port) do |socket|
      socket.puts "hello"
      socket.gets
    end
  end

  # Every connection is answered: none is open when a worker is killed.
  def answers_until_all_were_heard(port, count)
    heard = []
    until heard.size == count
      answer = ask(port)
      assert_match(/\Aworker \d: hello\n\z/, answer)
      heard |= [answer]
    end
  end

  def check_server(example, ready)
    supervise(example, "2", "0") do |supervisor|
      port = Integer(supervisor.gets[/\d+$/])
      pids = {}
      readies = 0
      loop do
        match = await_line(supervisor, /worker (\d) (?:started as (\d+)|(listens))/)
        pids[match[1]] = Integer(match[2]) if match[2]
        readies += 1 if match[0].match?(ready)
        break if readies == 2 && pids.size == 2
      end
      answers_until_all_were_heard(port, 2)
      Process.kill(:KILL, pids["0"])
      assert await_line(supervisor, /worker 0 ended by SIGKILL/)
      assert await_line(supervisor, /worker 0 .*#{ready}/)
      # The kernel may take a killed worker's ring, and the listening socket that an accept in it holds, down after the
      # worker is gone, in a thread of its own (io_ring_exit_work): a connection that was for that socket is reset.
      begin
        answers_until_all_were_heard(port, 2)
      rescue Errno::ECONNRESET
        retry
      end
    end
  end

  def test_prefork_server
    check_server("prefork_server.rb", /started/)
  end

  def test_reuse_port_server
    check_server("reuse_port_server.rb", /listens/)
  end

  private

  def command(example, *arguments)
    [RbConfig.ruby, "-W:no-experimental", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, File.join(EXAMPLES, example), *arguments]
  end

  def run_example(example, *arguments)
    output = IO.popen(command(example, *arguments), &:read)
    assert_predicate $?, :success?, output
    output
  end
end
