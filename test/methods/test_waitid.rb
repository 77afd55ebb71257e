# frozen_string_literal: true

require_relative "../test_helper"

# waitid and its kin, and pidfds.
class TestMachineWaitid < MachineTest
  class TooLate < StandardError; end

  # bits/waitflags.h, asm-generic/siginfo.h
  P_ALL = 0

  P_PID = 1
  P_PGID = 2
  P_PIDFD = 3
  WNOHANG = 1
  WSTOPPED = 2
  WEXITED = 4
  WCONTINUED = 8
  WNOWAIT = 0x1000000
  CLD_EXITED = 1
  CLD_KILLED = 2
  CLD_STOPPED = 5
  TOO_LARGE = [1 << 40, 1 << 80].freeze

  def setup
    super
    @children = []
  end

  def teardown
    @children.each do |pid|
      Process.kill(:KILL, pid)
      Process.wait(pid)
    rescue Errno::ESRCH, Errno::ECHILD
      # The test has waited for it.
    end
    super
  end

  # A child that ends with a status when `release` is called, or by a signal.
  def child(status = 0, **options)
    reader, @release = IO.pipe
    pid = Process.spawn(RbConfig.ruby, "--disable=gems", "-e", "STDIN.read; exit #{status}", in: reader, **options)
    reader.close
    @children << pid
    pid
  end

  def release
    @release.close
  end

  # Yields a machine that waits by the ring, and one that waits by a thread.
  def both
    yield machine
    ENV["UM_MASK"] = "waitid"
    begin
      yield UM.new
    ensure
      ENV.delete("UM_MASK")
    end
  end

  def assert_reaped(pid)
    assert_raises(Errno::ECHILD) { Process.wait(pid, Process::WNOHANG) }
  end

  def test_waitid_tells_who_how_and_why
    both do |machine|
      pid = child(42)
      release
      assert_equal [pid, 42, CLD_EXITED], machine.waitid(P_PID, pid, WEXITED)
      assert_reaped(pid)
      pid = child
      Process.kill(:KILL, pid)
      assert_equal [pid, 9, CLD_KILLED], machine.waitid(P_PID, pid, WEXITED)
      assert_reaped(pid)
    end
  end

  def test_other_fibers_run_while_one_waits_for_a_child
    both do |machine|
      pid = child(3)
      fiber = machine.spin { machine.waitid(P_PID, pid, WEXITED) }
      5.times { machine.sleep(0.001) }
      refute fiber.done?
      release
      assert_equal [pid, 3, CLD_EXITED], machine.join(fiber)
    end
  end

  def test_waitid_for_a_group_a_descriptor_and_anybody
    both do |machine|
      pid = child(1, pgroup: true)
      release
      assert_equal [pid, 1, CLD_EXITED], machine.waitid(P_PGID, pid, WEXITED)
      pid = child(2)
      fd = opened(UM.pidfd_open(pid))
      fiber = machine.spin { machine.waitid(P_PIDFD, fd, WEXITED) }
      machine.snooze
      release
      assert_equal [pid, 2, CLD_EXITED], machine.join(fiber)
      pid = child(3)
      release
      assert_equal [pid, 3, CLD_EXITED], machine.waitid(P_ALL, 0, WEXITED)
    end
  end

  def test_waitid_of_a_stop_and_without_taking_or_waiting
    pid = child(5)
    assert_equal [0, 0, 0], machine.waitid(P_PID, pid, WEXITED | WNOHANG)
    assert_nil machine.waitid_status(P_PID, pid, WEXITED | WNOHANG)
    Process.kill(:STOP, pid)
    assert_equal [pid, 19, CLD_STOPPED], machine.waitid(P_PID, pid, WSTOPPED)
    Process.kill(:CONT, pid)
    assert_equal pid, machine.waitid(P_PID, pid, WCONTINUED).first
    release
    2.times { assert_equal [pid, 5, CLD_EXITED], machine.waitid(P_PID, pid, WEXITED | WNOWAIT) }
    assert_equal [pid, 5, CLD_EXITED], machine.waitid(P_PID, pid, WEXITED | WNOHANG)
  end

  def test_a_wait_for_a_child_that_was_ended_loses_no_child
    both do |machine|
      pid = child(7)
      %i[waitid waitid_status].each do |method|
        assert_raises(TooLate) { machine.timeout(0.01, TooLate) { machine.public_send(method, P_PID, pid, WEXITED) } }
      end
      fiber = machine.spin do
        machine.waitid(P_PID, pid, WEXITED)
      rescue TooLate
        :ended
      end
      machine.snooze
      release
      IO.select(nil, nil, nil, 0) until File.read("/proc/#{pid}/stat").include?(") Z ")
      machine.schedule(fiber, TooLate.new)
      told = machine.join(fiber)
      told = machine.waitid(P_PID, pid, WEXITED) if told == :ended
      assert_equal [pid, 7, CLD_EXITED], told
    end
  end

  def test_any_number_of_fibers_may_wait_for_anybody
    both do |machine|
      pids = Array.new(3) { |status| child(status).tap { release } }
      fibers = pids.map { machine.spin { machine.waitid(P_ALL, 0, WEXITED) } }
      assert_equal pids.sort, machine.join(fibers).map(&:first).sort
      assert_raises(Errno::ECHILD) { machine.waitid(P_ALL, 0, WEXITED) }
    end
  end

  def test_waitid_status_of_an_exit_and_of_a_signal
    both do |machine|
      pid = child(42)
      release
      status = machine.waitid_status(P_PID, pid, WEXITED)
      assert_kind_of Process::Status, status
      assert_equal [pid, 42, true, false], [status.pid, status.exitstatus, status.exited?, status.signaled?]
      assert_reaped(pid)
      pid = child
      fiber = machine.spin { machine.waitid_status(P_ALL, 0, WEXITED) }
      machine.snooze
      Process.kill(:KILL, pid)
      status = machine.join(fiber)
      assert_equal [pid, nil, 9, true], [status.pid, status.exitstatus, status.termsig, status.signaled?]
      assert_reaped(pid)
    end
  end

  def test_waitid_status_of_a_stop
    pid = child
    Process.kill(:STOP, pid)
    status = machine.waitid_status(P_PID, pid, WSTOPPED)
    assert_equal [pid, true, 19], [status.pid, status.stopped?, status.stopsig]
  end

  def test_there_is_no_status_of_what_is_not_taken
    assert_names("options", ArgumentError) { machine.waitid_status(P_PID, child, WEXITED | WNOWAIT) }
  end

  def test_bad_waits
    %i[waitid waitid_status].each do |method|
      both do |machine|
        assert_raises(Errno::ECHILD) { machine.public_send(method, P_PID, Process.pid, WEXITED) }
        assert_raises(Errno::EINVAL) { machine.public_send(method, 1234, 0, WEXITED) }
        assert_raises(Errno::EINVAL) { machine.public_send(method, P_ALL, 0, 1234) }
        assert_raises(Errno::EBADF) { machine.public_send(method, P_PIDFD, 9999, WEXITED) }
      end
      valid = { idtype: P_ALL, id: 0, options: WEXITED | WNOHANG }
      valid.each_key do |name|
        assert_names(name.to_s, TypeError) { machine.public_send(method, *valid.merge(name => "1").values) }
        TOO_LARGE.each { |number| assert_names(name.to_s, ArgumentError) { machine.public_send(method, *valid.merge(name => number).values) } }
      end
      assert_names("id", ArgumentError) { machine.public_send(method, P_PID, -1, WEXITED) }
      assert_raises(ArgumentError) { machine.public_send(method) }
    end
  end

  def test_pidfds
    pid = child
    fd = opened(UM.pidfd_open(pid))
    assert IO.for_fd(fd, autoclose: false).close_on_exec?
    assert_equal fd, UM.pidfd_send_signal(fd, 0)
    assert_equal fd, UM.pidfd_send_signal(fd, 9, 0)
    assert_equal [pid, 9, CLD_KILLED], machine.waitid(P_PIDFD, fd, WEXITED)
    assert_raises(Errno::ESRCH) { UM.pidfd_send_signal(fd, 0) }
    assert_raises(Errno::ESRCH) { UM.pidfd_open(pid) }
  end

  def test_bad_pidfds
    assert_raises(Errno::EINVAL) { UM.pidfd_open(-1) }
    assert_names("pid", TypeError) { UM.pidfd_open("1") }
    assert_raises(Errno::EBADF) { UM.pidfd_send_signal(9999, 0) }
    assert_raises(Errno::EINVAL) { UM.pidfd_send_signal(opened(UM.pidfd_open(Process.pid)), 1000) }
    assert_names("fd", TypeError) { UM.pidfd_send_signal("1", 0) }
    assert_names("sig", TypeError) { UM.pidfd_send_signal(1, :TERM) }
    assert_names("flags", TypeError) { UM.pidfd_send_signal(1, 0, "0") }
    TOO_LARGE.each do |number|
      assert_names("pid", ArgumentError) { UM.pidfd_open(number) }
      assert_names("fd", ArgumentError) { UM.pidfd_send_signal(number, 0) }
      assert_names("sig", ArgumentError) { UM.pidfd_send_signal(0, number) }
      assert_names("flags", ArgumentError) { UM.pidfd_send_signal(0, 0, number) }
    end
  end

  def test_a_subreaper_gets_the_children_of_its_children
    output, = ruby(<<~RUBY)
      p UM.pr_set_child_subreaper(true)
      reader, writer = UM.pipe
      parent = fork { fork { UM.new.read(reader, +"", 1) } }
      machine = UM.new
      machine.waitid(#{P_PID}, parent, #{WEXITED})
      machine.write(writer, "x")
      p machine.waitid(#{P_ALL}, 0, #{WEXITED}).last
      p UM.pr_set_child_subreaper(false)
    RUBY
    assert_equal "true\n#{CLD_EXITED}\nfalse\n", output
    ["true", nil, 1].each { |value| assert_names("value", TypeError) { UM.pr_set_child_subreaper(value) } }
    assert_raises(ArgumentError) { UM.pr_set_child_subreaper }
  end
end
