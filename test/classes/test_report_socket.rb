# frozen_string_literal: true

require_relative "../test_helper"
require "json"
require "stringio"
require "uringmachine/command"

# Reports over a UNIX socket, and the command that asks for them.
class TestReportSocket < PatientTest
  # A program that listens, in a folder of its own; it has said its pid when a fiber of it waits.
  PROGRAM = <<~RUBY
    reader, = IO.pipe
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule { reader.gets }
    Fiber.schedule { sleep 0; $stdout.sync = true; puts "waits" }
  RUBY

  def setup
    super
    @folder = Dir.mktmpdir
    @before = ENV.fetch("XDG_RUNTIME_DIR", nil)
    ENV["XDG_RUNTIME_DIR"] = @folder
  end

  def teardown
    ENV["XDG_RUNTIME_DIR"] = @before
    FileUtils.rm_rf(@folder)
    super
  end

  def with_program(code = PROGRAM, env: { "UM_REPORTS" => "1" })
    IO.popen([env, *ruby_command(code)]) do |program|
      assert_equal "waits\n", program.gets
      yield program.pid
    ensure
      Process.kill(:TERM, program.pid)
    end
  end

  def test_a_process_that_listens_is_asked
    with_program do |pid|
      status, output, errors = run_command("report", pid.to_s)
      assert_equal [0, ""], [status, errors]
      assert_match(/\Amachine of .* pid #{pid}, /, output)
      assert_match(/is waiting for (poll|read) on fd \d+ \(pipe:/, output)
      _, output, = run_command("report", pid.to_s, "--json", "--frames", "1")
      fibers = JSON.parse(output, symbolize_names: true).first[:fibers]
      assert_equal [1], fibers.map { |fiber| fiber[:backtrace].size }.uniq
      assert_equal [pid], UM::Report.of(pid).map { |report| report.to_h[:pid] }
    end
  end

  def test_top_counts_fibers_by_what_they_wait_for_until_the_process_ends
    with_program do |pid|
      status, output, = run_command("top", pid.to_s, "--times", "2", "--interval", "0.001")
      assert_equal 0, status
      assert_equal 2, output.scan(/^machine of .* pid #{pid}, /).size
      assert_equal 2, output.scan(/^ +1 +waiting +io_read +-e:3:in 'IO#gets'$/).size
    end
    assert_equal 2, run_command("top", "1", "--interval", "-1").first
  end

  def test_the_socket_is_the_users_own_and_goes_with_its_process
    with_program do |pid|
      path = File.join(@folder, "uringmachine-#{pid}.sock")
      assert_equal 0o600, File.stat(path).mode & 0o777
      assert_equal [File.basename(path)], Dir.children(@folder)
    end
    assert_empty Dir.children(@folder)
  end

  def test_a_child_has_none_and_leaves_its_parents
    output, status = ruby(<<~RUBY)
      path = UM.listen_for_reports
      p UM.listen_for_reports == path
      Process.wait(fork { exit })
      p File.socket?(path)
      Process.wait(fork { p UM.listen_for_reports == path })
      p UM::Report.of(Process.pid)
    RUBY
    assert_predicate status, :success?, output
    assert_equal %w[true true false []], output.lines(chomp: true)
    assert_empty Dir.children(@folder)
  end

  def test_a_peer_that_says_nothing_or_goes_holds_up_nobody_for_long
    with_program do |pid|
      path = File.join(@folder, "uringmachine-#{pid}.sock")
      UNIXSocket.open(path, &:close)
      UNIXSocket.open(path) do |silent|
        assert_equal 0, run_command("report", pid.to_s).first
        silent.close
      end
    end
  end

  def test_a_process_that_does_not_listen
    status, output, errors = run_command("report", Process.pid.to_s)
    assert_equal [2, ""], [status, output]
    assert_match(/process #{Process.pid} listens for no reports.*UM_REPORTS=1/, errors)
    [[], ["x"], %w[1 2]].each { |arguments| assert_match(/PID/, run_command("report", *arguments)[2]) }
  end
end
