# frozen_string_literal: true

require "find"
require "open3"
require "pty"
require "resolv"
require "zlib"
require_relative "compat_helper"

# What comes with Ruby.
class TestStandardLibrary < CompatTest
  ROW = "standard library"
  FIBERS_AT_ONCE = 20

  def setup
    super
    @folder = Dir.mktmpdir("um")
  end

  def teardown
    FileUtils.rm_rf(@folder)
    super
  end

  def path(name) = File.join(@folder, name.to_s)

  def test_logger
    need "logger"
    lines = sized(50, 1000)
    beside_ticks(ROW, "Logger: lines of 20 to one file", lines * FIBERS_AT_ONCE, "logger" => Logger::VERSION) do |crowd|
      logger = Logger.new(path(:log), binmode: true)
      crowd.all(0...FIBERS_AT_ONCE) { |number| lines.times { |line| logger.info("#{number} #{line}") } }
      logger.close
      said = File.readlines(path(:log)).grep_v(/^#/).map { |line| line[/ -- : (\d+ \d+)\n\z/, 1] }
      assert_equal((0...FIBERS_AT_ONCE).to_a.product((0...lines).to_a).map { |pair| pair.join(" ") }.sort, said.sort)
      # Each one's lines are in its order.
      said.group_by { |line| line[/\d+/] }.each_value { |of_one| assert_equal lines, of_one.map { |line| line[/\d+$/].to_i }.each_cons(2).count { |a, b| a < b } + 1 }
      File.unlink(path(:log))
    end
  end

  def test_logger_with_rotation
    need "logger"
    lines = sized(50, 500)
    beside_ticks(ROW, "Logger: lines of 20, a new file every 20 KB", lines * FIBERS_AT_ONCE, "logger" => Logger::VERSION) do |crowd|
      logger = Logger.new(path(:log), 1000, 20_000)
      crowd.all(0...FIBERS_AT_ONCE) { |number| lines.times { |line| logger.info("#{number} #{line}") } }
      logger.close
      files = Dir.glob(path("log*"))
      said = files.flat_map { |file| File.readlines(file).grep_v(/^#/).map { |line| line[/ -- : (\d+ \d+)\n\z/, 1] } }
      assert_equal((0...FIBERS_AT_ONCE).to_a.product((0...lines).to_a).map { |pair| pair.join(" ") }.sort, said.sort)
      files.each { |file| File.unlink(file) }
    end
  end

  def test_tempfile
    files = sized(5, 50)
    beside_ticks(ROW, "Tempfile: written, read, unlinked", files * FIBERS_AT_ONCE, "tempfile" => Tempfile::VERSION) do |crowd|
      paths = crowd.all(0...FIBERS_AT_ONCE) do |number|
        Array.new(files) do |file|
          Tempfile.create(["#{number}-", ".txt"]) do |temporary|
            temporary.write("#{number} #{file}\n" * 1000)
            temporary.rewind
            assert_equal "#{number} #{file}\n" * 1000, temporary.read
            temporary.path
          end
        end
      end.flatten
      assert_equal files * FIBERS_AT_ONCE, paths.uniq.size
      assert_empty(paths.select { |path| File.exist?(path) })
    end
  end

  def test_file_utils
    files = sized(10, 100)
    beside_ticks(ROW, "FileUtils: files copied, moved, compared, removed", files * FIBERS_AT_ONCE, "fileutils" => FileUtils::VERSION) do |crowd|
      crowd.all(0...FIBERS_AT_ONCE) do |number|
        original, copy, moved = %w[original copy moved].map { |name| path("#{number}/#{name}") }
        files.times do |file|
          FileUtils.mkdir_p("#{original}/#{file % 10}")
          File.write("#{original}/#{file % 10}/#{file}", "#{number} #{file}")
        end
        FileUtils.cp_r(original, copy)
        FileUtils.mv(copy, moved)
        refute_path_exists copy
        files.times { |file| assert FileUtils.identical?("#{original}/#{file % 10}/#{file}", "#{moved}/#{file % 10}/#{file}") }
        FileUtils.rm_rf(path(number))
        refute_path_exists path(number)
      end
    end
  end

  def test_find
    files = sized(1000, 10_000)
    files.times do |file|
      FileUtils.mkdir_p(path(file % 50)) if file < 50
      File.write(path("#{file % 50}/#{file}"), "x" * (file % 7))
    end
    bytes = (0...files).sum { |file| file % 7 }
    beside_ticks(ROW, "Find: files that each of 4 finds and measures", files * 4, {}) do |crowd|
      found = crowd.all(0...4) do
        sizes = Find.find(@folder).filter_map { |path| File.size(path) if File.file?(path) }
        [sizes.size, sizes.sum]
      end
      assert_equal [[files, bytes]] * 4, found
    end
  end

  def test_open3
    commands = sized(2, 10)
    beside_ticks(ROW, "Open3: commands given 200 KB", commands * FIBERS_AT_ONCE, "open3" => Open3::VERSION) do |crowd|
      crowd.all(0...FIBERS_AT_ONCE) do |number|
        commands.times do
          input = "#{number}\n" * (200_000 / (number.to_s.size + 1))
          output, error, status = Open3.capture3("cat; echo #{number} >&2; exit #{number}", stdin_data: input)
          assert_equal input, output
          assert_equal ["#{number}\n", number], [error, status.exitstatus]
        end
      end
      output, statuses = Open3.pipeline_r("printf 'b\\na\\n'", "sort") { |reader, threads| [reader.read, threads.map(&:value)] }
      assert_equal ["a\nb\n", [true, true]], [output, statuses.map(&:success?)]
    end
  end

  def test_pty
    lines = sized(5, 50)
    beside_ticks(ROW, "PTY: lines to and from shells", lines * FIBERS_AT_ONCE) do |crowd|
      crowd.all(0...FIBERS_AT_ONCE) do |number|
        PTY.spawn("stty -echo; echo ready; while read line; do echo \"#{number} $line\"; done; exit 3") do |reader, writer, pid|
          assert_equal "ready\r\n", reader.gets
          lines.times do |line|
            writer.puts(line)
            assert_equal "#{number} #{line}\r\n", reader.gets
          end
          writer.write("\x04")
          # A terminal that nobody writes to any more ends with an error.
          assert_raises(Errno::EIO) { reader.gets }
          Process.wait(pid)
          assert_equal 3, $?.exitstatus
        end
      end
    end
  end

  def test_resolv
    dnsmasq = need_command("dnsmasq")
    names = sized(5, 50)
    records = Array.new(FIBERS_AT_ONCE) { |number| "--address=/host#{number}.test/10.0.0.#{number}" }
    command = lambda do |server|
      [dnsmasq, "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--listen-address=127.0.0.1", "--bind-interfaces", "--port=#{server.port}",
       "--user=#{Etc.getpwuid.name}", "--pid-file=", "--local=/test/", *records]
    end
    LocalServer.run(command) do |server|
      beside_ticks(ROW, "Resolv: names asked of dnsmasq", names * FIBERS_AT_ONCE, "resolv" => Resolv::VERSION, "dnsmasq" => version_of(dnsmasq)) do |crowd|
        crowd.all(0...FIBERS_AT_ONCE) do |number|
          Resolv::DNS.open(nameserver_port: [["127.0.0.1", server.port]], search: [], ndots: 1) do |resolver|
            names.times { assert_equal "10.0.0.#{number}", resolver.getaddress("host#{number}.test").to_s }
            assert_raises(Resolv::ResolvError) { resolver.getaddress("nobody.test") }
          end
        end
      end
    end
  end

  def test_drb
    need "drb"
    calls = sized(20, 500)
    service = DRb::DRbServer.new("druby://127.0.0.1:0", Class.new { def double(text) = yield(text * 2) }.new)
    beside_ticks(ROW, "DRb: calls that call back", calls * FIBERS_AT_ONCE, "drb" => DRb::VERSION) do |crowd|
      DRb.start_service("druby://127.0.0.1:0")
      crowd.all(0...FIBERS_AT_ONCE) do |number|
        remote = DRbObject.new_with_uri(service.uri)
        calls.times do |call|
          yielded = nil
          remote.double("#{number} #{call} ") { |text| yielded = text }
          assert_equal "#{number} #{call} " * 2, yielded
        end
      end
    ensure
      DRb.stop_service
    end
  ensure
    service&.stop_service
  end

  def test_csv
    need "csv"
    rows = sized(300, 1000)
    beside_ticks(ROW, "CSV: rows written and read", rows * FIBERS_AT_ONCE, "csv" => CSV::VERSION) do |crowd|
      crowd.all(0...FIBERS_AT_ONCE) do |number|
        CSV.open(path(number), "w") { |csv| rows.times { |row| csv << [number, row, "a, \"quoted\"\nfield"] } }
        assert_equal Array.new(rows) { |row| [number.to_s, row.to_s, "a, \"quoted\"\nfield"] }, CSV.foreach(path(number)).to_a
      end
    end
  end

  def test_zlib
    rounds = sized(2, 6)
    beside_ticks(ROW, "Zlib: 1 MB packed, unpacked, to files and in memory", rounds * FIBERS_AT_ONCE, "zlib" => Zlib::VERSION) do |crowd|
      crowd.all(0...FIBERS_AT_ONCE) do |number|
        text = Random.new(number).bytes(1000) * 1000
        rounds.times do
          Zlib::GzipWriter.open(path(number)) { |gzip| gzip.write(text) }
          # Not assert_equal, which would run diff.
          assert text.eql?(Zlib::GzipReader.open(path(number), &:read).b)
          assert text.eql?(Zlib.inflate(Zlib.deflate(text)))
        end
      end
    end
  end

  # In a terminal, as a user's program is: the ticks go on while it waits for what is typed.
  def test_reline
    need "reline"
    output = in_terminal(<<~RUBY, "typed text" => "read: typed text")
      require "reline"
      Fiber.set_scheduler(UM::FiberScheduler.new)
      ticks = 0
      ticker = Fiber.schedule { loop { sleep 0.001; ticks += 1 } }
      Fiber.schedule do
        line = Reline.readline("> ", true)
        sleep 0.001 until ticks > 3
        puts "read: \#{line}"
        ticker.kill
      end
    RUBY
    assert_match(/read: typed text/, output)
  end

  def test_irb
    need "irb"
    output = in_terminal(<<~RUBY, "6 * 7" => "=> 42", "UM::FiberScheduler === Fiber.scheduler" => "=> true", "exit" => "it has ended")
      require "irb"
      ARGV.replace(%w[--noscript -f --prompt simple])
      Fiber.set_scheduler(UM::FiberScheduler.new)
      ticks = 0
      ticker = Fiber.schedule { loop { sleep 0.001; ticks += 1 } }
      Fiber.schedule do
        IRB.start
      ensure
        sleep 0.001 until ticks > 3
        puts "it has ended"
        ticker.kill
      end
    RUBY
    assert_match(/=> 42\b.*=> true\b.*it has ended/m, output)
  end

  # It forks: the parent ends, and in the child, which has a scheduler of its own, fibers run.
  def test_process_daemon
    output, status = ruby(<<~RUBY, path(:done))
      Fiber.set_scheduler(UM::FiberScheduler.new(fork: :renew))
      Fiber.schedule do
        sleep 0.001
        before = Process.pid
        Process.daemon(true)
        ticks = 0
        ticker = Fiber.schedule { loop { sleep 0.001; ticks += 1 } }
        Fiber.schedule do
          sleep 0.001 until ticks > 3
          File.write("\#{ARGV[0]}.new", [before != Process.pid, `echo child`].inspect)
          File.rename("\#{ARGV[0]}.new", ARGV[0])
          ticker.kill
        end
      end
    RUBY
    assert_equal ["", true], [output, status.success?]
    sleep 0.01 until File.exist?(path(:done))
    assert_equal '[true, "child\n"]', File.read(path(:done))
  end

  # Runs a program in a terminal; types each text when it has prompted, until it has answered. Returns all that it wrote.
  def in_terminal(program, typed)
    file = path("program.rb")
    File.write(file, program)
    command = [{ "TERM" => "dumb", "INPUTRC" => File::NULL }, RbConfig.ruby, "-W0", *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, "-ruringmachine", file]
    output = +""
    in_fiber do
      PTY.spawn(*command) do |reader, writer, pid|
        typed.each do |text, answer|
          output << reader.readpartial(1000) until output.end_with?("> ")
          writer.write("#{text}\r")
          output << reader.readpartial(1000) until output.include?(answer)
        end
        loop { output << reader.readpartial(1000) }
      rescue Errno::EIO
        Process.wait(pid)
      end
    end
    output
  end

  def version_of(command) = Open3.capture2e(command, "--version").first[/\d+\.[\d.]+\w*/]
end
