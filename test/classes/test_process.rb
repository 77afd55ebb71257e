# frozen_string_literal: true

require_relative "../test_helper"

# UM::Process: processes by descriptor, on a machine and under the scheduler.
class TestMachineProcess < MachineTest
  def setup
    super
    @children = []
  end

  def teardown
    @children.each do |process|
      process.kill(:KILL).wait unless process.closed? || !process.alive?
      process.close
    end
    super
  end

  # A child that does what it is told by its stdin, line by line; `yield`s the writer.
  def child(code = "", **options)
    reader, @teller = IO.pipe
    # It ends when its stdin does.
    (@tellers ||= []) << @teller
    code = "#{code}; STDOUT.puts :ready; STDOUT.flush; while line = STDIN.gets; eval(line); end"
    told, writer = IO.pipe
    process = UM::Process.spawn(RbConfig.ruby, "--disable=gems", "-e", code, in: reader, out: writer, machine:, **options)
    [reader, writer].each(&:close)
    assert_equal "ready\n", told.gets
    told.close
    @children << process
    process
  end

  def tell(line)
    @teller.puts line
  end

  # Runs the block with a machine's own fibers, and then in a fiber of a scheduler.
  def everywhere
    yield machine
    Thread.new do
      Fiber.set_scheduler(scheduler = UM::FiberScheduler.new)
      scheduler.abort_on_exception = true
      Fiber.schedule do
        @machine = scheduler.machine
        yield scheduler
      end
    end.join
  ensure
    @machine = UM.new
  end

  def test_a_child_is_waited_for_by_its_status
    everywhere do
      process = child
      tell "exit 42"
      status = process.wait
      assert_kind_of Process::Status, status
      assert_equal [process.pid, 42, true], [status.pid, status.exitstatus, status.exited?]
      assert_same status, process.wait
      assert_same status, process.wait(timeout: 0)
      assert_raises(Errno::ECHILD) { Process.wait(process.pid) }
      process = child
      assert_same process, process.kill(:KILL)
      assert_equal [nil, 9], [process.wait.exitstatus, process.wait.termsig]
    end
  end

  def test_a_wait_leaves_the_last_status_alone
    Process.wait(Process.spawn("exit 7"))
    assert_equal 0, UM::Process.spawn("exit 0", machine:).wait.exitstatus
    assert_equal 7, $?.exitstatus
  end

  def test_other_fibers_run_while_one_waits
    process = child
    fiber = machine.spin { process.wait }
    5.times { machine.sleep(0.001) }
    refute fiber.done?
    tell "exit"
    assert_predicate machine.join(fiber), :success?
  end

  def test_other_fibers_of_the_scheduler_run_while_one_waits
    order = []
    Thread.new do
      Fiber.set_scheduler(scheduler = UM::FiberScheduler.new)
      @machine = scheduler.machine
      process = child
      Fiber.schedule { order << process.wait.exitstatus }
      Fiber.schedule do
        3.times { |turn| order << turn if sleep(0.001) }
        tell "exit 9"
      end
    end.join
    assert_equal [0, 1, 2, 9], order
  end

  def test_a_wait_ends_when_its_time_is_up
    everywhere do
      process = child
      assert_nil process.wait(timeout: 0)
      assert_nil process.wait(timeout: 0.01)
      assert_predicate process, :alive?
      tell "exit 3"
      assert_equal 3, process.wait(timeout: 1000).exitstatus
    end
  end

  def test_a_wait_may_be_for_ever
    everywhere do
      [Float::INFINITY, 1e30, 10**30, Rational(10**40, 3)].each do |timeout|
        process = child
        fiber = machine.spin { process.wait(timeout:) }
        2.times { machine.snooze }
        refute fiber.done?
        tell "exit 3"
        assert_equal 3, process.wait(timeout:).exitstatus
        assert_equal 3, machine.join(fiber).exitstatus
      end
    end
  end

  def test_any_number_of_fibers_and_threads_wait_for_one_process
    process = child
    fibers = Array.new(10) { machine.spin { process.wait } }
    threads = Array.new(3) { Thread.new { process.wait } }
    machine.snooze
    tell "exit 5"
    statuses = machine.join(fibers) + threads.map(&:value)
    assert_equal 1, statuses.uniq(&:object_id).size
    assert_equal 5, statuses.first.exitstatus
  end

  def test_it_is_alive_until_it_has_ended_reaped_or_not
    process = child
    assert_predicate process, :alive?
    assert_match(/#{process.pid} alive/, process.inspect)
    process.kill(:KILL)
    machine.poll(process.fileno, UM::POLLIN)
    refute_predicate process, :alive?
    assert_raises(Errno::ESRCH) { process.kill(0) }
    assert_match(/ended/, process.inspect)
    process.wait
    refute_predicate process, :alive?
    assert_raises(Errno::ESRCH) { process.kill(:TERM) }
  end

  def test_signals_by_number_and_by_name
    [15, "TERM", "SIGTERM", :TERM, :SIGTERM].each do |signal|
      process = child
      assert_same process, process.kill(0)
      assert_equal 15, process.kill(signal).wait.termsig
    end
    process = child
    %i[FOO sigterm SIGSIGTERM].each { |signal| assert_names("signal", ArgumentError) { process.kill(signal) } }
    assert_names("signal", ArgumentError) { process.kill(-15) }
    assert_raises(Errno::EINVAL) { process.kill(1000) }
    [nil, 1.5].each { |signal| assert_names("signal", TypeError) { process.kill(signal) } }
  end

  # Runs the block as the handler of a signal that is sent once `yield`ed.
  def handling(handler)
    before = trap(:USR1, &handler)
    yield -> { Process.kill(:USR1, Process.pid) }
  ensure
    trap(:USR1, before)
  end

  def test_a_signals_handler_may_use_it
    everywhere do
      process = child
      told = Thread::Queue.new
      handler = proc do
        told << [process.alive?, process.closed?, process.wait(timeout: 0), process.kill(:TERM).equal?(process)]
        told << process.wait.termsig << process.alive?
        told << process.close << process.closed?
      rescue StandardError => e
        told << e
      end
      handling(handler) do |send|
        send.call
        assert_equal [[true, false, nil, true], 15, false, nil, true], Array.new(5) { told.pop }
      end
    end
  end

  def test_a_signals_handler_may_use_it_in_the_middle_of_a_wait
    process = child
    handling(proc { process.kill(:TERM) && process.close }) do |send|
      machine.spin { send.call }
      assert_equal 15, process.wait.termsig
    end
    assert_predicate process, :closed?
  end

  def test_a_descriptor_that_is_anothers_by_now_is_never_signalled
    innocent = child
    target = child("trap(:TERM, 'IGNORE')")
    300.times do
      process = machine.process_open(target.pid)
      killer = Thread.new { process.kill(:TERM) rescue $!.class }
      process.close
      same_number = machine.process_open(innocent.pid)
      assert_includes [process, UM::Error], killer.value
      assert_raises(UM::Error) { process.kill(:TERM) }
      same_number.close
    end
    assert_predicate innocent, :alive?
    assert_predicate target, :alive?
  end

  def test_it_is_not_copied
    process = child
    %i[dup clone].each { |copy| assert_raises(TypeError) { process.public_send(copy) } }
    assert_raises(UM::Error) { process.__send__(:initialize, Process.pid) }
    assert_predicate process, :alive?
  end

  def test_a_process_that_is_no_child
    # A grandchild, which its parent reaps at our word.
    reader, writer = IO.pipe
    word, told = IO.pipe
    parent = Process.spawn(RbConfig.ruby, "--disable=gems", "-e", <<~RUBY, out: writer, in: word)
      pid = spawn("exec sleep 1000", in: :close, out: :close)
      puts pid
      STDOUT.close
      Process.wait(pid)
    RUBY
    [writer, word].each(&:close)
    process = machine.process_open(Integer(reader.gets))
    assert_nil process.wait(timeout: 0)
    assert_predicate process, :alive?
    fiber = machine.spin { process.wait }
    machine.snooze
    process.kill(:TERM)
    assert_equal true, machine.join(fiber)
    assert_equal true, process.wait
    refute_predicate process, :alive?
    [reader, told].each(&:close)
    Process.wait(parent)
  end

  def test_a_child_that_somebody_else_has_reaped
    process = child
    tell "exit 6"
    Process.wait(process.pid)
    assert_equal 6, $?.exitstatus
    assert_equal true, process.wait
    assert_equal true, process.wait
    # And one that is reaped while it is waited for.
    process = child
    detached = Process.detach(process.pid)
    tell "exit 8"
    told = process.wait
    assert_includes [true, 8], told == true || told.exitstatus
    assert_equal 8, detached.value.exitstatus if told == true
  end

  def test_children_that_nobody_has_to_reap
    output, = ruby(<<~RUBY)
      trap(:CHLD, "IGNORE")
      p UM::Process.spawn("exit 3").wait
    RUBY
    assert_equal "true\n", output
  end

  def test_a_child_that_has_ended_and_been_reaped_before_it_is_opened
    output, status = ruby(<<~RUBY)
      trap(:CHLD, "IGNORE")
      pid = Process.spawn("exit 3")
      begin
        loop { Process.kill(0, pid) && Thread.pass }
      rescue Errno::ESRCH
        # It is gone.
      end
      machine = UM.new
      process = UM::Process.__send__(:open_child, pid, machine)
      p process.pid == pid, process.wait, process.wait(timeout: 1), process.alive?, process.close
      p((process.kill(:KILL) rescue $!.class), process.inspect.include?("ended"))
      process.on_exit { p :exit }
      machine.snooze
    RUBY
    assert_equal "true\ntrue\ntrue\nfalse\nnil\nErrno::ESRCH\ntrue\n:exit\n", output
    assert_predicate status, :success?
  end

  def test_blocks_run_when_it_ends_in_their_order
    everywhere do |opener|
      process = opener.process_open(child.pid)
      ended = []
      queue = Thread::Queue.new
      %w[first second].each do |name|
        returned = process.on_exit do |same|
          ended << [name, same.equal?(process), same.wait.exitstatus]
          queue << name
          # What ends one block harms no other.
          raise UM::Terminate if opener.equal?(@machine)
        end
        assert_same process, returned
      end
      tell "exit 4"
      opener.equal?(machine) ? eventually { ended.size == 2 } : 2.times { queue.pop }
      assert_equal [["first", true, 4], ["second", true, 4]], ended
      process.on_exit { queue << "late" }
      opener.equal?(machine) ? eventually { !queue.empty? && queue.pop == "late" } : assert_equal("late", queue.pop)
      process.close
    end
  end

  def test_a_block_runs_although_the_process_was_closed
    process = child
    statuses = []
    process.on_exit { statuses << process.wait.exitstatus }
    process.close
    tell "exit 2"
    eventually { statuses.any? }
    assert_equal [2], statuses
    assert_raises(Errno::ECHILD) { Process.wait(process.pid) }
  end

  def test_blocks_are_for_the_machines_own_thread
    process = child
    machine.snooze
    error = Thread.new { assert_raises(UM::Error) { process.on_exit { flunk } } }.value
    assert_match(/another thread/, error.message)
    assert_raises(ArgumentError) { process.on_exit }
  end

  def test_closed
    before = settled_descriptors
    process = UM::Process.spawn("exit 0", machine:)
    refute_predicate process, :closed?
    assert_predicate IO.for_fd(process.fileno, autoclose: false), :close_on_exec?
    2.times { assert_nil process.close }
    assert_predicate process, :closed?
    assert_operator open_descriptors, :<=, before
    [-> { process.fileno }, -> { process.alive? }, -> { process.kill(0) }, -> { process.wait }, -> { process.on_exit {} }].each do |use|
      assert_match(/closed/, assert_raises(UM::Error, &use).message)
    end
    assert_match(/closed/, process.inspect)
    Process.wait(process.pid)
  end

  def test_who_waits_already_is_not_disturbed_by_a_close
    process = child
    fiber = machine.spin { process.wait }
    machine.snooze
    process.close
    tell "exit 1"
    assert_equal 1, machine.join(fiber).exitstatus
    assert_equal 1, process.wait.exitstatus
    refute_predicate process, :alive?
  end

  def test_the_block_form_closes
    before = settled_descriptors
    pid = Process.spawn("exit 3")
    everyone = []
    assert_equal(3, machine.process_open(pid) { |process| (everyone << process) && process.wait.exitstatus })
    assert_raises(RuntimeError) { machine.process_open(Process.pid) { |process| (everyone << process) && raise } }
    assert everyone.all?(&:closed?)
    assert_operator open_descriptors, :<=, before
  end

  def test_what_is_forgotten_is_closed_by_the_collector
    before = settled_descriptors
    20.times { Array.new(20) { machine.process_open(Process.pid) } && GC.start }
    assert_operator open_descriptors, :<, before + 200
  end

  def test_spawn_takes_what_process_spawn_takes
    reader, writer = IO.pipe
    process = UM::Process.spawn({ "UM_WORD" => "hello" }, "echo $UM_WORD; echo error >&2", %i[out err] => writer, unsetenv_others: false, machine:)
    writer.close
    assert_equal "hello\nerror\n", reader.read
    assert_predicate process.wait, :success?
    assert_raises(Errno::ENOENT) { UM::Process.spawn("/no/such/program", machine:) }
    assert_raises(ArgumentError) { UM::Process.spawn("true", nonsense: 1, machine:) }
  end

  def test_fork_runs_its_block_and_ends
    everywhere do
      reader, writer = IO.pipe
      process = UM::Process.fork do
        writer.write(Fiber.scheduler.inspect)
        exit!(3)
      end
      writer.close
      assert_equal "nil", reader.read
      assert_equal 3, process.wait.exitstatus
    end
    assert_raises(ArgumentError) { UM::Process.fork }
  end

  def test_without_a_machine_the_schedulers_or_the_threads_is_taken
    Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      order = []
      Fiber.schedule { order << UM::Process.spawn("cat", in: "/dev/zero", out: File::NULL).then { |process| sleep(0) && process.kill(:KILL).wait.termsig } }
      Fiber.schedule { order << 0 }
      Fiber.scheduler.run
      assert_equal [0, 9], order
    end.join
    Thread.new do
      reader, writer = IO.pipe
      process = UM::Process.spawn("cat", in: reader)
      assert_nil process.wait(timeout: 0.001)
      assert_same Thread.current.machine, UM.current
      [reader, writer].each(&:close)
      assert_predicate process.wait, :success?
    end.join
  end

  def test_it_outlives_the_scheduler_it_was_opened_with
    process = nil
    Thread.new do
      scheduler = UM::FiberScheduler.new
      Fiber.set_scheduler(scheduler)
      Fiber.schedule { process = scheduler.process_open(child.pid) }
      Fiber.set_scheduler(nil)
      tell "exit 3"
      assert_equal 3, process.wait.exitstatus
    end.join
  end

  def test_an_exception_ends_a_wait_and_loses_nothing
    process = child
    fiber = machine.spin { process.wait }
    machine.snooze
    machine.schedule(fiber, RuntimeError.new("enough"))
    assert_equal "enough", machine.join(fiber).message
    tell "exit 3"
    assert_equal 3, process.wait.exitstatus
  end

  def test_many_children_at_once
    everywhere do |opener|
      reader, writer = IO.pipe
      processes = Array.new(200) { UM::Process.spawn("cat", in: reader, machine:) }
      reader.close
      ended = 0
      processes.each { |process| process.on_exit { ended += 1 } }
      assert(processes.all? { |process| process.wait(timeout: 0).nil? })
      writer.close
      assert(processes.all? { |process| process.wait.success? })
      opener.equal?(machine) ? eventually { ended == 200 } : (sleep 0 until ended == 200)
      processes.each(&:close)
    end
  end

  # All at once, as far as the limits of this process let there be: half waited for by a machine's own fibers, half by
  # those of its scheduler.
  def test_thousands_of_children_at_once
    output, status = ruby(<<~RUBY)
      _, hard = Process.getrlimit(:NOFILE)
      Process.setrlimit(:NOFILE, hard)
      most = [2000, hard - 100, Process.getrlimit(:NPROC).first / 4, File.read("/proc/sys/kernel/pid_max").to_i / 4].min
      scheduler = UM::FiberScheduler.new
      machine = scheduler.machine
      Fiber.set_scheduler(scheduler)
      Fiber.schedule do
        # They end when this fiber says so.
        reader, writer = IO.pipe
        processes = Array.new(most) { UM::Process.spawn("/bin/cat", in: reader) }
        reader.close
        succeeded = 0
        waiting = processes.each_slice(2).flat_map do |first, second|
          fibers = [machine.spin { succeeded += 1 if first.wait.success? }]
          second ? fibers << Fiber.schedule { succeeded += 1 if second.wait.success? } : fibers
        end
        100.times { sleep(0) }
        puts waiting.count(&:alive?) == most
        writer.close
        sleep(0) while waiting.any?(&:alive?)
        puts succeeded == most
        puts((Process.wait rescue $!.class))
        processes.each(&:close)
        puts Dir.children("/proc/self/fd").size < 50
      end
    RUBY
    assert_equal %w[true true Errno::ECHILD true], output.lines(chomp: true)
    assert_predicate status, :success?
  end

  # In a namespace of process numbers of its own, where the next number can be chosen.
  RECYCLING = <<~RUBY
    machine = UM.new
    process = UM::Process.spawn("exec sleep 1000", machine:)
    Process.kill(:KILL, process.pid)
    Process.wait(process.pid)
    innocent = nil
    # A thread may take the number.
    100.times do
      File.write("/proc/sys/kernel/ns_last_pid", process.pid - 1)
      innocent = Process.spawn("exec sleep 1000")
      break if innocent == process.pid

      Process.kill(:KILL, innocent)
      Process.wait(innocent)
    end
    p innocent == process.pid
    p((process.kill(:KILL) rescue $!.class), process.alive?, process.wait)
    p Process.wait(innocent, Process::WNOHANG)
    Process.kill(:KILL, innocent)
    Process.wait(innocent)
    # What is opened by the number now is the innocent one's heir: nobody.
    p((machine.process_open(innocent) rescue $!.class))
  RUBY

  def test_a_number_that_is_anothers_by_now_is_never_signalled
    namespaces = [%w[unshare --pid --fork], %w[unshare --user --map-root-user --pid --fork]]
    namespaces = namespaces.find { |command| system(*command, "sh", "-c", "echo 100 > /proc/sys/kernel/ns_last_pid", err: File::NULL) }
    if namespaces
      output, = ruby(RECYCLING, before: namespaces)
      assert_equal %w[true Errno::ESRCH false true nil Errno::ESRCH], output.lines(chomp: true)
    end
    # Where there is no such thing: what is signalled and waited for is the descriptor's, whatever the number says.
    innocent = child
    process = child
    tell "exit 3"
    Process.wait(process.pid)
    process.instance_variable_set(:@pid, innocent.pid)
    assert_raises(Errno::ESRCH) { process.kill(:KILL) }
    assert_equal true, process.wait
    assert_predicate innocent, :alive?
  end

  def test_a_wait_needs_no_handler_no_thread_and_no_polling
    process = child
    handler = trap(:CHLD, "DEFAULT")
    state = lambda do
      # SigCgt: the signals that there are handlers for.
      [File.read("/proc/self/status")[/SigCgt:\s+(\h+)/, 1], Thread.list, machine.metrics[:total_ops]]
    end
    # Those of earlier tests may end meanwhile.
    native_threads = -> { Dir.children("/proc/self/task") }
    fiber = machine.spin { process.wait }
    machine.snooze
    before = state.call
    threads = native_threads.call
    waits = machine.metrics[:total_waits]
    machine.sleep(0.3)
    assert_equal before, state.call
    assert_empty native_threads.call - threads
    # The sleep is one; a tick of Ruby's may end a wait too.
    assert_operator machine.metrics[:total_waits] - waits, :<, 10
    tell "exit 3"
    assert_equal 3, machine.join(fiber).exitstatus
    assert_equal "DEFAULT", trap(:CHLD, handler)
    output, = ruby(<<~RUBY)
      told = 0
      handler = proc { told += 1 }
      trap(:CHLD, &handler)
      machine = UM.new
      process = UM::Process.spawn("exit 3", machine:)
      fiber = machine.spin { process.wait }
      p machine.join(fiber).exitstatus
      machine.snooze while told.zero?
      p told, trap(:CHLD, "DEFAULT").equal?(handler)
    RUBY
    assert_equal "3\n1\ntrue\n", output
  end

  def test_bad_arguments
    assert_names("pid", TypeError) { machine.process_open("1") }
    [0, -1, 1 << 40].each { |pid| assert_names("pid", ArgumentError) { machine.process_open(pid) } }
    pid = Process.spawn("true")
    Process.wait(pid)
    assert_raises(Errno::ESRCH) { machine.process_open(pid) }
    process = machine.process_open(Process.pid)
    assert_names("timeout", TypeError) { process.wait(timeout: "1") }
    [-1, -1e300, -Float::INFINITY, -(10**30), Float::NAN].each { |timeout| assert_names("timeout", ArgumentError) { process.wait(timeout:) } }
    assert_names("timeout", TypeError) { process.wait(timeout: Complex(1, 1)) }
    process.close
  end

  def test_a_child_that_cannot_be_opened_is_killed
    output, = ruby(<<~RUBY)
      limit = Dir.children("/proc/self/fd").size + 60
      Process.setrlimit(:NOFILE, limit)
      machine = UM.new.tap { |made| made.sleep(0) }
      files = []
      begin
        loop { files << File.open("/dev/null") }
      rescue Errno::EMFILE
        # As full as it gets; a spawn needs two.
        files.pop(2).each(&:close)
      end
      def UM.pidfd_open(pid) = raise(Errno::EMFILE)
      begin
        UM::Process.spawn("exec sleep 1000", machine:)
      rescue Errno::EMFILE => e
        puts e.class
      end
      files.each(&:close)
      Thread.list.each { |thread| thread.join if thread != Thread.current }
      begin
        Process.wait
      rescue Errno::ECHILD => e
        puts e.class
      end
    RUBY
    assert_equal "Errno::EMFILE\nErrno::ECHILD\n", output
  end
end
