# frozen_string_literal: true

require_relative "../test_helper"

# Core methods that reach no hook of Ruby's: other fibers run meanwhile, and they are as in plain Ruby.
class TestCoreExt < SchedulerTest
  def file
    Tempfile.create("um").tap { |file| (@files ||= []) << file }
  end

  def teardown
    @files&.each { |file| file.close && File.unlink(file.path) }
    super
  end

  def test_syncing_and_truncating_flush_first
    io = file
    in_fiber do
      io.write("buffered")
      assert_equal 0, io.fsync
      assert_equal 8, File.size(io.path)
      io.write(" and more")
      assert_equal 0, io.fdatasync
      assert_equal 17, File.size(io.path)
      io.write("!")
      assert_equal 0, io.truncate(3)
      assert_equal 3, File.size(io.path)
    end
  end

  # What other fibers are ready to run does so before the call returns.
  def test_syncing_and_truncating_let_others_run
    io = file
    %w[fsync fdatasync truncate].each do |name|
      order = []
      counts = []
      scheduled do |scheduler|
        Fiber.schedule do
          io.write("some")
          io.flush
          Fiber.schedule { order << :other if sleep(0) }
          counts << scheduler.machine.metrics[:total_ops]
          name == "truncate" ? io.truncate(2) : io.public_send(name)
          counts << scheduler.machine.metrics[:total_ops]
          order << name
        end
      end
      assert_equal [:other, name], order
      # Before Linux 6.9 the ring cannot truncate: a thread does.
      assert_operator counts[1], :>, counts[0] unless name == "truncate"
    end
  end

  def test_errors_are_those_of_plain_ruby
    reader, = IO.pipe
    closed = file.dup.tap(&:close)
    null = File.open(File::NULL, "r+")
    calls = [
      -> { reader.fsync }, -> { closed.fsync }, -> { null.fsync }, -> { null.fdatasync }, -> { reader.fdatasync },
      -> { closed.flock(File::LOCK_EX) }, -> { file.flock("x") }, -> { file.flock(0) },
      *["x", -1, 2**62, 2**63, 2**70, -(2**70), nil].map { |length| -> { file.truncate(length) } },
      -> { closed.truncate(1) }, -> { null.truncate(1) }, -> { File.open(__FILE__) { |io| io.truncate(1) } },
      -> { Socket.getnameinfo("nonsense") }, -> { Socket.getnameinfo }
    ]
    # Every file has a name of its own.
    told = ->(*) { calls.map { |call| call.call && nil rescue [$!.class, $!.message.sub(%r{/um\S+}, "")] } }
    expected = told.call
    # Some file systems take a length of 2**62.
    assert_operator expected.compact.size, :>=, calls.size - 1
    assert_equal expected, in_fiber(&told)
  end

  # Methods that a program has prepended or defined, before there was a scheduler or since: all are called.
  CHANGES = {
    none: "",
    prepended: <<~RUBY,
      IO.prepend(Module.new { def gets(...) = ($stdout.puts("its gets") && 0) || super })
      Timeout.singleton_class.prepend(Module.new { def timeout(...) = ($stdout.puts("its timeout") && 0) || super })
    RUBY
    defined: <<~RUBY
      class IO
        alias plain_gets gets
        def gets(...) = ($stdout.puts("its gets") && 0) || plain_gets(...)
      end
      class << Timeout
        alias plain_timeout timeout
        def timeout(...) = ($stdout.puts("its timeout") && 0) || plain_timeout(...)
      end
    RUBY
  }.freeze

  CHANGES.each do |name, change|
    %w[before after].each do |time|
      next if [name, time] == [:defined, "after"]

      define_method("test_what_is_#{name}_#{time}_the_first_scheduler_is_called") do
        output, = ruby(<<~RUBY)
          #{change if time == "before"}
          scheduler = UM::FiberScheduler.new
          #{change if time == "after"}
          Fiber.set_scheduler(scheduler)
          Fiber.schedule do
            reader, writer = IO.pipe
            writer.write("line\n")
            print reader.gets
            Timeout.timeout(10) { print reader.fileno.class, "\n" }
          end
        RUBY
        own = name == :none ? [] : ["its gets", "its timeout"]
        assert_equal [own[0], "line", own[1], "Integer"].compact, output.split("\n")
      end
    end
  end

  def test_without_our_scheduler_nothing_changes
    io = file
    assert_equal [0, 0, 0], [io.flock(File::LOCK_EX), io.fsync, io.truncate(0)]
  end
end
