# frozen_string_literal: true

require_relative "test_helper"
require "tmpdir"

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
