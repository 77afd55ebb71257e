# frozen_string_literal: true

require_relative "compat_helper"

# Ordinary use by 50 fibers of sqlite3, dalli with memcached, and net-ssh with sshd.
class TestStores < CompatTest
  ROW = "Others"
  CLIENTS = 50

  def test_sqlite3
    only_measured
    need "sqlite3"
    beside_ticks(ROW, "sqlite3: transactions of 50, a connection each, on one file", CLIENTS * 10, "sqlite3" => SQLite3::VERSION, "SQLite" => SQLite3::SQLITE_VERSION) do |crowd|
      Dir.mktmpdir("um") do |folder|
        path = File.join(folder, "db")
        SQLite3::Database.new(path) { |database| database.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE counts (name INTEGER, count INTEGER)") }
        crowd.all(0...CLIENTS) do |number|
          database = SQLite3::Database.new(path)
          # SQLite's own wait for its lock holds Ruby's: this is a handler that sleeps as Ruby does.
          database.busy_handler { sleep 0.001 }
          database.execute("PRAGMA synchronous = OFF")
          10.times do |round|
            database.transaction(:immediate) do
              database.execute("INSERT INTO counts VALUES (?, ?)", [number, round])
              # Another fiber has its turn while the transaction is open.
              sleep 0
              assert_equal [[round + 1]], database.execute("SELECT count(*) FROM counts WHERE name = ?", [number])
            end
          end
          assert_raises(SQLite3::SQLException) { database.execute("NONSENSE") }
        ensure
          database&.close
        end
        SQLite3::Database.new(path) { |database| assert_equal [[CLIENTS * 10, 2250]], database.execute("SELECT count(*), sum(count) FROM counts") }
      end
    end
  end

  def test_dalli
    only_measured
    need "dalli", "connection_pool"
    command = need_command("memcached")
    configured = ->(server) { [command, "-l", "127.0.0.1", "-p", server.port.to_s, "-u", Etc.getpwuid.name] }
    versions = { "dalli" => Dalli::VERSION, "memcached" => IO.popen([command, "-V"], &:read)[/\d[\d.]+/] }
    LocalServer.run(configured) do |server|
      beside_ticks(ROW, "dalli: operations of 50 over a pool of 10", CLIENTS * 60, versions) do |crowd|
        pool = ConnectionPool.new(size: 10, timeout: 60) { Dalli::Client.new("127.0.0.1:#{server.port}", threadsafe: false) }
        pool.with(&:flush)
        crowd.all(0...CLIENTS) do |number|
          20.times do |round|
            pool.with { |cache| cache.set("key:#{number}:#{round}", { "number" => number, "text" => "x" * round * 1000 }) }
            assert_equal({ "number" => number, "text" => "x" * round * 1000 }, pool.with { |cache| cache.get("key:#{number}:#{round}") })
            pool.with { |cache| cache.incr("sum", 1, nil, 1) }
          end
          keys = Array.new(20) { |round| "key:#{number}:#{round}" }
          assert_equal(keys, pool.with { |cache| cache.get_multi(*keys) }.keys.sort_by { |key| key[/\d+$/].to_i })
        end
        assert_equal CLIENTS * 20, pool.with { |cache| cache.get("sum").to_i }
      ensure
        pool&.shutdown(&:close)
      end
    end
  end

  def test_net_ssh
    only_measured
    need "net/ssh"
    sshd, keygen = %w[sshd ssh-keygen].map { |name| need_command(name) }
    # Root's shell may do much as it starts.
    user = Process.uid.zero? ? "postgres" : Etc.getpwuid.name
    configured = lambda do |server|
      FileUtils.mkdir_p("/run/sshd") if Process.uid.zero?
      FileUtils.chmod(0o755, server.folder)
      %w[host user].each { |name| File.exist?(server.path(name)) || system(keygen, "-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f", server.path(name), exception: true) }
      File.write(server.path("config"), <<~CONFIG)
        ListenAddress 127.0.0.1:#{server.port}
        HostKey #{server.path("host")}
        AuthorizedKeysFile #{server.path("user.pub")}
        StrictModes no
        PidFile none
        UsePAM yes
        MaxStartups 200
      CONFIG
      [sshd, "-D", "-e", "-f", server.path("config")]
    end
    LocalServer.run(configured) do |server|
      beside_ticks(ROW, "net-ssh: commands over connections of 20", 20 * 3, "net-ssh" => Net::SSH::Version::STRING) do |crowd|
        crowd.all(0...20) do |number|
          options = { port: server.port, keys: [server.path("user")], keys_only: true, verify_host_key: :never, config: false, use_agent: false, auth_methods: ["publickey"] }
          Net::SSH.start("127.0.0.1", user, **options) do |ssh|
            2.times { |round| assert_equal "#{number} #{round}\n", ssh.exec!("echo #{number} #{round}") }
            assert_equal 200_000, ssh.exec!("head -c 200000 /dev/zero").bytesize
          end
        end
      end
    end
  end
end
