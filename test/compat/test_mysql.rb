# frozen_string_literal: true

require_relative "compat_helper"

# mysql2 with Debian's MariaDB. Its queries wait for their answers by Ruby's means; whatever else it does waits within the C library, without
# Ruby's lock but in the thread: connect, prepared statements, the rest of a result, ping, close.
class TestMySQL < CompatTest
  ROW = "MariaDB"
  CLIENTS = 50

  def with_mariadb
    only_measured
    need "mysql2", "connection_pool"
    mariadbd, install = %w[mariadbd mariadb-install-db].map { |name| need_command(name) }
    configured = lambda do |server|
      data = server.path("data")
      options = ["--no-defaults", "--datadir=#{data}", "--user=#{Etc.getpwuid.name}"]
      system(install, *options, "--auth-root-authentication-method=normal", "--skip-test-db", out: File::NULL, err: File::NULL, exception: true) unless File.exist?(data)
      [mariadbd, *options, "--bind-address=127.0.0.1", "--port=#{server.port}", "--socket=#{server.path("socket")}", "--pid-file=#{server.path("pid")}",
       "--max-connections=200", "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]
    end
    LocalServer.run(configured) do |server|
      @address = { host: "127.0.0.1", port: server.port, username: "root", connect_timeout: 60 }
      connect.close
      @versions = { "mysql2" => Mysql2::VERSION, "MariaDB" => IO.popen([mariadbd, "--version"], &:read)[/(\d[\d.]+)-MariaDB/, 1] }
      connect { |client| client.query("CREATE DATABASE um") }
      @address[:database] = "um"
      yield server
    end
  end

  def connect(**options)
    client = Mysql2::Client.new(**@address, **options)
    return client unless block_given?

    begin
      yield client
    ensure
      client.close
    end
  end

  def test_queries_over_a_pool
    with_mariadb do
      beside_ticks(ROW, "mysql2: queries of 50 over a pool of 10", CLIENTS * 20, @versions) do |crowd|
        pool = ConnectionPool.new(size: 10, timeout: 60) { connect }
        crowd.all(0...CLIENTS) do |number|
          20.times do |round|
            rows = pool.with { |client| client.query("SELECT seq + #{number * round} AS sum, SLEEP(0.0002) FROM seq_1_to_5", as: :array).to_a }
            assert_equal (1..5).map { |index| [index + (number * round), 0] }, rows
          end
        end
      ensure
        pool&.shutdown(&:close)
      end
    end
  end

  # Each locks its two rows in one order; one of five rolls back.
  def test_transactions
    with_mariadb do
      beside_ticks(ROW, "mysql2: transactions of 50 over a pool of 10", CLIENTS * 20, @versions) do |crowd|
        pool = ConnectionPool.new(size: 10, timeout: 60) { connect }
        pool.with do |client|
          client.query("CREATE OR REPLACE TABLE accounts (id int PRIMARY KEY, sum int) ENGINE=InnoDB")
          client.query("INSERT INTO accounts SELECT seq, 1000 FROM seq_1_to_10")
        end
        crowd.all(0...CLIENTS) do |number|
          20.times do |round|
            from, to = [1 + (number % 10), 1 + ((number + round + 1) % 10)]
            pool.with do |client|
              client.query("BEGIN")
              client.query("SELECT * FROM accounts WHERE id IN (#{from}, #{to}) ORDER BY id FOR UPDATE")
              client.query("UPDATE accounts SET sum = sum - 1 WHERE id = #{from}")
              client.query("UPDATE accounts SET sum = sum + 1 WHERE id = #{to}")
              client.query(round % 5 == 4 ? "ROLLBACK" : "COMMIT")
            end
          end
        end
        assert_equal 10_000, pool.with { |client| client.query("SELECT SUM(sum) AS sum FROM accounts").first["sum"].to_i }
      ensure
        pool&.shutdown(&:close)
      end
    end
  end

  # A statement's limit, a KILL, an error and a Timeout leave the connection as it is; the client's own limit ends it.
  def test_queries_that_are_cut_short
    with_mariadb do
      beside_ticks(ROW, "mysql2: queries cut short by limits, Timeouts and KILLs", 20 * 5, @versions) do |crowd|
        crowd.all(0...20) do |number|
          client = connect
          error = assert_raises(Mysql2::Error) { client.query("SET STATEMENT max_statement_time = 0.05 FOR SELECT SLEEP(30)") }
          assert_equal 1969, error.error_number
          error = assert_raises(Mysql2::Error) { client.query("NONSENSE") }
          assert_equal 1064, error.error_number
          killer = crowd.start do
            sleep 0.05
            connect { |other| other.query("KILL QUERY #{client.thread_id}") }
          end
          # The first SLEEP may only return early; the second is not begun.
          error = assert_raises(Mysql2::Error) { client.query("SELECT SLEEP(30) FROM seq_1_to_2") }
          assert_equal 1317, error.error_number
          sleep 0.001 while killer.alive?
          assert_equal number, client.query("SELECT #{number} AS number").first["number"]
          # mysql2 holds a Timeout back until the query has ended.
          assert_raises(Timeout::Error) { Timeout.timeout(0.05) { client.query("SELECT SLEEP(0.2)") } }
          assert_equal number, client.query("SELECT #{number} AS number").first["number"]
          connect(read_timeout: 1) do |impatient|
            assert_raises(Mysql2::Error::TimeoutError) { impatient.query("SELECT SLEEP(30)") }
            assert_predicate impatient, :closed?
          end
        ensure
          client&.close
        end
      end
    end
  end

  # Sent without a wait for the answer; whoever wants it waits for the socket.
  def test_async_queries
    with_mariadb do
      beside_ticks(ROW, "mysql2: asynchronous queries, and whole results, of 20", 20 * 20, @versions) do |crowd|
        crowd.all(0...20) do |number|
          connect do |client|
            10.times do |round|
              client.query("SELECT #{number * round} AS product, SLEEP(0.01)", async: true)
              assert IO.for_fd(client.socket, autoclose: false).wait_readable(60)
              assert_equal number * round, client.async_result.first["product"]
              assert_equal (1..1000).to_a, client.query("SELECT seq FROM seq_1_to_1000", as: :array).to_a.flatten
            end
          end
        end
      end
    end
  end

  # What blocks: their answers are waited for in the C library.
  def test_prepared_statements
    with_mariadb do
      beside_ticks(ROW, "mysql2: prepared statements of 50 over a pool of 10, of 20 ms each", CLIENTS, @versions) do |crowd|
        pool = ConnectionPool.new(size: 10, timeout: 60) { connect }
        crowd.all(0...CLIENTS) do |number|
          pool.with do |client|
            statement = client.prepare("SELECT ? + 1 AS sum, SLEEP(0.02)")
            assert_equal number + 1, statement.execute(number).first["sum"]
            statement.close
          end
        end
      ensure
        pool&.shutdown(&:close)
      end
    end
  end

  def test_a_server_that_is_started_again
    with_mariadb do |server|
      beside_ticks(ROW, "mysql2: queries of 20 while MariaDB is started again", 20 * 50, @versions) do |crowd|
        halfway = Queue.new
        crowd.all(0..20) do |number|
          if number == 20
            20.times { halfway.pop }
            server.stop
            server.start
            next
          end
          client = nil
          answered = 0
          while answered < 50
            begin
              client ||= connect
              assert_equal answered, client.query("SELECT #{answered} AS number").first["number"]
              answered += 1
              halfway << true if answered == 25
            rescue Mysql2::Error
              # The connection is gone, or it was refused.
              client&.close
              client = nil
              sleep 0.01
            end
          end
          client.close
        end
      end
    end
  end
end
