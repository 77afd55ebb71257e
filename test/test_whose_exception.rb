# frozen_string_literal: true

require_relative "test_helper"
require "net/http"

# Whose an exception is: the thread's, the fiber's, or that of a finalizer or a handler that happens to run in it.
class TestWhoseException < SchedulerTest
  class Stop < StandardError; end

  def silently(&)
    capture_io(&)
  end

  # A fiber that computes until it is told, or the deadline of the test.
  def compute(&told) = (Process.clock_gettime(Process::CLOCK_MONOTONIC) until told.call)

  # A thread with a scheduler, whose program is the block; what it raises, and the log.
  def thread_under(log, &program)
    Thread.new do
      Thread.current.report_on_exception = false
      begin
        program.call
      rescue Exception => e # rubocop:disable Lint/RescueException
        log << e.class
      end
    end
  end

  def test_a_timeout_around_the_scheduler_is_its_callers_though_a_fiber_computes
    log = []
    thread = thread_under(log) do
      Timeout.timeout(0.05) do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule do
          IO.pipe.first.read(1)
        ensure
          log << :unwound
        end
        Fiber.schedule do
          Fiber.scheduler.yield
          compute { false }
        ensure
          log << :stopped
        end
        Fiber.set_scheduler(nil)
        log << :never
      end
    end
    thread.join

    assert_equal %i[stopped unwound], log.first(2)
    assert_equal [Timeout::Error], log.drop(2)
  end

  # The scheduler is being closed, and a fiber that it has gone on with was the last to wait.
  def test_a_thread_is_ended_whose_last_fiber_to_wait_is_not_its_programs
    { raise: [Stop], kill: [] }.each do |ends, arguments|
      told = Thread::Queue.new
      log = []
      thread = thread_under(log) do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule do
          sleep 0
          told << true
          sleep
        ensure
          log << :unwound
        end
        Fiber.set_scheduler(nil)
      end
      told.pop
      sleep 0.001 until thread.stop?
      thread.public_send(ends, *arguments)
      thread.join

      assert_equal [:unwound, *arguments], log, ends
    end
  end

  def test_what_is_raised_in_the_thread_is_raised_in_its_program
    [[Stop], [Stop, "enough"], [Stop.new("enough")]].each do |arguments|
      log = []
      computing = Thread::Queue.new
      thread = thread_under(log) do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule do
          computing << true
          compute { false }
        end
      end
      computing.pop
      thread.raise(*arguments)
      thread.join
      assert_equal [Stop], log
    end
  end

  def test_thread_raise_takes_what_plain_ruby_takes
    calls = [[], ["text"], [Stop], [Stop, "text"], [Stop, "text", ["here"]], [5], [nil], [Stop, "text", 5]]
    calls.each do |arguments|
      plain, under = [false, true].map do |scheduled|
        raised = Thread::Queue.new
        ready = Thread::Queue.new
        thread = Thread.new do
          Thread.current.report_on_exception = false
          Fiber.set_scheduler(UM::FiberScheduler.new) if scheduled
          ready << true
          compute { false }
        rescue StandardError => e
          raised << [e.class, e.message]
        end
        ready.pop
        begin
          thread.raise(*arguments)
        rescue StandardError => e
          raised << [:caller, e.class, e.message]
        end
        raised.pop.tap { thread.kill.join }
      end
      assert_equal plain, under, arguments.inspect
    end
  end

  def test_an_exception_out_of_a_signals_handler_is_the_main_programs
    output, = ruby(<<~'RUBY')
      trap(:USR1) { raise "from the handler" }
      begin
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule do
          IO.pipe.first.read(1)
        ensure
          puts "unwound"
        end
        Fiber.schedule { Fiber.scheduler.yield; Process.kill(:USR1, $$); loop { } }
        Fiber.set_scheduler(nil)
        puts "never"
      rescue => e
        puts e.message
      end
    RUBY

    assert_equal ["from the handler", "unwound"], output.lines(chomp: true).sort
  end

  def test_an_exception_that_a_handler_rescues_is_nobodys
    output, = ruby(<<~'RUBY')
      trap(:USR1) { begin; raise "within"; rescue; puts "rescued"; end }
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { Process.kill(:USR1, $$); 1000.times { Thread.pass }; puts "done" }
    RUBY

    assert_equal "rescued\ndone\n", output
  end

  # The finalizer waits longer than the timeout, and runs within its block.
  def test_a_timeout_is_not_raised_in_a_finalizer
    calls = { start: -> { GC.start }, collect: -> { ObjectSpace.garbage_collect }, compact: -> { GC.compact } }
    calls.each do |name, collect|
      finalized = false
      error = nil
      silently do
        in_fiber do
          litter = lambda do |depth|
            next litter.call(depth - 1) if depth.positive?

            20.times do
              ObjectSpace.define_finalizer(Object.new, proc do
                next if finalized

                sleep(0.03)
                finalized = true
              end)
            end
          end
          litter.call(20)
          error = assert_raises(Timeout::Error) { Timeout.timeout(0.01) { [collect.call, sleep] } }
        end
      end
      assert_equal [Timeout::Error, true], [error.class, finalized], name
    end
  end

  def test_what_is_to_be_raised_in_a_fiber_is_not_raised_in_a_handler
    output, = ruby(<<~'RUBY')
      require "timeout"
      reader, writer = IO.pipe
      trap(:USR1) do
        reader.read(1)
        puts "handled"
      rescue Timeout::Error
        puts "raised in the handler"
      end
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        Timeout.timeout(0.01) { Process.kill(:USR1, $$); sleep }
      rescue Timeout::Error
        puts "timed out"
      end
      Fiber.schedule { sleep(0.05); writer << "x" }
    RUBY

    assert_equal ["handled", "timed out"], output.lines(chomp: true).sort
  end

  def test_waits_of_ensure_blocks_last_to_their_end_whatever_interrupts
    output, = ruby(<<~'RUBY')
      pid = $$
      ended = []
      trap(:USR1) { }
      # What comes while a fiber computes interrupts it, as any program: so it begins anew what it computes.
      steadily = lambda do |&step|
        step.call
      rescue Interrupt => e
        raise if e.backtrace_locations.first.base_label == "sleep"

        retry
      end
      begin
        Fiber.set_scheduler(UM::FiberScheduler.new)
        3.times do |number|
          Fiber.schedule do
            sleep
          ensure
            3.times { |step| steadily.() { sleep(0.005 * (number + 1)); ended |= [[number, step]] } }
          end
        end
        # SIGCHLD comes too.
        child = spawn(*%w[sh -c], "sleep 0.01; for signal in INT USR1 INT USR1 INT; do kill -$signal #{pid}; sleep 0.003; done")
        Fiber.set_scheduler(nil)
      rescue Interrupt
        steadily.() { Process.wait(child) }
        p ended.sort, :interrupted
      end
    RUBY

    assert_equal [(0..2).flat_map { |number| (0..2).map { |step| [number, step] } }.inspect, ":interrupted"], output.lines(chomp: true)
  end

  def test_the_end_of_a_thread_is_rescued_by_no_fiber
    log = []
    waiting = Thread::Queue.new
    thread = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        sleep
      rescue Exception # rubocop:disable Lint/RescueException
        log << :rescued
      ensure
        sleep(0)
        log << :ensured
      end
      Fiber.schedule { catch(:tag) { waiting << true && sleep } && log << :caught }
    end
    waiting.pop
    thread.kill.join

    assert_equal [:ensured], log
  end

  def test_what_a_fiber_fails_by_while_its_thread_is_killed_keeps_no_other_from_its_end
    log = []
    waiting = Thread::Queue.new
    thread = thread_under(log) do
      Fiber.set_scheduler(UM::FiberScheduler.new.tap { |scheduler| scheduler.abort_on_exception = true })
      Fiber.schedule do
        sleep
      ensure
        sleep 0.01
        raise Stop
      end
      Fiber.schedule do
        waiting << true
        sleep
      ensure
        sleep 0.03
        log << :ensured
      end
      sleep
    end
    waiting.pop
    thread.report_on_exception = false
    thread.kill
    assert_raises(Stop) { thread.join }

    assert_equal [:ensured], log
  end

  def test_the_end_of_a_thread_cuts_nothing_short_that_an_ensure_block_rescues
    log = []
    waiting = Thread::Queue.new
    thread = thread_under(log) do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        waiting << true
        sleep
      ensure
        waiting << true
        sleep 0.05
        log << $!
        begin
          Timeout.timeout(0.001) { sleep }
        rescue Timeout::Error => e
          log << e.class
        end
        log << :ensured
      end
      Fiber.set_scheduler(nil)
    end
    waiting.pop
    sleep 0.01
    thread.raise(Stop)
    waiting.pop
    thread.kill.join

    assert_equal [nil, Timeout::Error, :ensured], log.first(3)
  end

  def test_a_report_that_cannot_be_made_ends_nobody_else
    failures = {
      message: "class Mute < StandardError; def message = raise('no words'); def detailed_message(...) = raise('no words'); end; raise Mute",
      class_name: "class Nameless < StandardError; def self.name = raise('x'); def full_message(...) = nil; end; raise Nameless",
      closed: "$stderr.close; raise 'closed'", not_an_io: "$stderr = Object.new.tap { |o| def o.write(*) = raise('x') }; raise 'x'"
    }
    failures.each do |name, failure|
      output, status = ruby("Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule { sleep(0.001); #{failure} }; Fiber.schedule { sleep(0.01); puts 'other' }; " \
                            "m = UM.new; Fiber.set_scheduler(nil); f = m.spin { #{failure} }; m.snooze; puts 'after'")
      assert_equal [%w[other after], true], [output.lines(chomp: true).last(2), status.success?], name
    end
  end

  def test_a_report_to_a_full_pipe_hangs_nobody
    output, status = ruby(<<~'RUBY')
      reader, writer = IO.pipe
      nil while writer.write_nonblock("x" * 1024, exception: false) != :wait_writable
      $stderr.reopen(writer)
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { raise "nobody reads" }
      Fiber.schedule { sleep(0.01); $stdout.puts "other" }
      Fiber.set_scheduler(nil)
      puts "after"
    RUBY

    assert_equal [%w[other after], true], [output.lines(chomp: true), status.success?]
  end

  def test_the_report_says_what_failed
    output, = ruby('Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule { raise ArgumentError, "long " + "word " * 2000 }')

    assert_match(/#<Fiber:.*> terminated with exception \(report_on_exception is true\):/, output)
    assert_includes output, "long #{"word " * 2000}"
  end

  def test_a_block_cannot_take_a_timeout_for_an_error_of_its_own
    log = []
    in_fiber do
      error = assert_raises(Timeout::Error) do
        Timeout.timeout(0.01) do
          sleep
        rescue StandardError
          log << :swallowed
        end
      end
      assert_equal "execution expired", error.message
      assert_raises(Stop) do
        Timeout.timeout(0.01, Stop) do
          sleep
        rescue Stop
          log << :own
          raise
        end
      end
    end

    assert_equal [:own], log
  end

  def test_net_http_keeps_to_a_timeout_around_it
    server = TCPServer.new("127.0.0.1", 0)
    in_fiber do
      http = Net::HTTP.new("127.0.0.1", server.addr[1])
      http.read_timeout = 30
      assert_raises(Timeout::Error) { Timeout.timeout(0.05) { http.get("/") } }
    end
  ensure
    server.close
  end

  def test_masks_hold_a_timeout_back_as_in_plain_ruby
    exit_exception = Timeout::ExitException
    programs = {
      never: [{ exit_exception => :never }], by_ancestor: [{ Exception => :never }], on_blocking: [{ exit_exception => :on_blocking }],
      immediate: [{ exit_exception => :immediate }], other: [{ ArgumentError => :never }], inner_wins: [{ Exception => :never }, { exit_exception => :immediate }],
      nearest_wins: [{ Exception => :immediate, exit_exception => :never }]
    }
    programs.each do |name, masks|
      plain, under = [->(&work) { Thread.new(&work).value }, ->(&work) { in_fiber(&work) }].map do |run|
        run.call do
          log = []
          held = masks.reverse.inject(proc { sleep(0.05) && log << :whole }) { |inner, mask| proc { Thread.handle_interrupt(mask, &inner) } }
          begin
            Timeout.timeout(0.01) { held.call && sleep(0.05) }
          rescue Timeout::Error
            log << :timed_out
          end
          log
        end
      end
      assert_equal plain, under, name
    end
  end

  def test_a_mask_that_is_none_is_refused_as_in_plain_ruby
    [[5], [{ Exception => :sometimes }], [{ 5 => :never }]].each do |arguments|
      plain, under = [->(&work) { Thread.new(&work).value }, ->(&work) { in_fiber(&work) }].map do |run|
        run.call { Thread.handle_interrupt(*arguments) { :ran } rescue [$!.class, $!.message] }
      end
      assert_equal plain, under
    end
  end

  def test_the_mask_of_one_fiber_holds_nothing_of_anothers_back
    log = []
    scheduled do
      Fiber.schedule { Thread.handle_interrupt(Exception => :never) { sleep(0.05) } }
      Fiber.schedule do
        Timeout.timeout(0.005) { sleep(0.02) && log << :whole }
      rescue Timeout::Error
        log << :timed_out
      end
    end

    assert_equal [:timed_out], log
  end

  def test_thread_raise_without_an_argument_is_the_threads_though_a_fiber_computes
    log = []
    thread = thread_under(log) do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        log << :computes
        compute { false }
      end
    end
    Thread.pass until log == [:computes]
    thread.raise
    thread.join

    assert_equal [:computes, RuntimeError], log
  end

  # Who rescues the thread's exception, and whether another fiber fails by the same object afterwards.
  { root: ->(error) { Thread.current.raise(error) rescue nil }, fiber: ->(error) { Fiber.schedule { Thread.current.raise(error) rescue nil } } }.each do |who, rescued|
    define_method :"test_what_the_#{who}_has_rescued_is_the_failure_of_whoever_raises_it_again" do
      log = []
      error = Stop.new("again")
      silently do
        thread_under(log) do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          rescued.call(error)
          Fiber.schedule { raise error }
          Fiber.schedule { sleep(0.001) && log << :other }
          Fiber.set_scheduler(nil)
          log << :after
        end.join
      end

      assert_equal %i[other after], log
    end
  end

  def test_what_has_ended_a_scheduler_is_the_failure_of_whoever_raises_it_again
    log = []
    error = Stop.new("again")
    silently do
      thread_under(log) do
        begin
          Fiber.set_scheduler(UM::FiberScheduler.new)
          Fiber.schedule { Thread.current.raise(error) }
        rescue Stop
          log << :ended
        end
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule { raise error }
        Fiber.schedule { sleep(0.001) && log << :other }
      end.join
    end

    assert_equal %i[ended other], log
  end

  def test_what_a_fiber_rescues_and_raises_on_is_the_threads
    { rescued: -> { (Thread.current.raise(Stop) rescue (sleep(0.001) && raise)) }, inner: -> { Fiber.new { Thread.current.raise(Stop) }.resume },
      lazy: -> { Enumerator.new { Thread.current.raise(Stop) }.next } }.each do |name, program|
      log = []
      thread_under(log) do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule(&program)
        Fiber.schedule { sleep(1) && log << :never }
        Fiber.set_scheduler(nil)
      end.join
      assert_equal [Stop], log, name
    end
  end

  def test_thread_raise_says_what_plain_ruby_says_of_its_arguments
    dead = Thread.new {}.join
    assert_nil dead.raise(1)
    assert_nil dead.raise("late", 1)
    living = Thread.new { Thread.stop }
    assert_raises(TypeError) { living.raise(1) }
    assert_raises(ArgumentError) { living.raise(1, 2, 3, 4) }
    cause = RuntimeError.new("cause")
    if RUBY_VERSION < "4"
      # A cause is an argument as any other.
      assert_raises(TypeError) { living.raise("message", cause:) }
    else
      assert_raises(ArgumentError) { living.raise(cause:) }
      error = assert_raises(RuntimeError) { Thread.current.raise("message", cause:) }
      assert_equal ["message", cause], [error.message, error.cause]
    end
  ensure
    living.kill
  end
end
