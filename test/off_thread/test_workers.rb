# frozen_string_literal: true

require_relative "../test_helper"
require "tmpdir"
require "zlib"

# The threads that do what the ring cannot: how many there are, and what becomes of those that a program ends.
class TestWorkers < SchedulerTest
  def workers = Thread.list.select { |thread| thread.name == "um-worker" }

  # A FIFO in a folder of its own: its open waits for the other end.
  def with_fifo
    Dir.mktmpdir do |folder|
      fifo = File.join(folder, "fifo")
      File.mkfifo(fifo)
      yield fifo
    end
  end

  # Waits in a fiber until the block is true.
  def eventually
    sleep 0.001 until yield
  end

  # Has the open of a FIFO wait in a worker, then runs the block.
  def with_open_waiting(fifo)
    opened = failed = nil
    in_fiber do
      before = Thread.list.size
      Fiber.schedule do
        opened = File.open(fifo, &:read)
      rescue SystemCallError, UM::Error => e
        failed = e
      end
      eventually { Thread.list.size > before || workers.any? }
      sleep 0.01
      yield
      File.open(fifo, "w") { |writer| writer << "through a fifo" } unless failed
      eventually { opened || failed }
    end
    assert(opened == "through a fifo" || failed, "opened: #{opened.inspect}")
  end

  def test_a_worker_that_is_killed_at_work_ends_its_job_first
    5.times { with_fifo { |fifo| with_open_waiting(fifo) { workers.each(&:kill) } } }
  end

  def test_what_is_raised_in_a_worker_is_not_the_jobs
    with_fifo do |fifo|
      with_open_waiting(fifo) do
        workers.each { |thread| thread.raise(RuntimeError, "of the program") }
        workers.each { |thread| thread.raise(Interrupt) }
        workers.each(&:wakeup)
      end
    end
  end

  def test_operations_go_on_after_all_workers_were_killed
    in_fiber do
      200.times do |round|
        file = Dir.mktmpdir { |folder| File.join(folder, "gone") }
        # At any moment: before a worker has begun, at work, idle, about to end.
        workers.each(&:kill)
        Thread.pass if round.odd?
        assert_raises(Errno::ENOENT) { File.rename(file, "#{file}.new") }
        assert_equal "", Zlib.inflate(Zlib.deflate(""))
      end
    end
  end

  def test_a_killed_crowd_leaves_no_job_behind
    done = 0
    scheduled do
      100.times do |number|
        Fiber.schedule do
          workers.each(&:kill) if (number % 7).zero?
          File.rename(__FILE__, __FILE__)
          done += 1
        end
      end
    end
    assert_equal 100, done
  end

  def test_more_opens_wait_than_threads_are_started_at_first
    Dir.mktmpdir do |folder|
      fifos = Array.new(60) { |number| File.join(folder, number.to_s).tap { |fifo| File.mkfifo(fifo) } }
      read = []
      short = nil
      scheduled do
        fifos.each { |fifo| Fiber.schedule { read << File.open(fifo, &:read) } }
        Fiber.schedule do
          File.rename(fifos.first, fifos.first)
          short = true
          # None of them is open before all of them wait.
          fifos.reverse_each { |fifo| File.open(fifo, "w") { |writer| writer << File.basename(fifo) } }
        end
      end
      assert_equal fifos.map { |fifo| File.basename(fifo) }.sort, read.sort
      assert short
    end
  end

  def test_more_opens_than_there_can_be_threads_fail_in_time
    with_fifo do |fifo|
      output, status = ruby(<<~'RUBY', fifo)
        fifo = ARGV.first
        opened = 0
        failures = []
        Thread.new do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          1100.times do
            Fiber.schedule do
              File.open(fifo) { opened += 1 }
            rescue SystemCallError, ThreadError => e
              failures << e.class
            end
          end
          Fiber.schedule do
            # A thread of no pool opens the other end.
            sleep 0.01 until failures.any?
            writer = Thread.new { File.open(fifo, "w") }
            sleep 0.01 until opened + failures.size == 1100
            writer.value.close
          end
        end.join
        puts (failures.uniq - [Errno::EAGAIN, ThreadError]).empty?, opened >= 8
      RUBY
      assert_equal ["true\ntrue\n", true], [output, status.success?]
    end
  end

  def test_a_crowd_of_short_jobs_makes_no_crowd_of_threads
    # In a process of its own: other tests leave threads behind.
    output, status = ruby(<<~RUBY)
      require "tempfile"
      path = Tempfile.create("um").path
      Fiber.set_scheduler(UM::FiberScheduler.new)
      done = 0
      500.times { Fiber.schedule { File.rename(path, path); done += 1 } }
      Fiber.scheduler.run
      puts done, (1...100) === Thread.list.count { |thread| thread.name == "um-worker" }
    RUBY
    assert_equal ["500\ntrue\n", true], [output, status.success?]
  end

  def test_a_process_ends_whatever_its_workers_do
    with_fifo do |fifo|
      output, status = ruby(<<~'RUBY', fifo)
        fifo = ARGV.first
        Thread.new do
          Fiber.set_scheduler(UM::FiberScheduler.new)
          Fiber.schedule { File.open(fifo) }
        end
        sleep 0.001 until Thread.list.size > 2
        puts "ends"
      RUBY
      assert_equal ["ends\n", true], [output, status.success?]
    end
  end

  # It is raised at the next wait, whether or not the open was over.
  def test_an_exception_that_comes_as_an_open_succeeds_is_not_lost
    with_fifo do |fifo|
      in_fiber do
        50.times do
          seen = []
          fiber = Fiber.schedule do
            reader = File.open(fifo)
            seen << :opened
            sleep
          rescue ArgumentError
            seen << :raised
          ensure
            reader&.close
          end
          writer = Thread.new { File.open(fifo, "w") }
          writer.join(0.0005)
          fiber.raise(ArgumentError)
          eventually { !fiber.alive? }
          assert_equal :raised, seen.last
          # If there was none, one comes.
          File.open(fifo, File::RDONLY | File::NONBLOCK) { writer.value.close }
        end
      end
    end
  end

  def test_an_open_that_has_succeeded_is_not_lost_to_a_timeout
    before = settled_descriptors
    with_fifo do |fifo|
      in_fiber do
        50.times do
          ended = false
          Fiber.schedule do
            reader = nil
            begin
              Timeout.timeout(0.002) { reader = File.open(fifo) }
            rescue Timeout::Error
              # As likely.
            end
            begin
              Timeout.timeout(1) { sleep 0 }
            ensure
              reader&.close
              ended = true
            end
          end
          sleep 0.0015 + (rand * 0.001)
          begin
            IO.for_fd(IO.sysopen(fifo, File::WRONLY | File::NONBLOCK)).close
          rescue Errno::ENXIO
            # Nobody reads.
          end
          eventually { ended }
        end
      end
    end
    GC.start
    assert_operator open_descriptors, :<=, before + 2
  end

  def test_a_value_that_is_scheduled_does_not_end_a_job
    with_fifo do |fifo|
      read = nil
      scheduled do |scheduler|
        reader = Fiber.schedule { read = File.open(fifo, &:read) }
        Fiber.schedule do
          scheduler.machine.schedule(reader, :nothing)
          sleep 0.01
          File.open(fifo, "w") { |writer| writer << "read" }
        end
      end
      assert_equal "read", read
    end
  end
end
