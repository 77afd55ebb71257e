# frozen_string_literal: true

require_relative "compat_helper"

# WEBrick and Puma, Rack and Sinatra: their threads call handlers that use a scheduler, under the load of fibers.
class TestWebServers < CompatTest
  include UnderLoad

  ROW = "Web servers"

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

  def expected(name) = "#{name} true piped"

  def app
    lambda do |environment|
      name = environment["QUERY_STRING"].delete_prefix("name=")
      body = environment["PATH_INFO"] == "/slow" ? slowly(name) : TestWebServers.answer(name)
      [200, { "content-type" => "text/plain", "content-length" => body.bytesize.to_s }, [body]]
    end
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
end
