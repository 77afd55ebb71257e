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
