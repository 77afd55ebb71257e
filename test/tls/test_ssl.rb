# frozen_string_literal: true

require "net/http"
require "tmpdir"
require_relative "../test_helper"
require_relative "../identity"

# UM::SSL: TLS of plain Ruby code through the ring.
class TestSSL < SchedulerTest
  CERTIFICATE = Identity.certificate("DNS:localhost,IP:127.0.0.1")

  def teardown
    UM::SSL.leave_alone
    super
  end

  def server_context
    OpenSSL::SSL::SSLContext.new.tap { |context| context.add_certificate(CERTIFICATE, Identity.key) }
  end

  def client_context
    OpenSSL::SSL::SSLContext.new.tap do |context|
      context.cert_store = OpenSSL::X509::Store.new.tap { |store| store.add_cert(CERTIFICATE) }
      context.verify_mode = OpenSSL::SSL::VERIFY_PEER
    end
  end

  def ends
    UNIXSocket.pair.zip([server_context, client_context]).map { |socket, context| OpenSSL::SSL::SSLSocket.new(socket, context).tap { |ssl| ssl.sync_close = true } }
  end

  def test_a_socket_is_put_on_the_ring_on_request
    server, client = ends
    line = in_fiber do
      Fiber.schedule do
        UM::SSL.accelerate(server).accept
        server.puts(server.gets.upcase)
        server.close
      end
      assert_same client, UM::SSL.accelerate(client)
      assert UM::SSL.accelerated?(client)
      client.connect
      client.puts "hello"
      client.gets.tap { client.close }
    end
    assert_equal "HELLO\n", line
  end

  def test_every_socket_under_the_scheduler_is_on_request_and_none_elsewhere
    UM::SSL.accelerate_all
    server, client = ends
    in_fiber do
      Fiber.schedule { server.accept && server.write("x" * 1_000_000) && server.close }
      assert_equal "x" * 1_000_000, client.connect.read(1_000_000)
      assert UM::SSL.accelerated?(client)
      client.close
    end
    server, client = ends
    accepting = Thread.new { server.accept }
    client.connect
    accepting.join
    refute UM::SSL.accelerated?(client)
    UM::SSL.leave_alone
    server, client = ends
    in_fiber do
      Fiber.schedule { server.accept }
      client.connect
    end
    refute UM::SSL.accelerated?(client)
  end

  # The block is given both ends, connected, the client's on the ring if that is asked for; what it returns.
  def connected(ring: true, sockets: UNIXSocket.pair, server: server_context, client: client_context)
    accepting, connecting = sockets.zip([server, client]).map { |socket, context| OpenSSL::SSL::SSLSocket.new(socket, context) }
    in_fiber do |scheduler|
      [accepting, connecting].each { |ssl| UM::SSL.accelerate(ssl) } if ring
      accepted = Fiber.schedule { accepting.accept }
      connecting.connect
      sleep(0) while accepted.alive?
      yield accepting, connecting, scheduler
    end
  ensure
    sockets.each { |socket| socket.close unless socket.closed? }
  end

  def with_and_without_the_ring(&) = [true, false].map { |ring| connected(ring:, &) }

  def test_records_that_came_with_another_are_ready_to_be_read
    results = with_and_without_the_ring do |server, client|
      6.times { |number| server.syswrite("record #{number}") }
      found = [-> { client.pending.positive? || client.to_io.wait_readable(0) }, -> { IO.select([client], nil, nil, 0) }].flat_map do |ready|
        Array.new(3) { ready.call ? client.read_nonblock(100) : :nothing }
      end
      [*found, client.to_io.wait_readable(0), IO.select([client], nil, nil, 0), client.read_nonblock(100, exception: false)]
    end
    assert_equal [*Array.new(6) { |number| "record #{number}" }, nil, nil, :wait_readable], results[0]
    assert_equal results[1], results[0]
  end

  def test_a_peer_that_vanishes_is_the_same_error_as_without_the_ring
    actions = [->(ssl) { ssl.sysread(10) }, ->(ssl) { ssl.syswrite("x") }] * 2
    results = with_and_without_the_ring do |server, client|
      server.to_io.close
      actions.map do |action|
        action.call(client)
      rescue StandardError => e
        [e.class, e.message[/unexpected eof|Broken pipe|reset/]]
      end
    end
    assert_equal results[1], results[0]
    assert_equal OpenSSL::SSL::SSLError, results[0][0][0]
  end

  # read(2) and its kin, of this process so far (proc(5)); what the ring receives is none.
  def reads = File.read("/proc/self/io")[/^syscr: (\d+)/, 1].to_i

  # The stock socket tries, waits, and then reads the header and the body of a record: one receive of the ring's is all.
  def test_a_record_is_one_receive
    counts = with_and_without_the_ring do |server, client|
      Fiber.schedule { 100.times { server.syswrite(server.sysread(10)) } }
      before = reads
      100.times { client.syswrite("x") && client.sysread(10) }
      reads - before
    end
    assert_operator counts[0], :<, 20
    assert_operator counts[1], :>=, 600
  end

  def test_sessions_are_resumed_by_sockets_of_their_own_methods
    server = server_context.tap { |context| context.session_id_context = "ring" }
    session = nil
    client = client_context
    client.session_cache_mode = OpenSSL::SSL::SSLContext::SESSION_CACHE_CLIENT
    client.session_new_cb = ->((_, made)) { session = made }
    UM::SSL.accelerate_all
    reused = Array.new(2) do
      accepting, connecting = UNIXSocket.pair.zip([server, client]).map { |socket, context| OpenSSL::SSL::SSLSocket.new(socket, context) }
      connecting.session = session if session
      in_fiber do
        Fiber.schedule { accepting.accept && accepting.puts("ticket first") }
        connecting.connect
        assert_equal "ticket first\n", connecting.gets
        connecting.session_reused?.tap { [connecting, accepting].each(&:close) }
      end
    end
    assert_equal [false, true], reused
  end

  def test_a_server_and_clients_of_the_openssl_gem
    UM::SSL.accelerate_all
    in_fiber do
      server = OpenSSL::SSL::SSLServer.new(TCPServer.new("127.0.0.1", 0), server_context)
      port = server.addr[1]
      serving = Fiber.schedule do
        5.times do
          ssl = server.accept
          assert UM::SSL.accelerated?(ssl)
          Fiber.schedule { ssl.puts(ssl.gets.upcase) && ssl.close }
        end
      end
      answers = Array.new(5) do |number|
        ssl = OpenSSL::SSL::SSLSocket.open("127.0.0.1", port, context: client_context)
        nil while number.odd? && (wanted = ssl.connect_nonblock(exception: false)).is_a?(Symbol) && ssl.to_io.public_send(wanted)
        ssl.connect if number.even?
        ssl.puts("client #{number}")
        ssl.gets.tap { ssl.close }
      end
      assert_equal Array.new(5) { |number| "CLIENT #{number}\n" }, answers
      sleep(0) while serving.alive?
      server.close
    end
  end

  def test_a_request_with_a_body_and_a_connection_that_the_server_ends
    UM::SSL.accelerate_all
    with_nginx do |port|
      in_fiber do
        http = Net::HTTP.new("127.0.0.1", port)
        http.use_ssl = true
        http.cert_store = client_context.cert_store
        http.start do
          # nginx does not take it, and says so once it has read it.
          assert_equal "405", http.post("/body", "b" * 500_000).code
          assert_equal "200", http.get("/body", "connection" => "close").code
          assert_equal "200", http.get("/body").code
        end
      end
    end
  end

  # Debian's nginx, on loopback.
  def with_nginx
    Dir.mktmpdir do |folder|
      port = TCPServer.open("127.0.0.1", 0) { |server| server.addr[1] }
      File.write(File.join(folder, "key.pem"), Identity.key.private_to_pem)
      File.write(File.join(folder, "certificate.pem"), CERTIFICATE.to_pem)
      File.write(File.join(folder, "body"), "from nginx\n" * 10_000)
      File.write(File.join(folder, "nginx.conf"), <<~CONF)
        daemon off; master_process off; pid #{folder}/pid; error_log #{folder}/error.log;
        events {}
        http {
          access_log off; client_body_temp_path #{folder}; proxy_temp_path #{folder}; fastcgi_temp_path #{folder}; uwsgi_temp_path #{folder}; scgi_temp_path #{folder};
          server { listen 127.0.0.1:#{port} ssl; ssl_certificate #{folder}/certificate.pem; ssl_certificate_key #{folder}/key.pem; root #{folder}; }
        }
      CONF
      server = Process.spawn("nginx", "-c", File.join(folder, "nginx.conf"), "-e", File.join(folder, "error.log"), out: File::NULL, err: File::NULL)
      begin
        TCPSocket.new("127.0.0.1", port).close
      rescue Errno::ECONNREFUSED
        Thread.pass
        retry
      end
      yield port
    ensure
      Process.kill(:TERM, server)
      Process.wait(server)
    end
  end

  def test_net_http_over_https_against_nginx
    UM::SSL.accelerate_all
    with_nginx do |port|
      bodies = []
      scheduled do
        20.times do
          Fiber.schedule do
            http = Net::HTTP.new("127.0.0.1", port)
            http.use_ssl = true
            http.cert_store = OpenSSL::X509::Store.new.tap { |store| store.add_cert(CERTIFICATE) }
            http.start do
              2.times { bodies << http.get("/body").body }
              assert UM::SSL.accelerated?(http.instance_variable_get(:@socket).io)
            end
          end
        end
      end
      assert_equal ["from nginx\n" * 10_000], bodies.uniq
      assert_equal 40, bodies.size
    end
  end

  def test_a_certificate_that_is_not_trusted_is_the_callers_to_know
    UM::SSL.accelerate_all
    with_nginx do |port|
      error = in_fiber { assert_raises(OpenSSL::SSL::SSLError) { Net::HTTP.start("127.0.0.1", port, use_ssl: true) { flunk } } }
      assert_match(/certificate verify failed/, error.message)
    end
  end

  def test_bad_arguments
    in_fiber { assert_raises(TypeError) { UM::SSL.accelerate(1) } }
  end
end
