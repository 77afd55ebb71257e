# frozen_string_literal: true

require "English"
require "fileutils"
require "open3"
require "rbconfig"

# Safeguards are tested by breaking them: each change of a list takes one out, and a test is to notice. A change that none
# notices is a fault of the tests. See script/mutants.
module Mutants
  ROOT = File.expand_path("..", __dir__)
  LIST = File.join(__dir__, "mutants.list.rb")

  # A change: in `file` the text `from`, which is there once, becomes `to`. One of `tests` is to fail then.
  #
  # A test is a file of test/, with a pattern of names after it if the file takes long, or `cargo` and a pattern of the
  # driver's own, or `ext` and one of the extension's that need no Ruby. The first that fails counts.
  Mutant = Data.define(:name, :safeguard, :file, :from, :to, :tests) do
    # What is wrong with it; nil if nothing is.
    def fault(root = ROOT)
      path = File.join(root, file)
      return "there is no #{file}" unless File.exist?(path)

      count = File.read(path).scan(from).size
      return "its text is in #{file} #{count} times, not once" unless count == 1
      return "it changes nothing" if from == to

      missing = tests.map { |test| test[%r{\Atest/\S+}] }.compact.reject { |test| File.exist?(File.join(root, test)) }
      return "there is no #{missing.first}" unless missing.empty?

      "no test is named" if tests.empty?
    end

    def rust? = file.end_with?(".rs")
  end

  class << self
    # The list, as it stands in the order of its file.
    def list
      @list ||= begin
        @mutants = []
        instance_eval(File.read(LIST), LIST)
        @mutants.freeze
      end
    end

    # An entry of the list.
    def mutant(name, safeguard, file:, from:, to:, tests:)
      @mutants << Mutant.new(name:, safeguard:, file:, from:, to:, tests:)
    end

    # What is wrong with the list, a line each.
    def faults
      names = list.map(&:name)
      names.tally.filter_map { |name, count| "#{name}: there are #{count} of that name" if count > 1 } +
        list.filter_map { |one| (fault = one.fault) && "#{one.name}: #{fault}" }
    end
  end

  # Applies changes one by one to a copy of the tree, and runs their tests. The copy and what is built of it stay in
  # target/, or in the folder UM_MUTANTS, so that the next build is of what has changed.
  class Run
    HOME = ENV.fetch("UM_MUTANTS", File.join(ROOT, "target", "mutants"))
    TREE = File.join(HOME, "tree")
    BUILT = File.join(HOME, "built")
    LIBRARY = File.join(HOME, "lib", "uringmachine", "uringmachine.so")
    # A quick build: as it is released it takes ten times as long.
    QUICK = {
      "CARGO_PROFILE_RELEASE_LTO" => "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS" => "16",
      "CARGO_PROFILE_RELEASE_OPT_LEVEL" => "1", "CARGO_PROFILE_RELEASE_INCREMENTAL" => "true",
      "CARGO_PROFILE_RELEASE_DEBUG" => "0", "CARGO_TARGET_DIR" => BUILT, "RUBY" => RbConfig.ruby
    }.freeze
    # A test that hangs says so after PATIENCE seconds, and is ended after LONGEST: either is noticed.
    PATIENCE = 30
    LONGEST = 120

    # The list is at fault: a change does not build, or a test fails without any.
    class Fault < StandardError; end

    # How one ended: which test has failed, or nil, and by what; or what is wrong with the change itself.
    Result = Data.define(:mutant, :test, :sign, :fault, :seconds) do
      def verdict = fault ? "FAULT" : (test ? "caught" : "MISSED")
    end

    def initialize(mutants)
      @mutants = mutants
    end

    # Says what becomes of each; returns whether all were caught.
    def run
      # A test whose child is interrupted goes wrong where this was started with SIGINT ignored, as a shell does with what
      # it runs in the background.
      trap(:INT, "DEFAULT")
      mirror
      build
      check_tests
      results = @mutants.each.with_index(1).map { |mutant, number| try(mutant, number) }
      table(results)
      results.all?(&:test)
    end

    private

    # Makes the copy equal to the tree. Files that have not changed keep their times.
    def mirror
      list, = Open3.capture2("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
      files = list.split("\0").select { |file| File.file?(File.join(ROOT, file)) }
      files.each { |file| copy(file) }
      old = Dir.glob("**/*", File::FNM_DOTMATCH, base: TREE).select { |file| File.file?(File.join(TREE, file)) }
      (old - files).each { |file| File.delete(File.join(TREE, file)) }
    end

    def copy(file)
      from = File.join(ROOT, file)
      to = File.join(TREE, file)
      return if File.exist?(to) && FileUtils.identical?(from, to)

      FileUtils.mkdir_p(File.dirname(to))
      FileUtils.cp(from, to)
    end

    def build
      command = %w[cargo build --release --locked --quiet --package uringmachine]
      output, status = Open3.capture2e(QUICK, *command, chdir: TREE)
      raise Fault, "it does not build:\n#{output}" unless status.success?

      FileUtils.mkdir_p(File.dirname(LIBRARY))
      # A new file, not new bytes in one that a running process may have mapped.
      FileUtils.rm_f(LIBRARY)
      FileUtils.cp(File.join(BUILT, "release", "liburingmachine.so"), LIBRARY)
    end

    # Those that fail without a change: they say nothing of one.
    def check_tests
      tests = @mutants.flat_map(&:tests).uniq
      @failing = tests.each.with_index(1).with_object({}) do |(test, number), failing|
        say "without a change, #{number}/#{tests.size}: #{test}"
        sign = failure(test)
        next unless sign

        failing[test] = "#{test} fails without a change: #{sign}"
        puts failing[test], @output
      end
    end

    def try(mutant, number)
      start = now
      say "#{number}/#{@mutants.size} #{mutant.name}: #{mutant.safeguard}"
      test, sign, fault = changed(mutant) { caught_by(mutant) }
      result = Result.new(mutant:, test:, sign:, fault:, seconds: (now - start).round)
      puts "#{result.verdict}  #{mutant.name}  #{sign || fault}  (#{result.seconds} s)"
      result
    end

    # Runs the block while the copy is changed.
    def changed(mutant)
      path = File.join(TREE, mutant.file)
      text = File.read(path)
      File.write(path, text.sub(mutant.from) { mutant.to })
      yield
    rescue Fault => e
      [nil, nil, e.message]
    ensure
      File.write(path, text)
    end

    def caught_by(mutant)
      built = !mutant.rust?
      mutant.tests.each do |test|
        raise Fault, @failing[test] if @failing[test]

        unless built || test.start_with?("cargo", "ext")
          build
          built = true
        end
        sign = failure(test)
        return [test, sign] if sign
      end
      nil
    end

    # How a test fails; nil if it passes.
    def failure(test)
      @output, status = bounded(*command(test))
      return if status&.success?
      return "hangs" if status.nil?

      hang = @output[/(test_\w+) hangs:/, 1]
      return "#{hang} hangs" if hang

      @output[/^\s*\d+\) (?:Failure|Error):\n([^\s:]+)/, 1] || @output[/^---- (\S+) stdout/, 1] || crash(status)
    end

    # What a process that has not come to its report says.
    def crash(status)
      line = @output.lines.grep(/error|BUG|panic/i).first.to_s.strip[0, 80]
      status.signaled? ? "signal #{status.termsig} #{line}" : line
    end

    def command(test)
      file, *names = test.split
      return ["cargo", "test", "--locked", "--quiet", "--package", "uringmachine-runtime", *names] if file == "cargo"

      return ["cargo", "test", "--locked", "--quiet", "--package", "uringmachine", "--lib", *names] if file == "ext"

      folders = [File.join(TREE, "lib"), File.join(HOME, "lib"), File.join(TREE, "test")]
      names = names.empty? ? [] : ["-n", "/#{names.join("|")}/"]
      [RbConfig.ruby, "-W:no-experimental", *folders.flat_map { |folder| ["-I", folder] }, file, *names]
    end

    # The output and the status of a command, which is nil if it takes too long.
    def bounded(*command)
      reader, writer = IO.pipe
      environment = QUICK.merge("UM_TEST_PATIENCE" => PATIENCE.to_s, "RUBYLIB" => nil, "MALLOC_PERTURB_" => "255")
      pid = spawn(environment, *command, chdir: TREE, in: File::NULL, %i[out err] => writer, pgroup: true)
      writer.close
      output = Thread.new { reader.read }
      deadline = now + LONGEST
      sleep 0.02 until (ended = Process.wait2(pid, Process::WNOHANG)) || now > deadline
      # Its children too.
      Process.kill(:KILL, -pid) rescue Errno::ESRCH
      Process.wait(pid) unless ended
      [output.value, ended&.last]
    ensure
      reader.close
    end

    def table(results)
      width = results.map { |result| result.mutant.name.size }.max
      puts
      results.each do |result|
        noticed = "#{result.test.split.first}: #{result.sign}" if result.test
        puts format("%-#{width}s  %-6s  %s", result.mutant.name, result.verdict, noticed || result.mutant.safeguard)
      end
      puts "#{results.size} safeguards: #{results.map(&:verdict).tally.map { |verdict, count| "#{count} #{verdict}" }.join(", ")}"
    end

    def say(line) = warn("==> #{line}")

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end

  # The command: see script/mutants.
  def self.command(arguments)
    $stdout.sync = true
    abort faults.join("\n") unless faults.empty?
    return puts("#{list.size} changes, each of a text that is there once") if arguments == ["--check"]
    return list.each { |one| puts format("%-32s %s", one.name, one.safeguard) } if arguments == ["--list"]

    chosen = arguments.empty? ? list : list.select { |one| arguments.any? { |name| File.fnmatch(name, one.name) } }
    abort "no change is called #{arguments.join(", ")}; --list names them" if chosen.empty?
    exit Run.new(chosen).run
  rescue Run::Fault => e
    abort e.message
  end
end

Mutants.command(ARGV) if $PROGRAM_NAME == __FILE__
