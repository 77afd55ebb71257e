# frozen_string_literal: true

require "net/http"
require "tmpdir"
require_relative "test_helper"
require_relative "identity"

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
      assert_equal "x" * 1_000_000, client.connect.read
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
