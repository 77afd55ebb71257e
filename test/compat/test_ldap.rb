# frozen_string_literal: true

require_relative "compat_helper"

# net-ldap with Debian's slapd.
class TestLDAP < CompatTest
  ROW = "LDAP"
  CLIENTS = 50
  BASE = "dc=example,dc=org"
  ADMINISTRATOR = "cn=admin,#{BASE}".freeze

  # net-ldap writes to literal strings.
  def setup
    super
    @warned = Warning[:deprecated]
    Warning[:deprecated] = false
  end

  def teardown
    Warning[:deprecated] = @warned
    super
  end

  def with_slapd
    only_measured
    need "net/ldap"
    command = need_command("slapd")
    configured = lambda do |server|
      FileUtils.mkdir_p(server.path("data"))
      File.write(server.path("config"), <<~CONFIG)
        include /etc/ldap/schema/core.schema
        modulepath /usr/lib/ldap
        moduleload back_mdb
        pidfile #{server.path("pid")}
        sizelimit unlimited
        database mdb
        suffix "#{BASE}"
        rootdn "#{ADMINISTRATOR}"
        rootpw secret
        directory #{server.path("data")}
        dbnosync
      CONFIG
      # In the foreground, which says nothing.
      [command, "-h", "ldap://127.0.0.1:#{server.port}", "-f", server.path("config"), "-d", "0"]
    end
    LocalServer.run(configured) do |server|
      @port = server.port
      open do |ldap|
        assert ldap.add(dn: BASE, attributes: { objectClass: %w[dcObject organization], dc: "example", o: "Example" }), ldap.get_operation_result.message
      end
      version = IO.popen([command, "-V"], err: %i[child out], &:read)[/slapd (\d[\d.]+)/, 1]
      @versions = { "net-ldap" => Net::LDAP::VERSION, "slapd" => version }
      yield server
    end
  end

  def open(password: "secret", port: @port, &)
    Net::LDAP.open(host: "127.0.0.1", port:, base: BASE, auth: { method: :simple, username: ADMINISTRATOR, password: }, &)
  end

  def test_entries
    with_slapd do
      beside_ticks(ROW, "net-ldap: entries of 50, added, found, modified, renamed, removed", CLIENTS * 5 * 5, @versions) do |crowd|
        crowd.all(0...CLIENTS) do |number|
          open do |ldap|
            5.times do |round|
              dn = "cn=#{number}-#{round},#{BASE}"
              attributes = { objectClass: %w[person], cn: "#{number}-#{round}", sn: number.to_s, description: "ü" * 1000 }
              assert ldap.add(dn:, attributes:), ldap.get_operation_result.message
              refute ldap.add(dn:, attributes:)
              assert_equal Net::LDAP::ResultCodeEntryAlreadyExists, ldap.get_operation_result.code
              assert ldap.replace_attribute(dn, :description, ["changed"])
              found = ldap.search(filter: Net::LDAP::Filter.eq("cn", "#{number}-#{round}"))
              assert_equal([[dn, [number.to_s], ["changed"]]], found.map { |entry| [entry.dn, entry[:sn], entry[:description]] })
              assert ldap.rename(olddn: dn, newrdn: "cn=new-#{number}-#{round}", delete_attributes: true)
            end
            found = ldap.search(filter: Net::LDAP::Filter.eq("cn", "new-#{number}-*"))
            assert_equal Array.new(5) { |round| "cn=new-#{number}-#{round},#{BASE}" }, found.map(&:dn).sort
            found.each { |entry| assert ldap.delete(dn: entry.dn) }
          end
        end
        open { |ldap| assert_equal([BASE], ldap.search.map(&:dn)) }
      end
    end
  end

  # A wrong password, a server that is silent, one that is not there.
  def test_binds_that_fail
    with_slapd do
      beside_ticks(ROW, "net-ldap: binds of 50 refused, or ended by a Timeout", CLIENTS * 3, @versions) do |crowd|
        silent = TCPServer.new("127.0.0.1", 0)
        unused = TCPServer.open("127.0.0.1", 0) { |server| server.local_address.ip_port }
        crowd.all(0...CLIENTS) do
          ldap = Net::LDAP.new(host: "127.0.0.1", port: @port, auth: { method: :simple, username: ADMINISTRATOR, password: "wrong" })
          refute ldap.bind
          assert_equal Net::LDAP::ResultCodeInvalidCredentials, ldap.get_operation_result.code
          assert_raises(Timeout::Error) { Timeout.timeout(0.05) { open(port: silent.local_address.ip_port) { flunk } } }
          assert_raises(Errno::ECONNREFUSED) { open(port: unused) { flunk } }
        end
      ensure
        silent&.close
      end
    end
  end
end
