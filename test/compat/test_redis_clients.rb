# frozen_string_literal: true

require_relative "compat_helper"

# redis-client and connection_pool, and redis and Sidekiq upon them, with Debian's Redis.
class TestRedisClients < CompatTest
  ROW = "Redis"
  CLIENTS = 50

  def with_redis
    need "redis-client", "connection_pool"
    command = need_command("redis-server")
    # What has been answered is on the disk.
    configured = ->(server) { [command, "--port", server.port.to_s, "--bind", "127.0.0.1", "--dir", server.folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always"] }
    LocalServer.run(configured) do |server|
      @config = RedisClient.config(host: "127.0.0.1", port: server.port)
      @versions = { "redis-client" => RedisClient::VERSION, "connection_pool" => ConnectionPool::VERSION, "Redis" => IO.popen([command, "--version"], &:read)[/v=([\d.]+)/, 1] }
      yield server
    end
  end

  # Runs the block again while Redis says that it has not read its file yet.
  def once_loaded
    yield
  rescue RedisClient::CommandError => error
    raise unless error.message.start_with?("LOADING")

    sleep 0.01
    retry
  end

  def test_pipelines_over_a_pool
    pipelines = sized(5, 50)
    with_redis do
      beside_ticks(ROW, "redis-client: pipelines of 100 commands, of 50 over a pool of 5", pipelines * CLIENTS, @versions) do |crowd|
        pool = @config.new_pool(size: 5, timeout: 60)
        pool.call("FLUSHALL")
        crowd.all(0...CLIENTS) do |number|
          pipelines.times do |round|
            answers = pool.pipelined do |pipeline|
              50.times do |index|
                pipeline.call("INCR", "count:#{number}")
                pipeline.call("ECHO", "#{round} #{index}")
              end
            end
            assert_equal (0...50).flat_map { |index| [(round * 50) + index + 1, "#{round} #{index}"] }, answers
          end
        end
        assert_equal [(pipelines * 50).to_s], pool.call("MGET", *Array.new(CLIENTS) { |number| "count:#{number}" }).uniq
        assert_operator pool.call("INFO", "clients")[/connected_clients:(\d+)/, 1].to_i, :<=, 5
        # What fails, fails by itself.
        pool.call("SET", "text", "x")
        error = assert_raises(RedisClient::CommandError) { pool.pipelined { |pipeline| %w[text count:0].each { |key| pipeline.call("INCR", key) } } }
        assert_match(/not an integer/, error.message)
        assert_equal ((pipelines * 50) + 1).to_s, pool.call("GET", "count:0")
      ensure
        pool&.close
      end
    end
  end

  def test_transactions
    with_redis do
      rounds = sized(5, 50)
      beside_ticks(ROW, "redis-client: WATCH and MULTI by 20 on one key", rounds * 20, @versions) do |crowd|
        @config.new_client.call("SET", "sum", 0)
        crowd.all(0...20) do
          client = @config.new_client
          rounds.times do
            done = client.multi(watch: ["sum"]) do |transaction|
              sum = client.call("GET", "sum").to_i
              transaction.call("SET", "sum", sum + 1)
            end
            redo unless done
          end
          client.close
        end
        assert_equal (rounds * 20).to_s, @config.new_client.call("GET", "sum")
      end
    end
  end

  def test_pub_sub
    messages = sized(50, 1000)
    with_redis do
      beside_ticks(ROW, "redis-client: messages published to 10 subscribers", messages * 10, @versions) do |crowd|
        subscribed = Queue.new
        crowd.all(0..10) do |number|
          client = @config.new_client
          if number == 10
            10.times { subscribed.pop }
            messages.times { |message| assert_equal 10, client.call("PUBLISH", "channel", message) }
          else
            subscription = client.pubsub
            subscription.call("SUBSCRIBE", "channel")
            assert_equal ["subscribe", "channel", 1], subscription.next_event(60)
            # Nothing has been said yet.
            assert_nil subscription.next_event(0.01)
            subscribed << true
            assert_equal((0...messages).map { |message| ["message", "channel", message.to_s] }, Array.new(messages) { subscription.next_event(60) })
            subscription.close
          end
          client.close
        end
      end
    end
  end

  def test_blocking_pops
    items = sized(20, 200)
    with_redis do
      beside_ticks(ROW, "redis-client: items that 20 wait for with BLPOP", items * 20, @versions) do |crowd|
        popped = crowd.all(0..20) do |number|
          client = @config.new_client
          if number == 20
            (items * 20).times { |item| client.call("RPUSH", "list", item) }
            []
          else
            Array.new(items) { client.blocking_call(60, "BLPOP", "list", 0)[1].to_i }
          end
        ensure
          client.close
        end
        assert_equal (0...(items * 20)).to_a, popped.flatten.sort
        popped.each { |of_one| assert_equal of_one.sort, of_one }
      end
    end
  end

  # A pop that nobody answers, ended by Redis, by the client's own limit, and by a Timeout: the client goes on.
  def test_limits_of_blocking_pops
    with_redis do
      beside_ticks(ROW, "redis-client: BLPOP ended by its limit, the client's, and a Timeout", CLIENTS * 3, @versions) do |crowd|
        crowd.all(0...CLIENTS) do |number|
          client = @config.new_client
          assert_nil client.blocking_call(60, "BLPOP", "empty", 0.05)
          assert_raises(RedisClient::ReadTimeoutError) { client.blocking_call(0.05, "BLPOP", "empty", 30) }
          assert_raises(Timeout::Error) { Timeout.timeout(0.05) { client.blocking_call(60, "BLPOP", "empty", 30) } }
          assert_equal number.to_s, client.call("ECHO", number)
          client.close
        end
      end
    end
  end

  def test_a_server_that_is_killed_and_started_again
    with_redis do |server|
      needed = sized(30, 200)
      beside_ticks(ROW, "redis-client: INCRs of 20 while Redis is killed and started again", needed * 20, @versions) do |crowd|
        @config.new_client.call("FLUSHALL")
        halfway = Queue.new
        counts = crowd.all(0..20) do |number|
          if number == 20
            20.times { halfway.pop }
            server.stop(:KILL)
            server.start
            next
          end
          client = @config.new_client
          answered = 0
          failed = 0
          while answered < needed
            begin
              once_loaded { client.call_once("INCR", "count:#{number}") }
              answered += 1
              halfway << true if answered == needed / 2
            rescue RedisClient::ConnectionError, Errno::ECONNREFUSED
              failed += 1
              sleep 0.01
            end
          end
          # One that was not answered may have been done.
          assert_includes needed..(needed + failed), client.call("GET", "count:#{number}").to_i
          client.close
          failed
        end
        assert_equal 20, counts.compact.size
      end
    end
  end

  def test_redis_rb
    only_measured
    need "redis"
    with_redis do |server|
      beside_ticks(ROW, "redis: commands of 50", CLIENTS * 100, "redis" => Redis::VERSION) do |crowd|
        crowd.all(0...CLIENTS) do |number|
          redis = Redis.new(host: "127.0.0.1", port: server.port)
          redis.del("hash:#{number}", "set:#{number}")
          50.times { |index| redis.hset("hash:#{number}", "key#{index}", index) }
          50.times { |index| redis.sadd("set:#{number}", [index % 10]) }
          assert_equal((0...50).to_h { |index| ["key#{index}", index.to_s] }, redis.hgetall("hash:#{number}"))
          assert_equal ("0".."9").to_a, redis.smembers("set:#{number}").sort
          redis.close
        end
      end
    end
  end

  # A job that has a scheduler in its thread of Sidekiq's, and three fibers that talk to Redis.
  class Job
    class << self
      attr_accessor :config, :begun
    end

    def perform(number)
      Job.begun << number
      scheduler = UM::FiberScheduler.new
      scheduler.abort_on_exception = true
      Fiber.set_scheduler(scheduler)
      3.times { |part| Fiber.schedule { done(part, number) } }
    ensure
      Fiber.set_scheduler(nil)
    end

    def done(part, number)
      client = Job.config.new_client
      client.call("SADD", "done:#{part}", number)
    ensure
      client&.close
    end
  end

  def test_sidekiq
    only_measured
    need "sidekiq", "sidekiq/embedded", "sidekiq/api"
    with_redis do |server|
      redis_options = { url: "redis://127.0.0.1:#{server.port}", reconnect_attempts: [0.05] * 100 }
      # A job that fails is tried again within seconds.
      Job.include(Sidekiq::Job)
      Job.sidekiq_retry_in { 0 }
      Job.begun = Queue.new
      Job.config = RedisClient.config(**redis_options)
      Sidekiq.configure_client { |config| config.redis = redis_options }
      program = "Sidekiq: jobs, given by 50, done by 5 threads, a scheduler in each, while Redis is killed and started again"
      beside_ticks(ROW, program, 1000, "Sidekiq" => Sidekiq::VERSION) do |crowd|
        redis = Job.config.new_client
        redis.call("FLUSHALL")
        Job.begun.clear
        config = Sidekiq::Config.new(average_scheduled_poll_interval: 0.2)
        config.redis = redis_options
        config.concurrency = 5
        config.logger = Logger.new(File::NULL)
        sidekiq = Sidekiq::Embedded.new(config)
        begun = []
        crowd.all(0..50) do |number|
          next 20.times { |job| once_loaded { Job.perform_async((number * 20) + job) } } if number < 50

          sidekiq.run
          300.times { begun << Job.begun.pop }
          server.stop(:KILL)
          server.start
        end
        stats = once_loaded { Sidekiq::Stats.new }
        sleep 0.05 until once_loaded { stats.fetch_stats! && (stats.enqueued + stats.retry_size).zero? }
        sidekiq.stop
        begun << Job.begun.pop until Job.begun.empty?
        # What was on its way to a thread as Redis was killed, Sidekiq loses. Each that has begun has been done.
        assert_operator begun.uniq.size, :>=, 995
        3.times { |part| assert_equal begun.uniq.sort, redis.call("SMEMBERS", "done:#{part}").map(&:to_i).sort }
      end
    end
  end
end
