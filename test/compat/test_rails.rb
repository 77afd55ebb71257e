# frozen_string_literal: true

require_relative "compat_helper"

# ActiveRecord with PostgreSQL and SQLite, CurrentAttributes, and an application on Puma and WEBrick, all with isolation by fiber.
class TestRails < CompatTest
  include UnderLoad

  ROW = "Rails"

  # Rails 8's own. The `timeout` of 7.2 waits for SQLite's lock within SQLite, which holds Ruby's: whoever has the lock would never go on.
  module BusyHandler
    private

    def configure_connection
      super
      @raw_connection.busy_handler_timeout = @config[:timeout] if @config[:timeout]
    end
  end

  # The application is for all tests of this file: Rails has one.
  def need_rails
    only_measured
    need "active_record", "rails", "action_controller/railtie"
    ENV["RAILS_ENV"] = "production"
    # Each test connects to a database of its own.
    ENV["DATABASE_URL"] = "sqlite3::memory:"
    require_relative "rails_application"
    RailsApplication::Application.initialize! unless RailsApplication::Application.initialized?
    assert_equal :fiber, ActiveSupport::IsolatedExecutionState.isolation_level
    @rails = { "Rails" => Rails.version }
  end

  # ActiveRecord connected to a database for as long as the block runs, with a table of accounts.
  def with_records(**options)
    ActiveRecord::Base.establish_connection(pool: 10, checkout_timeout: 60, **options)
    ActiveRecord::Schema.verbose = false
    ActiveRecord::Schema.define do
      create_table(:accounts, force: true) { |table| table.integer :sum, null: false }
      create_table(:visits, force: true) { |table| table.string :name, :page }
    end
    account = Class.new(ActiveRecord::Base) { self.table_name = "accounts" }
    yield account, ActiveRecord::Base.connection_pool
  ensure
    # What this fiber has used for the tables.
    ActiveRecord::Base.connection_handler.clear_all_connections!(:all)
  end

  def with_records_in_postgresql(**options, &)
    with_records(adapter: "postgresql", host: "127.0.0.1", port: @address[:port], username: "postgres", database: "postgres", **options, &)
  end

  def test_transactions
    need_rails
    with_postgresql do
      beside_ticks(ROW, "ActiveRecord on pg: transactions of 50 over a pool of 10", CLIENTS * 20, @versions.merge(@rails)) do |crowd|
        with_records_in_postgresql do |account, pool|
          accounts = Array.new(10) { account.create!(sum: 1000) }
          crowd.all(0...CLIENTS) do |number|
            20.times do |round|
              ids = [number % 10, (number + round + 1) % 10].map { |index| accounts[index].id }
              account.transaction do
                # Always in one order: no deadlock.
                account.where(id: ids).order(:id).lock.load
                account.update_counters(ids.first, sum: -1)
                account.update_counters(ids.last, sum: 1)
                raise ActiveRecord::Rollback if round % 5 == 4
              end
            end
          end
          assert_equal 10_000, account.sum(:sum)
          assert_operator pool.stat[:connections], :<=, 10
        end
      end
    end
  end

  # One file, and the lock of its writer.
  def test_transactions_in_sqlite
    need_rails
    need "sqlite3", "active_record/connection_adapters/sqlite3_adapter"
    ActiveRecord::ConnectionAdapters::SQLite3Adapter.prepend(BusyHandler)
    beside_ticks(ROW, "ActiveRecord on sqlite3: transactions of 50 over a pool of 10", CLIENTS * 10, @rails.merge("sqlite3" => SQLite3::VERSION)) do |crowd|
      Dir.mktmpdir("um") do |folder|
        with_records(adapter: "sqlite3", database: File.join(folder, "db"), timeout: 60_000) do |account|
          crowd.all(0...CLIENTS) do |number|
            10.times do |round|
              account.transaction do
                account.create!(sum: number)
                sleep 0
                assert_equal round + 1, account.where(sum: number).count
              end
            end
          end
          assert_equal [CLIENTS * 10, 10 * (0...CLIENTS).sum], [account.count, account.sum(:sum)]
        end
      end
    end
  end

  # Raised in those that wait for the database.
  Cut = Class.new(StandardError)

  def until_asleep(count)
    connection = connect
    sleep 0.001 until connection.exec("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'").getvalue(0, 0) == count.to_s
    connection.close
  end

  # A pool that is used up; what is raised in transactions; kills in queries; those that end without giving back what they have taken.
  def test_connections_come_back
    need_rails
    with_postgresql do
      beside_ticks(ROW, "ActiveRecord on pg: waits for a connection, kills, connections left behind", 100, @versions.merge(@rails)) do |crowd|
        with_records_in_postgresql(checkout_timeout: 0.05) do |account, pool|
          pool.release_connection
          taken = Queue.new
          release = Queue.new
          holders = Array.new(10) do
            crowd.start do
              pool.with_connection do |connection|
                connection.select_value("SELECT 1")
                taken << true
                release.pop
              end
            end
          end
          10.times { taken.pop }
          assert_equal [10, 10], pool.stat.values_at(:connections, :busy)
          crowd.all(0...40) { assert_raises(ActiveRecord::ConnectionTimeoutError) { pool.with_connection { flunk } } }
          10.times { release << true }
          sleep 0.001 while holders.any?(&:alive?)
          assert_equal [10, 0, 0], pool.stat.values_at(:connections, :busy, :waiting)

          rolled_back = Array.new(10) do |number|
            crowd.start do
              account.transaction do
                account.create!(sum: number)
                account.lease_connection.select_value("SELECT pg_sleep(30)")
              end
            rescue Cut
              pool.release_connection
            end
          end
          until_asleep(10)
          rolled_back.each { |one| one.raise(Cut) }
          sleep 0.001 while rolled_back.any?(&:alive?)
          assert_equal [0, 0], [account.count, pool.stat[:busy]]

          killed = Array.new(10) { crowd.start { pool.with_connection { |connection| connection.select_value("SELECT pg_sleep(1)") } } }
          until_asleep(10)
          killed.each(&:kill)
          sleep 0.001 while killed.any?(&:alive?)
          assert_equal 0, pool.stat[:busy]

          # Taken, and not given back: whoever finds none looks for those.
          left = Array.new(10) { crowd.start { pool.lease_connection.select_value("SELECT 1") } }
          sleep 0.001 while left.any?(&:alive?)
          assert_equal 10, pool.stat[:dead]
          pool.checkout_timeout = 60
          crowd.all(0...40) { |number| pool.with_connection { |connection| assert_equal number, connection.select_value("SELECT #{number}") } }
          assert_equal [0, 0], pool.stat.values_at(:busy, :dead)
        end
      end
    end
  end

  def test_asynchronous_queries
    need_rails
    with_postgresql do
      beside_ticks(ROW, "ActiveRecord on pg: load_async of 50, done by 4 threads", CLIENTS * 10, @versions.merge(@rails)) do |crowd|
        ActiveRecord.async_query_executor = :global_thread_pool
        with_records_in_postgresql(pool: 15) do |account|
          10.times { |number| account.create!(sum: number) }
          crowd.all(0...CLIENTS) do |number|
            10.times do |round|
              found = account.where(sum: number % 10).load_async
              count = account.where(sum: ..round).async_count
              assert_equal [[number % 10], round + 1], [found.map(&:sum), count.value]
            end
          end
        end
      ensure
        ActiveRecord.async_query_executor = nil
      end
    end
  end

  def test_current_attributes
    need_rails
    beside_ticks(ROW, "CurrentAttributes, I18n.locale and Time.zone of 50", CLIENTS * 20, @rails) do |crowd|
      current = RailsApplication::Current
      zones = ActiveSupport::TimeZone.all.map(&:name)
      crowd.all(0...CLIENTS) do |number|
        20.times do |round|
          Rails.application.executor.wrap do
            assert_nil current.visitor
            current.set(visitor: "#{number}-#{round}") do
              Time.use_zone(zones[number]) do
                sleep 0.0005
                assert_equal ["#{number}-#{round}", zones[number]], [current.visitor, Time.zone.name]
                # Nobody inherits them.
                inner = Queue.new
                crowd.start { inner << current.visitor }
                assert_nil inner.pop
              end
            end
          end
        end
      end
    end
  end

  # In threads each call has a scheduler of its own, in fibers the thread's.
  def test_fibers_of_a_request_that_are_cut_short
    need_rails
    with_postgresql do
      beside_ticks(ROW, "fibers of 10 requests: one fails, one is cut short in a transaction", 10 * 4, @versions.merge(@rails)) do |crowd|
        with_records_in_postgresql(pool: 30) do |account, pool|
          at_once = RailsApplication::AtOnce
          crowd.all(0...10) do |number|
            error = assert_raises(KeyError) { at_once.call(-> { sleep 0.001 }, -> { raise KeyError, number.to_s }) }
            assert_equal [number.to_s, 2], [error.message, at_once.call(-> { account.count }, -> { 2 }).last]
            begun = Queue.new
            ended = Queue.new
            half_done = lambda do
              account.transaction do
                account.create!(sum: number)
                begun << true
                sleep
              end
            end
            request = crowd.start do
              at_once.call(half_done, -> { sleep })
            rescue Cut
              ended << true
            end
            begun.pop
            request.raise(Cut)
            ended.pop
          end
          # They roll back by themselves.
          pool.release_connection
          sleep 0.001 until pool.stat[:busy].zero?
          assert_equal 0, account.count
        end
      end
    end
  end

  def test_an_application_on_puma
    need "rack", "puma", "puma/server"
    with_application { |app, versions| on_puma("an application on Puma", app, versions.merge("Puma" => Puma::Const::VERSION)) }
  end

  def test_an_application_on_webrick
    need "rackup"
    with_application { |app, versions| on_webrick("an application on WEBrick", app, versions) }
  end

  # What a request of `load` is answered: its own visits are three.
  def expected(name) = "#{name} /one /two /three 3"

  # The application with PostgreSQL, beside the server that it asks.
  def with_application
    need_rails
    with_postgresql do
      with_echo_of_paths do |port|
        Rails.configuration.x.port = port
        Rails.configuration.x.slowly = method(:slowly)
        with_records_in_postgresql(pool: 40) { yield Rails.application, @versions.merge(@rails) }
      end
    end
  end

  # A server, in a thread of its own, whose pages are their paths.
  def with_echo_of_paths
    server = TCPServer.new("127.0.0.1", 0)
    thread = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      Fiber.schedule do
        loop do
          connection = server.accept
          Fiber.schedule do
            path = connection.gets[/\S+(?= HTTP)/]
            nil until connection.gets == "\r\n"
            connection.write("HTTP/1.1 200 OK\r\nContent-Length: #{path.size}\r\nConnection: close\r\n\r\n#{path}")
          ensure
            connection.close
          end
        end
      end
    end
    yield server.local_address.ip_port
  ensure
    thread&.kill&.join
    server&.close
  end
end
