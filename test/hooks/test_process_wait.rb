# frozen_string_literal: true

require_relative "../test_helper"

# Waiting for children leaves other fibers running.
class TestProcess < SchedulerTest
  def test_system_backticks_and_popen_leave_other_fibers_running
    gate, opener = IO.pipe
    outcome = []
    scheduled do
      # Each child ends only when another fiber lets it.
      Fiber.schedule { outcome << system("read line; true", in: gate) }
      Fiber.schedule do
        sleep 0
        opener.puts
      end
    end
    assert_equal [true], outcome
    assert_equal("out\n", in_fiber { `echo out` })
    assert_equal("written\n", in_fiber { IO.popen(["cat"], "r+") { |io| (io << "written\n").close_write; io.read } })
  end

  def test_the_status_says_how_the_child_ended
    in_fiber do
      refute system("exit 3")
      assert_equal 3, $?.exitstatus
      pid = spawn("kill -TERM $$")
      _, status = Process.wait2(pid)
      assert_equal Signal.list["TERM"], status.termsig
      assert_equal pid, status.pid
    end
  end

  def test_any_child_and_groups_are_waited_for
    in_fiber do
      pids = Array.new(3) { spawn("true") }
      assert_equal pids.sort, Array.new(3) { Process.wait(-1) }.sort
      pid = spawn("true", pgroup: true)
      assert_equal pid, Process.wait(-pid)
      pid = spawn("true")
      assert_equal pid, Process.wait(0)
    end
  end

  def test_a_stopped_child_is_seen_with_wuntraced
    in_fiber do
      pid = spawn("kill -STOP $$; exit 4")
      _, status = Process.wait2(pid, Process::WUNTRACED)
      assert_predicate status, :stopped?
      Process.kill(:CONT, pid)
      _, status = Process.wait2(pid)
      assert_equal 4, status.exitstatus
    end
  end

  def test_no_child_raises_what_plain_ruby_raises
    in_fiber do
      assert_raises(Errno::ECHILD) { Process.wait }
      assert_raises(Errno::ECHILD) { Process.wait(1) }
      assert_nil Process.wait(spawn("sleep 0.05").tap { |pid| @pid = pid }, Process::WNOHANG)
      Process.wait(@pid)
    end
  end

  def test_detach_hands_over_the_status
    assert_equal(5, in_fiber { Process.detach(spawn("exit 5")).value.exitstatus })
  end

  def test_many_children_at_once
    statuses = []
    scheduled do
      30.times { |number| Fiber.schedule { statuses << Process.wait2(spawn("exit #{number}")).last.exitstatus } }
    end
    assert_equal (0...30).to_a, statuses.sort
  end

  def test_a_timeout_ends_the_wait_and_the_child_can_be_waited_for_again
    in_fiber do
      reader, writer = IO.pipe
      pid = spawn("read line; true", in: reader)
      assert_raises(Timeout::Error) { Timeout.timeout(0.005) { Process.wait(pid) } }
      writer.puts
      assert_equal pid, Process.wait(pid)
    end
  end
end
