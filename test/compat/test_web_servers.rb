# frozen_string_literal: true

require "net/http"
require_relative "compat_helper"

# WEBrick and Puma, Rack and Sinatra: their threads call handlers that use a scheduler, under the load of fibers.
class TestWebServers < CompatTest
  ROW = "Web servers"
  CLIENTS = 50

  # An answer that takes three fibers of a scheduler of this thread's own: one waits, one reads a file, one asks a child.
  def self.answer(name)
    parts = []
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule { parts << [0, "#{name} "] if sleep(0.001) }
    Fiber.schedule { parts << [1, File.read("/proc/self/comm").size.positive?.to_s] }
    Fiber.schedule { parts << [2, IO.pipe.then { |reader, writer| Fiber.schedule { writer.tap { it << " piped" }.close } && reader.read.tap { reader.close } }] }
    Fiber.set_scheduler(nil)
    parts.sort.map(&:last).join
  end

  # Loads a server on a port with the requests of fibers; then stops it while some wait for their answers, which come.
  #
  # @yield stops it, gracefully
  def load(crowd, port, requests)
    crowd.all(0...CLIENTS) do |number|
      Net::HTTP.start("127.0.0.1", port) do |http|
        requests.times { |request| assert_equal "#{number}-#{request} true piped", http.get("/answer?name=#{number}-#{request}").body }
      end
    end
    if FIGURES && (wrk = ENV["PATH"].split(":").map { |folder| File.join(folder, "wrk") }.find { |path| File.executable?(path) })
      output = IO.popen([wrk, "-t1", "-c20", "-d1", "http://127.0.0.1:#{port}/answer?name=wrk"], &:read)
      assert_match(/Requests\/sec/, output)
      refute_match(/Non-2xx|Socket errors/, output)
    end
    under_way = Queue.new
    crowd.start { 5.times { under_way.pop } && yield }
    slow = crowd.all(0...5) do |number|
      TCPSocket.open("127.0.0.1", port) do |socket|
        socket.write("GET /slow?name=#{number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        @slow.pop
        under_way << true
        socket.read
      end
    end
    slow.each_with_index { |answer, number| assert answer.end_with?("slow #{number}"), answer }
  end

  # Called by a handler: says that it has begun, and goes on when others have too.
  def slowly(name)
    @slow << true
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule { sleep 0.1 }
    Fiber.set_scheduler(nil)
    "slow #{name}"
  end

  def app
    lambda do |environment|
      name = environment["QUERY_STRING"].delete_prefix("name=")
      body = environment["PATH_INFO"] == "/slow" ? slowly(name) : TestWebServers.answer(name)
      [200, { "content-type" => "text/plain", "content-length" => body.bytesize.to_s }, [body]]
    end
  end

  def setup
    super
    @slow = Queue.new
  end

  # Its own loop runs in a fiber, its connections in threads.
  def test_webrick
    need "webrick"
    requests = sized(5, 40)
    beside_ticks(ROW, "WEBrick in a fiber: requests of 50, and a graceful stop", requests * CLIENTS, "WEBrick" => WEBrick::VERSION) do |crowd|
      server = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: 0, Logger: WEBrick::Log.new(File::NULL), AccessLog: [], MaxClients: 200)
      server.mount_proc("/answer") { |request, answer| answer.body = TestWebServers.answer(request.query["name"]) }
      server.mount_proc("/slow") { |request, answer| answer.body = slowly(request.query["name"]) }
      stopped = Queue.new
      crowd.start do
        server.start
      ensure
        stopped << true
      end
      load(crowd, server.listeners.first.addr[1], requests) { server.shutdown }
      stopped.pop
      assert_equal :Stop, server.status
    end
  end

  def test_rack_on_webrick
    only_measured
    need "rack", "rackup"
    on_webrick("Rack on WEBrick", app, "Rack" => Rack.release, "rackup" => Rackup::VERSION)
  end

  def test_sinatra_on_webrick
    only_measured
    need "sinatra/base", "rackup"
    on_webrick("Sinatra on WEBrick", sinatra, "Sinatra" => Sinatra::VERSION, "rackup" => Rackup::VERSION)
  end

  def sinatra
    test = self
    Class.new(Sinatra::Base) do
      set :environment, :production
      get("/answer") { TestWebServers.answer(params["name"]) }
      get("/slow") { test.slowly(params["name"]) }
    end
  end

  def on_webrick(name, app, versions)
    need "rackup/handler/webrick"
    requests = sized(5, 40)
    beside_ticks(ROW, "#{name}: requests of 50, and a graceful stop", requests * CLIENTS, versions) do |crowd|
      started = Queue.new
      ended = Queue.new
      crowd.start do
        options = { Host: "127.0.0.1", Port: 0, Logger: WEBrick::Log.new(File::NULL), AccessLog: [], MaxClients: 200 }
        Rackup::Handler::WEBrick.run(app, **options) { |server| started << server }
      ensure
        ended << true
      end
      server = started.pop
      load(crowd, server.listeners.first.addr[1], requests) { server.shutdown }
      ended.pop
    end
  end

  def test_puma
    only_measured
    need "rack", "puma", "puma/server"
    on_puma("Rack on Puma", app, "Puma" => Puma::Const::VERSION, "Rack" => Rack.release)
  end

  def test_sinatra_on_puma
    only_measured
    need "sinatra/base", "puma", "puma/server"
    on_puma("Sinatra on Puma", sinatra, "Puma" => Puma::Const::VERSION, "Sinatra" => Sinatra::VERSION)
  end

  def on_puma(name, app, versions)
    requests = sized(5, 40)
    beside_ticks(ROW, "#{name}: requests of 50, and a graceful stop", requests * CLIENTS, versions) do |crowd|
      server = Puma::Server.new(app, nil, min_threads: 10, max_threads: 10, log_writer: Puma::LogWriter.null)
      port = server.add_tcp_listener("127.0.0.1", 0).addr[1]
      server.run
      load(crowd, port, requests) { server.stop(true) }
    end
  end
end
