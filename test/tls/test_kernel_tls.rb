# frozen_string_literal: true

require "digest"
require "etc"
require_relative "test_tls"

# Kernel TLS, where this kernel has it (`script/vm bookworm` boots one that does). Elsewhere the same tests show that
# OpenSSL does it all, with the same result: first those of TestMachineTLS, then these.
class TestKernelTLS < TestMachineTLS
  def self.tcp_pair
    server = TCPServer.new("127.0.0.1", 0)
    client = TCPSocket.new("127.0.0.1", server.addr[1])
    [server.accept, client].each { |socket| socket.setsockopt(:TCP, :NODELAY, 1) }.tap { server.close }
  end

  # What the kernel answers to plain Ruby (TCP_ULP, 31, linux/tcp.h).
  OFFERED = tcp_pair.then do |pair|
    pair[0].setsockopt(Socket::IPPROTO_TCP, 31, "tls")
    true
  rescue Errno::ENOENT
    false
  ensure
    pair.each(&:close)
  end

  # OpenSSL before 3.2 has the kernel decrypt TLS 1.2 only.
  RECEIVES = { SSL::TLS1_2_VERSION => OFFERED, SSL::TLS1_3_VERSION => OFFERED && OpenSSL::OPENSSL_LIBRARY_VERSION !~ /\AOpenSSL 3\.[01]\./ }.freeze
  BYTES = Random.bytes(1_000_003)

  def configured(context, version, options)
    super
    context.options |= SSL::OP_ENABLE_KTLS
    context
  end

  def ends(sockets: self.class.tcp_pair, **)
    super
  end

  def of(version)
    { server: server_context(version), client: client_context(version) }
  end

  def each_version
    VERSIONS.each { |version| yield version, *connected(**of(version)) }
  end

  # Without a diff of megabytes.
  def assert_same_bytes(expected, bytes)
    assert_equal expected.bytesize, bytes.bytesize
    assert_equal Digest::SHA256.digest(expected), Digest::SHA256.digest(bytes), "other bytes of the same length"
  end

  def test_the_kernel_encrypts_and_decrypts_where_it_can
    each_version do |version, *sockets|
      sockets.each do |ssl|
        assert_equal OFFERED, UM::SSL.kernel_sends?(ssl)
        assert_equal RECEIVES[version], UM::SSL.kernel_receives?(ssl)
      end
    end
  end

  # The kernel has one key for each direction, for good, until Linux 6.14 and OpenSSL 3.2.
  REKEYS = !OFFERED || (OpenSSL::OPENSSL_LIBRARY_VERSION !~ /\AOpenSSL 3\.[01]\./ && Gem::Version.new(Etc.uname[:release][/\A[\d.]+/]) >= Gem::Version.new("6.14"))

  def test_keys_are_updated
    return super if REKEYS

    with_openssl("s_server", "-tls1_3") do |socket, input, output|
      client = SSL::SSLSocket.new(socket, client_context(SSL::TLS1_3_VERSION))
      machine.ssl_set_bio(client)
      client.connect
      nil until output.gets.start_with?("CIPHER")
      reader = machine.spin { read(client) }
      command(input, "K")
      input.puts("message")
      # What the peer sends, OpenSSL decrypts; what it would send with the new key is an error.
      assert_equal "message\n", machine.join(reader)
      assert_raises(Errno::EKEYREJECTED) { machine.ssl_write(client, "answer\n") }
      assert_raises(Errno::EKEYREJECTED) { machine.ssl_write(client, "answer\n" * 10_000) }
    end
  end

  # With kernel TLS OpenSSL allows no renegotiation.
  def test_a_peer_that_renegotiates
    return super unless OFFERED

    with_openssl("s_client", "-tls1_2", "-legacy_renegotiation") do |socket, input, output|
      server = SSL::SSLSocket.new(socket, server_context(SSL::TLS1_2_VERSION))
      machine.ssl_set_bio(server)
      server.accept
      machine.ssl_write(server, "before\n")
      nil until output.gets.include?("before")
      reader = attempting { read(server) }
      command(input, "R")
      assert_kind_of SSL::SSLError, outcome(reader)
    end
  end

  def test_a_server_that_renegotiates
    return super unless OFFERED

    with_openssl("s_server", "-tls1_2") do |socket, input, output|
      client = SSL::SSLSocket.new(socket, client_context(SSL::TLS1_2_VERSION))
      machine.ssl_set_bio(client)
      client.connect
      reader = attempting { read(client) }
      nil until output.gets.start_with?("Secure Renegotiation")
      command(input, "r")
      assert_kind_of SSL::SSLError, outcome(reader)
    end
  end

  def test_a_write_to_a_peer_that_is_gone_is_an_error
    each_version do |_, server, client|
      server.to_io.setsockopt(Socket::Option.linger(true, 0))
      server.to_io.close
      assert_raises(Errno::EPIPE, Errno::ECONNRESET) { 2.times { machine.ssl_write(client, "x") } }
    end
  end

  def test_a_socket_of_another_kind_is_openssls
    server, client = connected(sockets: UNIXSocket.pair)
    refute UM::SSL.kernel_sends?(client)
    machine.spin { machine.ssl_write(client, BYTES) }
    assert_same_bytes BYTES, read_all(server, BYTES.bytesize)
  end

  def test_it_is_asked_for_by_argument_or_by_the_option_of_the_context
    plain = [SSL::SSLContext.new.tap { |context| context.add_certificate(Identity.certificate, Identity.key) }, SSL::SSLContext.new]
    sockets = self.class.tcp_pair.zip(plain).map { |socket, context| SSL::SSLSocket.new(socket, context) }
    @closed.concat(sockets.map(&:io))
    machine.ssl_set_bio(sockets[0], kernel: true)
    machine.ssl_set_bio(sockets[1])
    accepted = machine.spin { sockets[0].accept }
    sockets[1].connect
    machine.join(accepted)
    assert_equal OFFERED, UM::SSL.kernel_sends?(sockets[0])
    refute UM::SSL.kernel_sends?(sockets[1])
    machine.ssl_write(sockets[0], "from the kernel")
    assert_equal "from the kernel", read(sockets[1])
    assert_raises(ArgumentError) { machine.ssl_set_bio(sockets[1], colonel: true) }
    assert_raises(TypeError) { machine.ssl_set_bio(sockets[1], true) }
  end

  # The openssl gem's own socket knows nothing of the kernel's doings.
  def test_megabytes_each_way_against_a_stock_socket
    VERSIONS.each do |version|
      client, server = against_stock(**of(version)) do |ssl|
        ssl.write(BYTES)
        ssl.read(BYTES.bytesize).tap { ssl.close }
      end
      writer = machine.spin { machine.ssl_write(client, BYTES) }
      assert_same_bytes BYTES, read_all(client, BYTES.bytesize)
      machine.join(writer)
      assert_same_bytes BYTES, value_of(server)
      assert_equal 0, machine.ssl_read(client, +"", 10)
    end
  end

  # A write that the socket does not take at once waits, and so do the records that are not the program's.
  def test_a_close_after_more_than_the_socket_takes
    each_version do |_, server, client|
      writer = machine.spin do
        client.write(BYTES * 8)
        client.close
      end
      assert_same_bytes BYTES * 8, server.read
      machine.join(writer)
    end
  end

  def test_many_small_messages_and_parts_of_records
    each_version do |_, server, client|
      sender = machine.spin { 300.times { |number| machine.ssl_write(client, "#{number}\n" * (number + 1)) } }
      expected = (0...300).map { |number| "#{number}\n" * (number + 1) }.join
      received = +""
      received << read(server, 7) while received.bytesize < expected.bytesize
      assert_same_bytes expected, received
      machine.join(sender)
    end
  end

  def test_registered_buffers_are_sent_and_received_where_they_are
    pool = machine.register_buffers(count: 2, size: 65_536)
    each_version do |version, server, client|
      outgoing, incoming = Array.new(2) { pool.acquire }
      outgoing.set_string(BYTES.byteslice(0, 65_536))
      fixed = machine.metrics[:total_fixed_ops]
      written = machine.spin { machine.ssl_write(client, outgoing) }
      received = +""
      while received.bytesize < outgoing.size
        count = machine.ssl_read(server, incoming)
        received << incoming.get_string(0, count)
      end
      assert_equal 65_536, machine.join(written)
      assert_same_bytes BYTES.byteslice(0, 65_536), received
      used = machine.metrics[:total_fixed_ops] - fixed
      assert_equal OFFERED || RECEIVES[version], used.positive?
      assert_operator used, :>, 1 if RECEIVES[version]
      [outgoing, incoming].each { |buffer| pool.release(buffer) }
    end
  end

  # What is written to the descriptor itself is encrypted, so whatever writes to it may be used.
  def test_operations_on_the_descriptor
    pool = machine.register_buffers(count: 1, size: 65_536)
    each_version do |version, server, client|
      next unless UM::SSL.kernel_sends?(client)

      fd = client.io.fileno
      pool.acquire do |buffer|
        buffer.set_string("r" * 65_536)
        sent = machine.spin { machine.send(fd, buffer, 65_536) + machine.write(fd, buffer.slice(0, 1000)) }
        assert_equal "r" * 66_536, read_all(server, 66_536)
        assert_equal 66_536, machine.join(sent)
      end
      next unless RECEIVES[version]

      machine.ssl_write(client, "to the descriptor")
      buffer = +""
      machine.read(server.io.fileno, buffer, 100)
      assert_equal "to the descriptor", buffer
    end
  end

  def test_a_read_that_is_ended_by_an_exception_loses_nothing
    each_version do |_, server, client|
      20.times do |number|
        assert_raises(TooLate) { machine.timeout(0.001, TooLate) { read(server) } }
        machine.ssl_write(client, "after #{number}")
        assert_equal "after #{number}", read(server)
      end
      reader = attempting { read(server) }
      machine.snooze
      # The bytes and the exception are there at once.
      client.io.tap { machine.ssl_write(client, "both") }
      machine.schedule(reader, TooLate.new)
      received = outcome(reader)
      assert_equal "both", received.is_a?(String) ? received : read(server)
    end
  end

  def test_a_write_that_is_ended_by_an_exception_leaves_the_connection_usable
    each_version do |_, server, client|
      count = machine.timeout(0.01, TooLate) { machine.ssl_write(client, BYTES * 8) }
      assert_includes 1...BYTES.bytesize * 8, count
      writer = machine.spin { machine.ssl_write(client, "the end") }
      received = +""
      received << read(server) until received.end_with?("the end")
      machine.join(writer)
      assert_same_bytes "#{(BYTES * 8).byteslice(0, count)}the end".b, received.b
    end
  end

  def test_an_end_without_close_notify_is_an_error
    each_version do |_, server, client|
      machine.ssl_write(server, "so that nothing is left unread")
      read(client)
      machine.ssl_write(client, "last")
      client.io.close
      assert_equal "last", read(server)
      error = assert_raises(SSL::SSLError) { read(server) }
      assert_match(/unexpected eof/, error.message)
    end
  end

  # Between the two: passes records on, and changes a byte of the last.
  def tampering(changed)
    near, server = self.class.tcp_pair
    client, far = self.class.tcp_pair
    @closed.push(near, far)
    thread = Thread.new do
      while (ready = IO.select([near, far])[0][0])
        header = ready.read(5) or break
        body = ready.read(header.unpack1("@3n"))
        body.setbyte(body.bytesize - 1, body.getbyte(body.bytesize - 1) ^ 1) if ready == far && changed.call(header.getbyte(0), body)
        (ready == near ? far : near).write(header, body)
      end
    rescue IOError, SystemCallError
      nil
    end
    [server, client, thread]
  end

  def test_a_record_that_was_changed_on_its_way_is_an_error_of_openssls
    VERSIONS.each do |version|
      changes = false
      socket, peer, thread = tampering(->(kind, _) { changes && kind == 23 })
      server, client = connected(sockets: [socket, peer], **of(version))
      machine.ssl_write(client, "whole")
      assert_equal "whole", read(server)
      changes = true
      machine.ssl_write(client, "changed")
      error = assert_raises(SSL::SSLError) { read(server) }
      assert_match(/bad record mac/, error.message)
    ensure
      [socket, peer].compact.each { |io| io.close unless io.closed? }
      thread&.join
    end
  end

  def test_sessions_are_resumed
    VERSIONS.each do |version|
      contexts = of(version)
      contexts[:server].session_id_context = "kernel"
      contexts[:client].session_cache_mode = SSL::SSLContext::SESSION_CACHE_CLIENT
      session = nil
      contexts[:client].session_new_cb = ->((_, made)) { session = made }
      2.times do |round|
        server, client = ends(**contexts)
        [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
        client.session = session if session
        accepted = machine.spin { server.accept }
        client.connect
        machine.join(accepted)
        machine.ssl_write(server, "ticket first")
        assert_equal "ticket first", read(client)
        assert_equal round == 1, client.session_reused?
        [client, server].each { |ssl| ssl.io.close }
      end
    end
  end

  # Counts what is moved within the kernel.
  class CountingScheduler < UM::FiberScheduler
    attr_reader :moved

    def io_splice(...)
      super.tap { |count| @moved = (@moved || 0) + count if count.positive? }
    end
  end

  # Runs the block in a fiber under a scheduler, with both ends connected there; what it returns, and the bytes that were
  # moved within the kernel.
  def under_a_scheduler(version)
    scheduler = CountingScheduler.new
    result = nil
    Thread.new do
      Fiber.set_scheduler(scheduler)
      Fiber.schedule do
        server, client = ends(**of(version)).each { |ssl| UM::SSL.accelerate(ssl, kernel: true) }
        accepted = Fiber.schedule { server.accept }
        client.connect
        sleep(0) while accepted.alive?
        result = yield server, client
      end
    end.join
    [result, scheduler.moved.to_i]
  end

  def test_a_file_is_copied_to_a_connection
    VERSIONS.each do |version|
      Tempfile.create do |file|
        file.binmode
        file.write(BYTES)
        result, moved = under_a_scheduler(version) do |server, client|
          arrived = nil
          reader = Fiber.schedule { arrived = server.read }
          client.write("first ")
          counts = [IO.copy_stream(file.tap(&:rewind), client), IO.copy_stream(file, client, 10, 5)]
          client.close
          sleep(0.0001) while reader.alive?
          assert_same_bytes "first ".b + BYTES + BYTES[5, 10], arrived
          counts
        end
        assert_equal [BYTES.bytesize, 10], result
        assert_equal OFFERED ? BYTES.bytesize + 10 : 0, moved
      end
    end
  end

  def test_a_connection_is_copied_to_a_socket
    VERSIONS.each do |version|
      sink, target = UNIXSocket.pair
      result, moved = under_a_scheduler(version) do |server, client|
        Fiber.schedule do
          client.write("line\n", BYTES)
          client.close
        end
        arrived = nil
        reader = Fiber.schedule { arrived = sink.read }
        assert_equal "line\n", server.gets
        counts = [IO.copy_stream(server, target, 100_000), IO.copy_stream(server, target), IO.copy_stream(server, target)]
        target.close
        sleep(0.0001) while reader.alive?
        assert_same_bytes BYTES, arrived
        counts
      end
      assert_equal [100_000, BYTES.bytesize - 100_000, 0], result
      assert_equal RECEIVES[version], moved.positive?
    end
  end

  def test_a_connection_that_is_cut_off_is_no_end_for_a_copy
    VERSIONS.each do |version|
      under_a_scheduler(version) do |server, client|
        client.write("part")
        client.sysread(0)
        client.io.close
        _, target = UNIXSocket.pair
        assert_raises(SSL::SSLError, Errno::ECONNRESET) { IO.copy_stream(server, target) }
      end
    end
  end

  def test_a_copy_to_a_peer_that_is_gone_ends
    VERSIONS.each do |version|
      Tempfile.create do |file|
        file.truncate(64 << 20)
        under_a_scheduler(version) do |server, client|
          server.io.setsockopt(Socket::Option.linger(true, 0))
          server.io.close
          assert_raises(Errno::EPIPE, Errno::ECONNRESET) { IO.copy_stream(file, client) }
        end
      end
    end
  end
end
