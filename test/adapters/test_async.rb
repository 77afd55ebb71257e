# frozen_string_literal: true

require "test_helper"

# Async, and its HTTP and WebSocket, on a machine, without a change: programs of their own, that say what they have seen.
class TestAsync < PatientTest
  # Debian's packages, of io-event what is Ruby (script/packages.sh).
  FOLDERS = Gem.path.flat_map do |path|
    Dir[File.join(path, "gems/{async,console,fiber,io,metrics,protocol,traces}-*/lib")] + Dir[File.join(path, "../../../lib/*/rubygems-integration/*/gems/io-event-*/lib")]
  end.freeze
  PREAMBLE = <<~RUBY
    # Not that its native selectors are not there.
    module Kernel
      alias warned warn
      def warn(*texts, **) = texts.grep_v(/native event selector/).each { |text| warned(text, **) }
    end
    require "uringmachine/async"
    require "async"
    require "socket"
    require "timeout"
    require "tempfile"
    def port(server) = server.local_address.ip_port
  RUBY

  def run_async(code, env: { "IO_EVENT_SELECTOR" => "UringMachine" })
    skip "Async is not there" if FOLDERS.none? { |folder| File.exist?(File.join(folder, "async.rb")) }
    output, status = ruby(PREAMBLE + code, env: { "RUBYLIB" => [*FOLDERS, ENV["RUBYLIB"]].compact.join(":"), **env })
    assert_predicate status, :success?, output
    output.lines(chomp: true)
  end

  # The variable, an argument, and the wrapper that logs.
  def test_it_is_chosen
    code = "Async { puts Fiber.scheduler.instance_variable_get(:@selector).class; sleep(0.001) }"
    assert_equal ["UringMachine::Selector"], run_async(code)
    assert_equal ["IO::Event::Debug::Selector"], run_async(code, env: { "IO_EVENT_SELECTOR" => "UringMachine", "IO_EVENT_DEBUG_SELECTOR" => "1" }).grep_v(/-> |Entering|Returning|^ *\d/).first(1)
    assert_equal ["UringMachine::Selector", "done"], run_async(<<~RUBY, env: {})
      scheduler = Async::Scheduler.new(selector: UM::Selector.new(Fiber.current))
      Fiber.set_scheduler(scheduler)
      puts scheduler.instance_variable_get(:@selector).class
      Fiber.schedule { sleep(0.001) && puts("done") }
    RUBY
  end

  def test_connections
    assert_equal %w[100 5000], run_async(<<~RUBY)
      echoed = 0
      clients = Async do |task|
        server = TCPServer.new("127.0.0.1", 0)
        serving = task.async do
          loop do
            peer = server.accept
            task.async { (line = peer.gets) ? peer.write(line) : break while true; peer.close }
          end
        end
        clients = Array.new(100) do |index|
          task.async do
            TCPSocket.open("127.0.0.1", port(server)) do |socket|
              50.times do |round|
                socket.puts("\#{index} \#{round}")
                socket.gets == "\#{index} \#{round}\\n" ? echoed += 1 : raise("another's")
              end
            end
            index
          end
        end
        ended = clients.map(&:wait)
        serving.stop
        server.close
        ended
      end.wait
      puts clients.uniq.size, echoed
    RUBY
  end

  def test_time_limits
    expected = ["Async::TimeoutError", "Async::TimeoutError", "IO::TimeoutError", "nil", "Timeout::Error", "[]", "rest"]
    assert_equal expected, run_async(<<~RUBY)
      def raised = yield.inspect rescue $!.class
      Async do |task|
        reader, writer = IO.pipe
        puts raised { task.with_timeout(0.002) { sleep } }
        puts raised { task.with_timeout(0.002) { reader.read(1) } }
        reader.timeout = 0.002
        puts raised { reader.read(1) }
        reader.timeout = nil
        puts raised { reader.wait_readable(0.002) }
        puts raised { Timeout.timeout(0.002) { Thread::Queue.new.pop } }
        puts raised { Array(IO.select([reader], nil, nil, 0.002)) }
        # Nothing of those waits is left to take what comes.
        writer << "rest"
        puts reader.readpartial(10)
      end
    RUBY
  end

  def test_what_others_do
    assert_equal %w[popped child 3 3 file in-turn locked ticked], run_async(<<~RUBY)
      Async do |task|
        ticks = 0
        ticking = task.async { loop { sleep(0.001) && ticks += 1 } }
        queue = Thread::Queue.new
        Thread.new { sleep(0.002) && queue << "popped" }
        puts queue.pop, `echo child`
        system("exit 3")
        puts $?.exitstatus, Process.wait2(Process.spawn("sleep 0.01; exit 3")).last.exitstatus
        Tempfile.create { |file| file.write("file") && file.rewind && puts(file.read) }
        order = []
        3.times.map { |number| task.async { 3.times { |round| order << [round, number] && task.yield } } }.each(&:wait)
        # Whoever is started begins at once, behind those who wait for their turn.
        puts order.each_cons(2).none? { |one, other| one.last == other.last } ? "in-turn" : order.inspect
        mutex = Mutex.new
        held = 0
        10.times.map { task.async { mutex.synchronize { (held += 1) == 1 && sleep(0.0001) && held -= 1 } } }.each(&:wait)
        puts held.zero? && !mutex.locked? ? "locked" : "held"
        puts ticks.positive? ? "ticked" : "stood still"
        ticking.stop
      end
    RUBY
  end

  def test_tasks_that_are_stopped
    assert_equal %w[sleep read accept pop true], run_async(<<~RUBY)
      before = Dir.children("/proc/self/fd").size
      Async do |task|
        reader, writer = IO.pipe
        server = TCPServer.new("127.0.0.1", 0)
        queue = Thread::Queue.new
        waits = { sleep: -> { sleep }, read: -> { reader.read(1) }, accept: -> { server.accept }, pop: -> { queue.pop } }
        waits.each do |name, wait|
          stopped = task.async do
            wait.call
          ensure
            sleep(0.0001)
            puts name
          end
          sleep(0.001)
          stopped.stop
          stopped.wait
        end
        [reader, writer, server].each(&:close)
      end
      GC.start
      puts Dir.children("/proc/self/fd").size <= before + 2
    RUBY
  end

  # Whether the block has one of the hooks of Ruby called.
  ASKS = <<~RUBY
    def asks?
      count = 0
      TracePoint.new(:call) { |point| count += 1 if %i[io_read io_write io_wait kernel_sleep block].include?(point.method_id) }.enable { yield }
      count.positive?
    end
  RUBY

  def test_reads_need_no_hook
    expected = ['[false, "line\\n"]', '[false, "rest"]', '[false, "later"]', '[false, "le"]', "false", "IO::TimeoutError", "Async::TimeoutError", "unwound", "IOError", "last"]
    assert_equal expected, run_async(ASKS + <<~RUBY)
      def asked = [nil, nil].tap { |found| found[0] = asks? { found[1] = yield } }
      Async do |task|
        near, far = UNIXSocket.pair
        near.write("line\nrest")
        p asked { far.gets }, asked { far.readpartial(100) }
        task.async { sleep(0.001) && near.write("later") }
        p asked { far.readpartial(100) }
        Tempfile.create { |file| file.write("file") && file.flush && p(asked { file.pread(2, 2) }) }
        reader, writer = IO.pipe
        task.async { sleep(0.001) && writer.write("x") }
        p asks? { reader.getc }
        far.timeout = 0.002
        far.gets rescue puts($!.class)
        far.timeout = nil
        task.with_timeout(0.002) { far.gets } rescue puts($!.class)
        stopped = task.async { begin far.readpartial(1) ensure puts("unwound") end }
        stopped.stop
        reading = task.async { reader.gets rescue puts($!.class) }
        sleep(0.001)
        reader.close
        reading.wait
        # Nothing of those is left to take what comes.
        near.write("last\n")
        puts far.gets
      end
    RUBY
  end

  def test_what_a_socket_takes_at_once_is_written_without_a_hook
    expected = ["[false, 3]", "[false, 4]", "onetwo3four", "[true, 3000000]", "3000000", "IO::TimeoutError", "Errno::EPIPE", "[true, 3]"]
    assert_equal expected, run_async(ASKS + <<~RUBY)
      def asked = [nil, nil].tap { |found| found[0] = asks? { found[1] = yield } }
      Async do |task|
        near, far = UNIXSocket.pair
        p asked { near.write("one") }, asked { near.write("two", 3) }
        near.puts("four")
        puts far.readpartial(100)
        reading = task.async { sleep(0) && far.read(3_000_000).bytesize }
        p asked { near.write("x" * 3_000_000) }
        puts reading.wait
        near.timeout = 0.002
        loop { near.write("x" * 65_536) } rescue puts($!.class)
        far.close
        near.write("x") rescue puts($!.class)
        near, far = UNIXSocket.pair
        Fiber.scheduler.define_singleton_method(:io_write) { |*arguments| super(*arguments) }
        p asked { near.write("own") }
      end
    RUBY
  end

  # A subclass's, one object's, a module's, and those that are put between.
  def test_a_program_s_own_hooks_are_called
    code = ASKS + <<~RUBY
      def asks_under?(scheduler)
        asked = nil
        Thread.new do
          Fiber.set_scheduler(scheduler.call)
          Fiber.schedule { sleep(0) && asked = asks? { block_given? ? yield : UNIXSocket.pair.first.write("x") } }
        end.join
        asked
      end
      selector = -> { UM::Selector.new(Fiber.current) }
      p asks_under?(-> { Async::Scheduler.new(selector: selector.call) })
      p asks_under?(-> { Class.new(Async::Scheduler).new(selector: selector.call) })
      p asks_under?(-> { Class.new(Async::Scheduler) { def io_write(...) = super }.new(selector: selector.call) })
      p asks_under?(-> { Async::Scheduler.new(selector: selector.call).tap { |made| def made.io_write(...) = super } })
      p asks_under?(-> { Class.new(Async::Scheduler) { def block(...) = super }.new(selector: selector.call) }) { sleep(0) }
      p asks_under?(-> { Async::Scheduler.new(selector: Class.new(UM::Selector) { def io_write(...) = super }.new(Fiber.current)) })
      p asks_under?(-> { Async::Scheduler.new(selector: IO::Event::Debug::Selector.new(selector.call, log: nil)) })
      p asks_under?(-> { Async::Scheduler.new(selector: IO::Event::Selector::Select.new(Fiber.current)) })
      Async::Scheduler.prepend(Module.new { def io_write(...) = super })
      p asks_under?(-> { Async::Scheduler.new(selector: selector.call) })
    RUBY
    assert_equal %w[false false true true true true true true true], run_async("require 'io/event/debug/selector'\n#{code}")
    reopened = "class Async::Scheduler; def io_write(io, buffer, length, offset) = @selector.io_write(Fiber.current, io, buffer, length, offset); end\n"
    assert_equal ["true"], run_async("#{ASKS}#{reopened}Async { sleep(0) && p(asks? { UNIXSocket.pair.first.write('x') }) }")
  end

  # As Async's own: it ends after its time, or when somebody switches to the fiber.
  def test_sleeps_are_the_machine_s
    expected = ["false", "true", "3 1 2", "[false, nil]", "Async::TimeoutError", "unwound", "raised", "woken"]
    assert_equal expected, run_async(ASKS + <<~RUBY)
      Async do |task|
        p asks? { sleep(0.001) }, asks? { task.async { sleep(Rational(1, 1000)) }.wait }
        order = []
        [[0.003, 1], [0.005, 2], [0, 3]].map { |time, number| task.async { sleep(time) && order << number } }.each(&:wait)
        puts order.join(" ")
        pushed = task.async { Fiber.scheduler.kernel_sleep(100) }
        Fiber.scheduler.push(pushed.fiber)
        p [Fiber.scheduler.kernel_sleep(0.001), pushed.wait]
        task.with_timeout(0.001) { sleep(100) } rescue puts($!.class)
        stopped = task.async { begin sleep(100) ensure puts("unwound") end }
        stopped.stop
        stopped.wait
        Fiber.scheduler.raise(task.async { sleep(100) rescue puts($!.message) }.fiber, "raised")
        mutex, condition = Mutex.new, ConditionVariable.new
        waiting = task.async { mutex.synchronize { condition.wait(mutex, 100) && :woken } }
        mutex.synchronize { condition.signal }
        puts waiting.wait
      end
    RUBY
  end

  # Its turns are Async's own: an interrupt ends its loop, a limit a fiber.
  def test_whoever_yields_on_and_on_is_stopped
    assert_equal ["Async::TimeoutError", "interrupted"], run_async(<<~RUBY)
      Async { |task| task.with_timeout(0.002) { loop { task.yield } } rescue puts($!.class) }
      Thread.new do
        scheduler = Async::Scheduler.new
        Fiber.set_scheduler(scheduler)
        scheduler.async { |task| loop { task.yield } }
        Thread.new { sleep(0.002) && scheduler.interrupt }
        scheduler.run
        puts "interrupted"
        scheduler.terminate
      end.join
    RUBY
  end

  def test_whoever_writes_on_and_on_lets_others_go
    assert_equal ["gone"], run_async(<<~RUBY)
      Async do |task|
        near, far = UNIXSocket.pair
        others = task.async { sleep(0.001) && :gone }
        near.write("x") && far.read_nonblock(1) until others.finished?
        puts others.wait
      end
    RUBY
  end

  # Ruby 4.0 tells whoever waits of a close; so does ours on 3.4.
  def test_a_close_ends_a_wait
    assert_equal %w[IOError done], run_async(<<~RUBY)
      Async do |task|
        reader, writer = IO.pipe
        reading = task.async { reader.read(1) rescue puts($!.class) }
        sleep(0.001)
        reader.close
        reading.wait
        writer.close
        puts "done"
      end
    RUBY
  end

  def test_a_signal_stops_it
    assert_equal %w[unwound Interrupt], run_async(<<~RUBY)
      begin
        Async do |task|
          task.async { begin sleep ensure puts("unwound") end }
          Thread.new { sleep(0.002) && Process.kill(:INT, Process.pid) }
        end
      rescue Interrupt => e
        puts e.class
      end
    RUBY
  end

  def test_a_child_of_fork_has_its_own
    assert_equal %w[child parent], run_async(<<~RUBY)
      $stdout.sync = true
      Async do
        reader, writer = IO.pipe
        pid = fork { Thread.new { Async { sleep(0.001) && puts("child") } }.join }
        Process.wait(pid)
        writer << "x"
        reader.read(1)
        puts "parent"
      end
    RUBY
  end

  def test_many_tasks_that_sleep
    assert_equal %w[10000], run_async(<<~RUBY)
      puts Async { |task| Array.new(10_000) { task.async { sleep(0.01) && 1 } }.sum(&:wait) }.wait
    RUBY
  end

  HTTP = <<~RUBY
    require "async/http"
    require "async/http/server"
    require "async/http/client"
    require "async/http/endpoint"
    require "async/barrier"
    # Runs the block beside a server, which answers by the app.
    def serve(app, **options)
      Async do |task|
        bound = Async::HTTP::Endpoint.parse("http://127.0.0.1:0").bound
        port = bound.sockets.first.to_io.local_address.ip_port
        endpoint = Async::HTTP::Endpoint.parse("http://127.0.0.1:\#{port}", **options)
        server = Async::HTTP::Server.new(Protocol::HTTP::Middleware.for(&app), bound, protocol: endpoint.protocol, scheme: "http")
        serving = task.async { server.run }
        client = Async::HTTP::Client.new(endpoint, limit: 200)
        yield client, task, endpoint
      ensure
        client.close
        serving.stop
        bound.close
      end.wait
    end
  RUBY

  def test_http_1
    assert_equal ["1000", "[200]", "300000"], run_async(HTTP + <<~RUBY)
      app = ->(request) { Protocol::HTTP::Response[200, {}, [request.path, request.read.to_s]] }
      serve(app) do |client, task|
        answers = Array.new(1000) { |index| task.async { client.get("/\#{index}").then { |answer| [answer.status, answer.read] } } }.map(&:wait)
        puts answers.each_with_index.count { |answer, index| answer.last == "/\#{index}" }, answers.map(&:first).uniq.inspect
        puts client.post("/", {}, ["b" * 100_000] * 3).read.count("b")
      end
    RUBY
  end

  def test_http_2
    assert_equal ["1000"], run_async(HTTP + <<~RUBY)
      serve(->(request) { Protocol::HTTP::Response[200, {}, [request.path]] }, protocol: Async::HTTP::Protocol::HTTP2) do |client, task|
        puts Array.new(1000) { |index| task.async { client.get("/\#{index}").read == "/\#{index}" } }.map(&:wait).count(true)
      end
    RUBY
  end

  # Requests that are given up disturb no others, and the server goes on.
  def test_requests_that_are_given_up
    assert_equal %w[50 50 quick], run_async(HTTP + <<~RUBY)
      gate = Thread::Queue.new
      app = ->(request) { (gate.pop if request.path.start_with?("/slow")) || Protocol::HTTP::Response[200, {}, ["quick"]] }
      serve(app) do |client, task|
        late = Array.new(50) { |index| task.async { task.with_timeout(0.01) { client.get("/slow/\#{index}").read } rescue :late } }
        slow = Array.new(50) { |index| task.async { client.get("/slow/\#{index}").read } }
        sleep(0.02)
        slow.each(&:stop)
        puts late.map(&:wait).count(:late), slow.count(&:stopped?), client.get("/").read
        gate.close
      end
    RUBY
  end

  def test_websockets
    assert_equal %w[20 closed], run_async(HTTP + <<~RUBY)
      require "async/websocket/client"
      require "async/websocket/adapters/http"
      app = lambda do |request|
        Async::WebSocket::Adapters::HTTP.open(request) do |connection|
          while (message = connection.read)
            connection.write(message)
            connection.flush
          end
        end || Protocol::HTTP::Response[404, {}, []]
      end
      serve(app) do |_, task, endpoint|
        talks = Array.new(20) do |index|
          task.async do
            Async::WebSocket::Client.connect(endpoint) do |connection|
              Array.new(20) do |round|
                connection.write(Protocol::WebSocket::TextMessage.new("\#{index} \#{round}"))
                connection.flush
                connection.read.to_str
              end == Array.new(20) { |round| "\#{index} \#{round}" }
            end
          end
        end
        puts talks.map(&:wait).count(true), "closed"
      end
    RUBY
  end
end
