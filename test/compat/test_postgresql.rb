# frozen_string_literal: true

require_relative "compat_helper"

# pg, and Sequel upon it, with Debian's PostgreSQL.
class TestPostgreSQL < CompatTest
  ROW = "PostgreSQL"

  def test_queries_over_a_pool
    with_postgresql do
      rounds = 10
      beside_ticks(ROW, "pg: queries of 200 over a pool of 20", rounds * 200, @versions) do |crowd|
        pool = ConnectionPool.new(size: 20, timeout: 60) { connect }
        crowd.all(0...200) do |number|
          rounds.times do |round|
            rows = pool.with { |connection| connection.exec_params("SELECT $1::int + i AS sum, pg_sleep(0.001) FROM generate_series(1, 5) i", [number * round]) }
            assert_equal (1..5).map { |index| ((number * round) + index).to_s }, rows.column_values(0)
          end
        end
      ensure
        pool&.shutdown(&:close)
      end
    end
  end

  # A statement's timeout, a Timeout, a cancelled query, an error, a failed transaction: the connection goes on.
  def test_queries_that_are_cut_short
    with_postgresql do
      beside_ticks(ROW, "pg: queries cut short by limits, Timeouts and cancels", 80, @versions) do |crowd|
        crowd.all(0...20) do |number|
          connection = connect
          connection.exec("SET statement_timeout = 50")
          assert_raises(PG::QueryCanceled) { connection.exec("SELECT pg_sleep(30)") }
          connection.exec("SET statement_timeout = 0")
          assert_equal number.to_s, connection.exec("SELECT #{number}").getvalue(0, 0)
          assert_raises(Timeout::Error) { Timeout.timeout(0.05) { connection.exec("SELECT pg_sleep(30)") } }
          connection.cancel
          connection.discard_results
          assert_equal number.to_s, connection.exec("SELECT #{number}").getvalue(0, 0)
          canceller = crowd.start do
            sleep 0.05
            connection.cancel
          end
          assert_raises(PG::QueryCanceled) { connection.exec("SELECT pg_sleep(30)") }
          sleep 0.001 while canceller.alive?
          assert_raises(PG::DivisionByZero) { connection.transaction { connection.exec("SELECT 1 / 0") } }
          assert_equal [number.to_s, PG::PQTRANS_IDLE], [connection.exec("SELECT #{number}").getvalue(0, 0), connection.transaction_status]
        ensure
          connection&.close
        end
      end
    end
  end

  def test_listen_and_notify
    with_postgresql do
      beside_ticks(ROW, "pg: notifications to 10 that listen", 10 * 200, @versions) do |crowd|
        listening = Queue.new
        crowd.all(0..10) do |number|
          connection = connect
          if number == 10
            10.times { listening.pop }
            200.times { |message| connection.exec("SELECT pg_notify('channel', '#{message}')") }
          else
            connection.exec("LISTEN channel")
            assert_nil connection.wait_for_notify(0.01)
            listening << true
            heard = Array.new(200) { connection.wait_for_notify(60) { |*, payload| break payload.to_i } }
            assert_equal (0...200).to_a, heard
          end
        ensure
          connection&.close
        end
      end
    end
  end

  def test_copy
    with_postgresql do
      rows = 10_000
      beside_ticks(ROW, "pg: rows copied in and out by 10", rows * 10, @versions) do |crowd|
        crowd.all(0...10) do |number|
          connection = connect
          connection.exec("CREATE TEMPORARY TABLE copied (number int, text text)")
          connection.copy_data("COPY copied FROM STDIN") { rows.times { |row| connection.put_copy_data("#{row}\tof #{number}\n") } }
          lines = []
          line = nil
          connection.copy_data("COPY copied TO STDOUT") { lines << line while (line = connection.get_copy_data) }
          assert_equal Array.new(rows) { |row| "#{row}\tof #{number}\n" }, lines
          # One that is given up leaves nothing, and the connection as it was.
          assert_raises(ArgumentError) { connection.copy_data("COPY copied FROM STDIN") { connection.put_copy_data("1\tx\n") && raise(ArgumentError) } }
          assert_equal rows.to_s, connection.exec("SELECT count(*) FROM copied").getvalue(0, 0)
        ensure
          connection&.close
        end
      end
    end
  end

  def test_a_server_that_is_started_again
    with_postgresql do |server|
      beside_ticks(ROW, "pg: queries of 20 while PostgreSQL is started again", 20 * 50, @versions) do |crowd|
        halfway = Queue.new
        crowd.all(0..20) do |number|
          if number == 20
            20.times { halfway.pop }
            server.stop(:INT)
            server.start
            next
          end
          connection = nil
          answered = 0
          while answered < 50
            begin
              connection ||= connect
              assert_equal answered.to_s, connection.exec("SELECT #{answered}").getvalue(0, 0)
              answered += 1
              halfway << true if answered == 25
            rescue PG::Error
              # The connection is gone, or it was refused.
              connection&.close
              connection = nil
              sleep 0.01
            end
          end
          connection.close
        end
      end
    end
  end

  def test_sequel
    with_postgresql do |server|
      need "sequel"
      beside_ticks(ROW, "Sequel: transactions of 50 over a pool of 10", 50 * 20, @versions.merge("Sequel" => Sequel::VERSION)) do |crowd|
        # By fiber, not by thread, belongs a connection.
        Sequel.extension(:fiber_concurrency)
        database = Sequel.connect("postgres://postgres@127.0.0.1:#{server.port}/postgres", max_connections: 10, pool_timeout: 60)
        database.create_table!(:accounts) do
          primary_key :id
          column :sum, Integer
        end
        10.times { database[:accounts].insert(sum: 1000) }
        crowd.all(0...50) do |number|
          20.times do |round|
            from, to = [1 + (number % 10), 1 + ((number + round + 1) % 10)]
            database.transaction do
              # Always in one order: no deadlock.
              database[:accounts].where(id: [from, to]).order(:id).for_update.all
              database[:accounts].where(id: from).update(sum: Sequel[:sum] - 1)
              database[:accounts].where(id: to).update(sum: Sequel[:sum] + 1)
              raise Sequel::Rollback if round % 5 == 4
            end
          end
        end
        assert_equal 10_000, database[:accounts].sum(:sum)
      ensure
        database&.disconnect
      end
    end
  end
end
