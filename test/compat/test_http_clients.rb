# frozen_string_literal: true

require "digest"
require "net/http"
require "open-uri"
require_relative "../identity"
require_relative "compat_helper"

# HTTP clients, against nginx with a certificate of ours, and against peers that are silent, or die.
class TestHTTPClients < CompatTest
  ROW = "HTTP clients"
  BODY = ("from nginx\n" * 1000).freeze
  LARGE = FIGURES ? 100_000_000 : 4_000_000
  CLIENTS = FIGURES ? 500 : 50

  # What a library is to do.
  #
  # get: an address to a body, through redirects. put: an address and a body. impatient: as get, with a time limit of 0.1 s.
  Client = Data.define(:name, :version, :get, :put, :impatient, :late, :cut)

  def with_nginx
    command = need_command("nginx")
    configured = lambda do |server|
      File.write(server.path("key.pem"), Identity.key.private_to_pem)
      File.write(@certificate = server.path("certificate.pem"), Identity.certificate.to_pem)
      File.write(server.path("body"), BODY)
      File.binwrite(server.path("large"), large)
      File.write(server.path("nginx.conf"), configuration(server.port))
      [command, "-p", server.folder, "-c", "nginx.conf", "-e", "error.log"]
    end
    LocalServer.run(configured) do |server|
      @server = server
      yield "https://localhost:#{server.port}"
    end
  end

  def configuration(port)
    <<~CONF
      daemon off; master_process off; pid pid;
      events { worker_connections 4096; }
      http {
        access_log off; keepalive_requests 1000000; client_max_body_size 0;
        #{%w[client_body proxy fastcgi uwsgi scgi].map { |kind| "#{kind}_temp_path #{kind};" }.join(" ")}
        server {
          listen 127.0.0.1:#{port} ssl backlog=4096;
          ssl_certificate certificate.pem; ssl_certificate_key key.pem; root .;
          location /moved { return 302 /moved-again; }
          location /moved-again { return 301 https://localhost:#{port}/body; }
          location /connection { return 200 "$connection $connection_requests"; }
          location /crawling/ { alias ./; limit_rate 20000; }
          location /upload/ { dav_methods PUT; create_full_put_path on; }
          location /packed/ { alias ./; gzip on; gzip_types *; }
        }
      }
    CONF
  end

  def large = @large ||= Random.new(1).bytes(LARGE / 10) * 10

  # Servers without TLS: one that says nothing, one that resets in the middle of a body.
  def with_bad_peers
    silent = TCPServer.new("127.0.0.1", 0)
    dying = TCPServer.new("127.0.0.1", 0)
    thread = Thread.new do
      loop do
        connection = dying.accept
        nil until connection.gets == "\r\n"
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbeginning")
        connection.setsockopt(Socket::Option.linger(true, 0))
        connection.close
      end
    end
    yield(*[silent, dying].map { |server| "http://127.0.0.1:#{server.addr[1]}/" })
  ensure
    thread&.kill&.join
    [silent, dying].compact.each(&:close)
  end

  # The same for each library.
  def exercise
    with_nginx do |base|
      client = yield
      versions = { client.name => client.version, "nginx" => version_of_nginx }
      beside_ticks(ROW, "#{client.name}: GETs over TLS, all at once", CLIENTS, versions) do |crowd|
        assert_equal [BODY], crowd.all(0...CLIENTS) { client.get.call("#{base}/body") }.uniq
      end
      beside_ticks(ROW, "#{client.name}: #{LARGE / 1_000_000} MB both ways, redirects, a silent and a dying peer", 30, versions) do |crowd|
        with_bad_peers { |silent, dying| assorted(crowd, client, base, silent, dying) }
      end
    end
  end

  def assorted(crowd, client, base, silent, dying)
    crowd.all(0...30) do |number|
      case number
      when 0 then assert large.eql?(client.get.call("#{base}/large").b)
      when 1 then put_large(client, base)
      when 2..9 then assert_equal BODY, client.get.call("#{base}/moved")
      when 10..19 then assert_raises(*client.late) { client.impatient.call(silent) }
      else assert_raises(*client.cut) { client.get.call(dying) }
      end
    end
    assert_equal BODY, client.get.call("#{base}/body")
  end

  def put_large(client, base)
    client.put.call("#{base}/upload/large", large)
    stored = @server.path("upload/large")
    assert_equal Digest::SHA256.hexdigest(large), Digest::SHA256.file(stored).hexdigest
    File.unlink(stored)
  end

  def version_of_nginx = IO.popen([need_command("nginx"), "-v"], err: %i[child out], &:read)[/\d[\d.]+/]

  def net_http(url, request = nil, timeout: 60, limit: 5)
    uri = URI(url)
    options = uri.scheme == "https" ? { use_ssl: true, ca_file: @certificate } : {}
    Net::HTTP.start(uri.hostname, uri.port, read_timeout: timeout, max_retries: 0, **options) do |http|
      answer = http.request(request || Net::HTTP::Get.new(uri))
      return net_http(URI.join(url, answer["Location"]).to_s, limit: limit - 1) if answer.is_a?(Net::HTTPRedirection) && limit.positive?

      assert_kind_of Net::HTTPSuccess, answer
      answer.body
    end
  end

  def net_http_put(url, body)
    request = Net::HTTP::Put.new(URI(url))
    request.body = body
    net_http(url, request)
  end

  def test_net_http
    exercise do
      Client.new("Net::HTTP", Net::HTTP::VERSION, method(:net_http), method(:net_http_put), ->(url) { net_http(url, timeout: 0.1) },
                 [Net::ReadTimeout], [Errno::ECONNRESET, EOFError])
    end
  end

  def test_open_uri
    exercise do
      # It puts nothing.
      Client.new("open-uri", OpenURI::VERSION, ->(url) { URI(url).open(**tls(url), &:read) }, method(:net_http_put),
                 ->(url) { URI(url).open(read_timeout: 0.1, &:read) }, [Net::ReadTimeout], [Errno::ECONNRESET, EOFError])
    end
  end

  def tls(url) = url.start_with?("https") ? { ssl_ca_cert: @certificate } : {}

  def test_keep_alive_and_packed_bodies
    with_nginx do |base|
      uri = URI(base)
      requests = sized(20, 200)
      beside_ticks(ROW, "Net::HTTP: requests of 20 kept-alive connections", requests * 20, "Net::HTTP" => Net::HTTP::VERSION) do |crowd|
        connections = crowd.all(0...20) do
          Net::HTTP.start(uri.hostname, uri.port, use_ssl: true, ca_file: @certificate) do |http|
            answers = Array.new(requests) { http.get("/connection").body.split.map(&:to_i) }
            assert_equal (1..requests).to_a, answers.map(&:last)
            assert_equal 1, answers.map(&:first).uniq.size
            # Net::HTTP unpacks it.
            assert_equal BODY, http.get("/packed/body").body
            answers.first.first
          end
        end
        assert_equal 20, connections.uniq.size
      end
    end
  end

  def test_expect_100_continue
    with_nginx do |base|
      uri = URI(base)
      beside_ticks(ROW, "Net::HTTP: PUTs that wait for 100 Continue", 20, "Net::HTTP" => Net::HTTP::VERSION) do |crowd|
        crowd.all(0...20) do |number|
          # It would send the body after a minute by itself.
          Net::HTTP.start(uri.hostname, uri.port, use_ssl: true, ca_file: @certificate, continue_timeout: 60) do |http|
            put = Net::HTTP::Put.new("/upload/#{number}", { "Expect" => "100-continue" })
            put.body = BODY * number
            assert_includes %w[201 204], http.request(put).code
            assert_equal put.body, http.get("/upload/#{number}").body
            # What is refused is not sent.
            refused = Net::HTTP::Put.new("/body", { "Expect" => "100-continue" })
            refused.body_stream = Object.new
            refused.content_length = 5
            assert_equal "405", http.request(refused).code
          end
        end
      end
    end
  end

  # A Timeout in the middle of a body; a server that is killed there.
  def test_a_slow_and_a_dying_nginx
    with_nginx do |base|
      beside_ticks(ROW, "Net::HTTP: bodies cut by a Timeout, and by a kill of nginx", 40, "Net::HTTP" => Net::HTTP::VERSION) do |crowd|
        assert_equal [:late], crowd.all(0...20) { Timeout.timeout(0.1) { net_http("#{base}/crawling/large") } rescue :late }.uniq # rubocop:disable Style/RescueModifier
        begun = Queue.new
        killer = crowd.start do
          20.times { begun.pop }
          @server.stop(:KILL)
        end
        errors = crowd.all(0...20) { assert_raises(EOFError, Errno::ECONNRESET, OpenSSL::SSL::SSLError) { crawl(base) { begun << true } }.class }
        refute_empty errors
        killer.respond_to?(:join) && killer.join
        @server.start
        assert_equal BODY, net_http("#{base}/body")
      end
    end
  end

  # Reads a body that comes slowly; calls the block once, when it has begun to come.
  def crawl(base)
    uri = URI("#{base}/crawling/large")
    Net::HTTP.start(uri.hostname, uri.port, use_ssl: true, ca_file: @certificate, max_retries: 0) do |http|
      http.request_get(uri.path) do |answer|
        come = false
        answer.read_body { (yield unless come) || (come = true) }
      end
    end
  end

  # For what would read all the system's certificates for each connection, which takes longer than everything else.
  def trusting = @trusting ||= OpenSSL::X509::Store.new.tap { |store| store.add_cert(Identity.certificate) }

  def test_faraday
    only_measured
    need "faraday", "faraday/net_http"
    connect = lambda do |url, timeout = 60|
      Faraday.new(url, ssl: { cert_store: trusting }, request: { read_timeout: timeout }) do |faraday|
        faraday.response :raise_error
        faraday.adapter(:net_http) { |http| http.max_retries = 0 }
      end
    end
    # It follows no redirects by itself.
    get = lambda do |url|
      answer = connect.call(url).get(url)
      answer.status / 100 == 3 ? get.call(URI.join(url, answer.headers["location"]).to_s) : answer.body
    end
    exercise do
      Client.new("Faraday", Faraday::VERSION, get, ->(url, body) { connect.call(url).put(url, body) }, ->(url) { connect.call(url, 0.1).get(url) },
                 [Faraday::TimeoutError], [Faraday::ConnectionFailed])
    end
  end

  def test_excon
    only_measured
    need "excon"
    middlewares = Excon.defaults[:middlewares] + [Excon::Middleware::RedirectFollower]
    get = ->(url, **options) { Excon.get(url, ssl_cert_store: trusting, middlewares:, **options).body }
    exercise do
      Client.new("Excon", Excon::VERSION, get, ->(url, body) { Excon.put(url, body:, ssl_cert_store: trusting, expects: [201, 204]) },
                 ->(url) { get.call(url, read_timeout: 0.1) }, [Excon::Error::Timeout], [Excon::Error::Socket])
    end
  end

  def test_httpclient
    only_measured
    need "httpclient"
    # One for all, which keeps their connections; it reads the system's certificates once.
    client = lambda do |timeout|
      HTTPClient.new.tap do |http|
        http.ssl_config.clear_cert_store
        http.ssl_config.add_trust_ca(@certificate)
        http.receive_timeout = timeout
      end
    end
    exercise do
      patient = client.call(60)
      impatient = client.call(0.1)
      Client.new("HTTPClient", HTTPClient::VERSION, patient.method(:get_content), ->(url, body) { assert_predicate patient.put(url, body), :ok? },
                 impatient.method(:get_content), [HTTPClient::ReceiveTimeoutError], [HTTPClient::KeepAliveDisconnected, Errno::ECONNRESET])
    end
  end

  def test_httparty
    only_measured
    need "httparty"
    get = lambda do |url, timeout = 60|
      answer = HTTParty.get(url, ssl_ca_file: @certificate, read_timeout: timeout, max_retries: 0)
      assert_predicate answer, :success?
      answer.body
    end
    exercise do
      Client.new("httparty", HTTParty::VERSION, get, ->(url, body) { assert_predicate HTTParty.put(url, body:, ssl_ca_file: @certificate), :success? },
                 ->(url) { get.call(url, 0.1) }, [Net::ReadTimeout], [Errno::ECONNRESET, EOFError])
    end
  end
end
