# frozen_string_literal: true

require_relative "../test_helper"
require "find"
require "tmpdir"
require "zlib"

# What is brief is done on the scheduler's own thread, and what was long goes to workers.
class TestAtOnce < SchedulerTest
  # What the programs below begin with. A fiber waits for a worker; what is done at once needs no wait.
  BEGINNING = <<~'RUBY'
    require "tmpdir"
    require "zlib"
    def in_scheduler(&block)
      Thread.new do
        Fiber.set_scheduler(UM::FiberScheduler.new)
        Fiber.schedule(&block)
      end.join
    end
    def waits = Fiber.scheduler.machine.metrics.values_at(:total_waits, :total_switches)
    def at_once? = waits.then { |before| yield; waits == before }
    # A worker may be done before anybody waits: but there is one.
    def worker? = yield && Thread.list.any? { |thread| thread.name == "um-worker" }
  RUBY

  def answer(program) = ruby(BEGINNING + program).first

  LOOKS = {
    "File.stat" => ->(path) { File.stat(path).size },
    "File.lstat" => ->(path) { File.lstat(path).ino },
    "File::Stat.new" => ->(path) { File::Stat.new(path).mtime },
    "File.file?" => ->(path) { File.file?(path) },
    "File.exist?" => ->(path) { File.exist?("#{path}.none") },
    "File.size" => ->(path) { File.size(path) },
    "FileTest.readable?" => ->(path) { FileTest.readable?(path) },
    "test" => ->(path) { test("f", path) },
    "Dir.children" => ->(path) { Dir.children(File.dirname(path)) },
    "Dir.glob" => ->(path) { Dir.glob("#{File.dirname(path)}/**/*") },
    "Dir.[]" => ->(path) { Dir["#{File.dirname(path)}/*"] },
    "Dir#each" => ->(path) { Dir.new(File.dirname(path)).each.sort },
    "Dir.open" => ->(path) { Dir.open(File.dirname(path)) { |folder| folder.read.class } },
    "Dir.empty?" => ->(path) { Dir.empty?(File.dirname(path)) },
    "Find.find" => ->(path) { Find.find(File.dirname(path)).to_a },
    "File.stat of nothing" => ->(path) { File.stat("#{path}.none") rescue $!.message },
    "Dir.children of nothing" => ->(path) { Dir.children("#{path}.none") rescue $!.message },
    "Zlib.inflate" => ->(path) { Zlib.inflate(Zlib.deflate(path)) },
    "Zlib.inflate of no such data" => ->(path) { Zlib.inflate(path) rescue $!.message }
  }.freeze

  def test_the_answers_are_plain_rubys
    Dir.mktmpdir do |folder|
      path = File.join(folder, "file")
      File.write(path, "content")
      LOOKS.each do |name, look|
        plain = look.call(path)
        assert_equal plain, in_fiber { look.call(path) }, name
      end
    end
  end

  # All but some, if the machine is so busy that some are long.
  def test_what_looks_at_files_is_done_at_once
    assert_equal "true\n" * 4, answer(<<~'RUBY')
      in_scheduler do
        puts 1000.times.count { at_once? { File.stat("/") } } > 10
        puts 1000.times.count { at_once? { Dir.children("/") } } > 10
        puts 1000.times.count { at_once? { Dir.glob("/*") } } > 10
        puts 1000.times.count { at_once? { Zlib.inflate(Zlib.deflate("small")) } } > 10
      end
    RUBY
  end

  def test_what_changes_files_is_a_workers
    assert_equal "true\n", answer(<<~'RUBY')
      in_scheduler do
        Dir.mktmpdir { |folder| puts worker? { File.rename(folder, "#{folder}.new") && File.rename("#{folder}.new", folder) } }
      end
    RUBY
  end

  # Megabytes take longer than is brief on any machine.
  def test_what_was_long_is_a_workers_the_next_time
    assert_equal "true\n", answer(<<~'RUBY')
      in_scheduler do
        Zlib.deflate(Random.bytes(8 << 20))
        puts worker? { Zlib.deflate("small") }
      end
    RUBY
  end

  def test_whoever_looks_again_and_again_lets_others_run
    in_fiber do
      seen = false
      Fiber.schedule do
        sleep 0.001
        seen = true
      end
      File.stat("/") until seen
    end
  end

  def test_a_time_limit_ends_whoever_looks_again_and_again
    in_fiber do
      assert_raises(Timeout::Error) { Timeout.timeout(0.01) { loop { Dir.children("/") } } }
    end
  end

  def test_what_another_thread_raises_comes_through
    looks = 0
    thread = Thread.new do
      Thread.current.report_on_exception = false
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule { loop { File.stat("/") && looks += 1 } }
    end
    Thread.pass until looks.positive?
    thread.raise(ArgumentError, "from outside")
    assert_raises(ArgumentError) { thread.join }
  end

  # A method of a program's that has the name of one of Ruby's calls none of these.
  def test_a_method_of_the_same_name_is_another
    assert_equal "true\n", answer(<<~'RUBY')
      class Elsewhere
        def self.stat(path) = File.rename(path, path)
      end
      in_scheduler do
        Dir.mktmpdir { |folder| puts worker? { Elsewhere.stat(folder) } }
      end
    RUBY
  end
end
