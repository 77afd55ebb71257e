# frozen_string_literal: true

require_relative "../test_helper"
require_relative "../identity"
require "pty"
require "io/console"
require "open3"
require "tmpdir"

# ssl_set_bio, ssl_read and ssl_write.
class TestMachineTLS < MachineTest
  SSL = OpenSSL::SSL
  VERSIONS = [SSL::TLS1_2_VERSION, SSL::TLS1_3_VERSION].freeze

  class TooLate < StandardError; end

  def setup
    super
    @closed = []
  end

  def teardown
    @closed.each { |io| io.close unless io.closed? }
    super
  end

  def server_context(version = nil, **options)
    context = SSL::SSLContext.new
    context.add_certificate(Identity.certificate, Identity.key)
    configured(context, version, options)
  end

  def client_context(version = nil, **options)
    configured(SSL::SSLContext.new, version, options)
  end

  def configured(context, version, options)
    context.min_version = context.max_version = version if version
    options.each { |name, value| context.public_send(:"#{name}=", value) }
    context
  end

  # A server's and a client's end, unconnected.
  def ends(server: server_context, client: client_context, sockets: Socket.pair(:UNIX, :STREAM))
    @closed.concat(sockets)
    sockets.zip([server, client]).map { |socket, context| SSL::SSLSocket.new(socket, context) }
  end

  # Both connected, both on the ring.
  def connected(**options)
    server, client = ends(**options)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = machine.spin { server.accept }
    client.connect
    assert_same server, machine.join(accepted)
    [server, client]
  end

  # The client on the ring; the server's end is the openssl gem's own, run by the block in a thread.
  def against_stock(**options)
    server, client = ends(**options)
    thread = Thread.new do
      Thread.current.report_on_exception = false
      server.accept
      yield server
    end
    machine.ssl_set_bio(client)
    client.connect
    [client, thread]
  end

  def read(ssl, length = 100_000)
    buffer = +""
    machine.ssl_read(ssl, buffer, length)
    buffer
  end

  def read_all(ssl, length)
    received = +""
    received << read(ssl) while received.bytesize < length
    received
  end

  # What a fiber has raised: an exception as a result would be reported.
  Failed = Struct.new(:error)

  # A fiber that may raise, for `outcome`.
  def attempting
    machine.spin do
      yield
    rescue StandardError => e
      Failed.new(e)
    end
  end

  # What a fiber returns or raises.
  def outcome(fiber)
    result = machine.join(fiber)
    result.is_a?(Failed) ? result.error : result
  end

  # Waits for a thread and lets fibers run.
  def value_of(thread)
    machine.sleep(0.001) while thread.alive?
    thread.value
  end

  def test_ssl_set_bio_returns_the_machine_and_marks_the_socket
    _, client = ends
    assert_same machine, machine.ssl_set_bio(client)
    assert_same machine, machine.ssl_set_bio(client)
    assert_equal true, client.instance_variable_get(:@__um_bio__)
  end

  def test_both_roles_in_both_versions_between_fibers
    VERSIONS.each do |version|
      server, client = connected(server: server_context(version), client: client_context(version))
      assert_equal({ SSL::TLS1_2_VERSION => "TLSv1.2", SSL::TLS1_3_VERSION => "TLSv1.3" }[version], client.ssl_version)
      assert_equal 6, machine.ssl_write(client, "foobar", 6)
      assert_equal "foobar", read(server)
      assert_equal 3, machine.ssl_write(server, "baz")
      assert_equal "baz", read(client)
    end
  end

  def test_either_role_against_the_openssl_gem
    VERSIONS.each do |version|
      contexts = { server: server_context(version), client: client_context(version) }
      operations = machine.metrics[:total_ops]
      client, thread = against_stock(**contexts) { |server| server.write(server.readpartial(100).upcase) }
      machine.ssl_write(client, "from the ring")
      assert_equal "FROM THE RING", read(client)
      assert_operator machine.metrics[:total_ops], :>, operations
      thread.join

      server, client = ends(**contexts)
      thread = Thread.new do
        client.connect
        client.write("from a thread")
        client.readpartial(100)
      end
      machine.ssl_set_bio(server)
      server.accept
      assert_equal "from a thread", read(server)
      machine.ssl_write(server, "and back")
      assert_equal "and back", thread.value
    end
  end

  def test_a_socket_that_is_not_on_the_ring_is_read_and_written_as_well
    server, client = ends
    thread = Thread.new { server.accept }
    client.connect
    thread.join
    ran = 0
    reader = machine.spin { read(server) }
    machine.snooze
    machine.spin { ran += 1 }
    machine.sleep(0)
    assert_equal 1, ran
    assert_equal 6, machine.ssl_write(client, "foobar", 0)
    assert_equal "foobar", machine.join(reader)
    client.close
    assert_equal 0, machine.ssl_read(server, +"", 10)
  end

  def test_a_socket_is_put_on_the_ring_after_its_handshake
    server, client = ends
    thread = Thread.new { server.accept }
    client.connect
    client.sync = false
    client.write("unsent, ")
    thread.join
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    client.write("sent")
    client.flush
    assert_equal "unsent, sent", read(server)
  end

  def test_lengths_of_writes
    server, client = connected
    [[0], [nil], [-1], [3], [100]].each do |length|
      assert_equal(length == [3] ? 3 : 6, machine.ssl_write(client, "foobar", *length))
    end
    assert_equal "foobarfoobarfoobarfoofoobar", read_all(server, 27)
    assert_equal 0, machine.ssl_write(client, "")
    assert_equal 0, machine.ssl_read(server, buffer = +"x", 0)
    assert_equal "", buffer
  end

  def test_io_buffers
    server, client = connected
    bytes = Random.bytes(50_000)
    source = IO::Buffer.for(bytes)
    assert_equal 50_000, machine.ssl_write(client, source)
    assert_equal 10, machine.ssl_write(client, source, 10)
    memory = IO::Buffer.new(64)
    received = +""
    while received.bytesize < 50_000
      count = machine.ssl_read(server, memory, 20_000)
      received << memory.get_string(0, count)
    end
    assert_equal bytes, received[0, 50_000].b
    memory = IO::Buffer.new(4)
    assert_equal 4, machine.ssl_read(server, memory, nil) if received.bytesize == 50_000
  end

  def test_megabytes_in_both_directions_at_once
    VERSIONS.each do |version|
      server, client = connected(server: server_context(version), client: client_context(version))
      bytes = Array.new(2) { Random.bytes(5_000_000) }
      fibers = [server, client].zip(bytes).flat_map do |ssl, mine|
        [machine.spin { read_all(ssl, mine.bytesize) }, machine.spin { machine.ssl_write(ssl, mine) }]
      end
      from_client, sent, from_server, also_sent = machine.join(fibers)
      assert_equal [5_000_000, 5_000_000], [sent, also_sent]
      assert_equal bytes[1], from_client.b
      assert_equal bytes[0], from_server.b
    end
  end

  def test_megabytes_against_the_openssl_gem
    bytes = Random.bytes(3_000_000)
    client, thread = against_stock { |server| server.write(server.read(bytes.bytesize)) }
    writer = machine.spin { machine.ssl_write(client, bytes) }
    assert_equal bytes, read_all(client, bytes.bytesize).b
    machine.join(writer)
    thread.join
  end

  def test_many_readers_and_writers_of_one_connection
    server, client = connected
    messages = Array.new(20) { |number| [number].pack("N") + (number.chr * (16_380 - 4)) }
    writers = messages.map { |message| machine.spin { machine.ssl_write(client, message) } }
    received = []
    readers = Array.new(4) { machine.spin { received << read(server) while received.sum(&:bytesize) < 20 * 16_380 } }
    machine.join(writers)
    machine.ssl_write(client, "x") until readers.all?(&:done?) || !machine.snooze.nil?
    machine.terminate(readers)
    machine.join(readers)
    # One record each, so a read brings a whole one.
    assert_equal(messages.map(&:b).sort, received.map(&:b).sort.reject { |message| message == "x" })
  end

  def test_a_write_of_several_records_is_not_mixed_with_another
    server, client = connected
    messages = %w[a b c].map { |letter| letter * 500_000 }
    writers = messages.map { |message| machine.spin { machine.ssl_write(client, message) } }
    received = read_all(server, 1_500_000)
    machine.join(writers)
    assert_equal %w[a b c], received.squeeze.chars.sort
  end

  def test_buffered_methods
    server, client = connected
    fiber = machine.spin do
      lines = [server.gets, server.gets(chomp: true), server.readline]
      server.puts("three lines")
      server.print("a", "b")
      server << "c\n"
      lines + [server.read(3), server.getc, server.readpartial(100), server.readlines]
    end
    client.puts("one", "two")
    client.write("three\n", "abcd", "efg")
    assert_equal ["three lines\n", "abc\n"], [client.gets, client.gets]
    client.puts("last", "lines")
    client.write("unended")
    client.close
    *rest, partial, lines = machine.join(fiber)
    assert_equal %W[one\n two three\n abc d], rest
    assert_equal "efglast\nlines\nunended", partial + lines.join
    assert_nil server.gets
    assert server.eof?
    assert_raises(EOFError) { server.sysread(1) }
  end

  def test_the_end_is_0_for_ssl_read_and_nil_for_gets
    VERSIONS.each do |version|
      client, thread = against_stock(server: server_context(version), client: client_context(version), &:close)
      thread.join
      assert_equal 0, machine.ssl_read(client, +"", 10)
      assert_equal 0, machine.ssl_read(client, +"", 10)
      assert_nil client.gets
      assert_equal "", client.read
    end
  end

  def test_an_end_without_close_notify_is_an_error
    client, thread = against_stock { |server| server.to_io.close }
    thread.join
    error = assert_raises(SSL::SSLError) { read(client) }
    assert_match(/unexpected eof while reading/, error.message)
    assert_empty OpenSSL.errors
    client, thread = against_stock { |server| server.to_io.close }
    thread.join
    assert_match(/unexpected eof/, assert_raises(SSL::SSLError) { client.gets }.message)
  end

  def test_an_end_without_close_notify_can_be_the_end
    ignoring = client_context(nil, options: SSL::OP_IGNORE_UNEXPECTED_EOF)
    client, thread = against_stock(client: ignoring) { |server| server.to_io.close }
    thread.join
    assert_equal 0, machine.ssl_read(client, +"", 10)
  end

  def test_errors_of_the_socket_are_errnos
    server, client = connected(sockets: TCPServer.open("127.0.0.1", 0) { |listener| [TCPSocket.new("127.0.0.1", listener.addr[1]), listener.accept] })
    server.to_io.setsockopt(Socket::Option.linger(true, 0))
    server.to_io.close
    assert_raises(Errno::ECONNRESET) { read(client) }
    assert_raises(Errno::EPIPE) { 2.times { machine.ssl_write(client, "x") } }
  end

  def test_garbage_is_an_error_with_its_reason
    server, client = ends
    machine.ssl_set_bio(client)
    server.to_io.write("this is not TLS\n" * 10)
    error = assert_raises(SSL::SSLError) { client.connect }
    assert_match(/wrong version number/, error.message)
    # The alert has been sent.
    server.to_io.close_write
    refute_empty server.to_io.readpartial(10_000)
  end

  def test_a_self_signed_certificate_is_refused_as_the_openssl_gem_refuses_it
    VERSIONS.each do |version|
      messages = [true, false].map do |on_ring|
        server, client = ends(server: server_context(version), client: client_context(version, verify_mode: SSL::VERIFY_PEER))
        thread = Thread.new { assert_raises(SSL::SSLError) { server.accept && server.read } }
        machine.ssl_set_bio(client) if on_ring
        error = assert_raises(SSL::SSLError) { client.connect }
        assert_equal OpenSSL::X509::V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, client.verify_result
        assert_match(/alert unknown ca/, thread.value.message)
        error.message.sub(/peeraddr=.*? state/, "state")
      end
      assert_match(/certificate verify failed \(self-signed certificate\)/, messages.first)
      assert_equal(*messages)
    end
  end

  def verifying(**options)
    store = OpenSSL::X509::Store.new
    store.add_cert(Identity.certificate)
    client_context(nil, verify_mode: SSL::VERIFY_PEER, verify_hostname: true, cert_store: store, **options)
  end

  def test_host_names_are_verified
    server, client = ends(client: verifying)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = machine.spin { server.accept }
    client.hostname = "localhost"
    assert_same client, client.connect
    assert client.post_connection_check("localhost")
    machine.join(accepted)

    server, client = ends(client: verifying)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = attempting { server.accept }
    client.hostname = "example.com"
    error = assert_raises(SSL::SSLError) { client.connect }
    assert_match(/certificate verify failed \(hostname mismatch\)/i, error.message)
    assert_kind_of SSL::SSLError, outcome(accepted)
    assert_empty OpenSSL.errors
  end

  def test_callbacks_are_called_and_what_they_raise_reaches_the_caller
    names = []
    server = server_context(nil, servername_cb: ->((_, name)) { names << name; nil }, alpn_select_cb: :last.to_proc)
    server, client = ends(server:, client: client_context(nil, alpn_protocols: %w[h2 http/1.1]))
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = machine.spin { server.accept }
    client.hostname = "localhost"
    client.connect
    machine.join(accepted)
    assert_equal ["localhost"], names
    assert_equal "http/1.1", client.alpn_protocol

    server, client = ends(server: server_context(nil, servername_cb: ->(_) { raise TooLate }))
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = attempting { server.accept }
    client.hostname = "localhost"
    assert_raises(SSL::SSLError) { client.connect }
    assert_kind_of TooLate, outcome(accepted)
  end

  def test_a_callback_may_wait
    server = server_context(nil, servername_cb: ->(_) { machine.sleep(0.001); nil })
    server, client = ends(server:)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = machine.spin { server.accept }
    client.hostname = "localhost"
    client.connect
    assert_same server, machine.join(accepted)
    machine.ssl_write(client, "x")
    assert_equal "x", read(server)
  end

  def test_another_fiber_is_refused_while_a_callback_waits
    waiting = false
    server = server_context(nil, servername_cb: ->(_) { waiting = true; machine.yield; nil })
    server, client = ends(server:)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    accepted = machine.spin { server.accept }
    client.hostname = "localhost"
    connecting = machine.spin { client.connect }
    eventually { waiting }
    assert_names("ssl_socket", UM::Error) { read(server) }
    machine.schedule(accepted, nil)
    machine.join(accepted, connecting)
  end

  def test_sessions_are_reused
    VERSIONS.each do |version|
      contexts = { server: server_context(version, session_id_context: "test"), client: client_context(version) }
      sessions = []
      contexts[:client].session_cache_mode = SSL::SSLContext::SESSION_CACHE_CLIENT
      contexts[:client].session_new_cb = ->((_, session)) { sessions << session }
      server, client = connected(**contexts)
      machine.ssl_write(server, "x")
      read(client)
      refute_predicate client, :session_reused?
      server, client = ends(**contexts)
      [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
      client.session = sessions.last
      accepted = machine.spin { server.accept }
      client.connect
      machine.join(accepted)
      assert_predicate client, :session_reused?
    end
  end

  # An `openssl s_client` or `s_server`, and our end of its connection.
  def with_openssl(role, *options)
    program = ENV.fetch("PATH").split(":").map { |folder| File.join(folder, "openssl") }.find { |path| File.executable?(path) }
    skip "no openssl command" unless program
    Dir.mktmpdir do |folder|
      File.write(File.join(folder, "both.pem"), Identity.certificate.to_pem + Identity.key.to_pem)
      TCPServer.open("127.0.0.1", 0) do |listener|
        there = role == "s_server" ? ["-accept", "127.0.0.1:0", "-cert", File.join(folder, "both.pem")] : ["-connect", "127.0.0.1:#{listener.addr[1]}"]
        Open3.popen2e(program, role, *there, *options) do |input, output, child|
          socket = role == "s_server" ? connect_to(output) : listener.accept
          @closed << socket
          yield socket, input, output
        ensure
          Process.kill(:KILL, child.pid)
        end
      end
    end
  end

  # A connection to an `openssl s_server`, which says where it listens.
  def connect_to(output)
    said = []
    until (port = said.last&.slice(/^ACCEPT .*:(\d+)/, 1))
      said << (output.gets || flunk("the server has ended: #{said.join}"))
    end
    TCPSocket.new("127.0.0.1", port)
  end

  # Has the openssl command do what a letter stands for, which has to be all there is to read.
  def command(input, letter)
    input.puts(letter)
    unread = [1].pack("i")
    until unread.unpack1("i").zero?
      machine.sleep(0.001)
      input.ioctl(0x541B, unread) # FIONREAD
    end
  end

  def test_a_peer_that_renegotiates
    with_openssl("s_client", "-tls1_2", "-legacy_renegotiation") do |socket, input, output|
      context = server_context(SSL::TLS1_2_VERSION)
      # OP_ALLOW_CLIENT_RENEGOTIATION, which the gem does not name.
      context.options |= 1 << 8
      count = 0
      context.renegotiation_cb = ->(_) { count += 1 }
      server = SSL::SSLSocket.new(socket, context)
      machine.ssl_set_bio(server)
      server.accept
      machine.ssl_write(server, "before\n")
      nil until output.gets.include?("before")
      before = count
      reader = machine.spin { read(server) }
      command(input, "R")
      machine.sleep(0.001) until count > before
      input.puts("after")
      assert_equal "after\n", machine.join(reader)
      assert_equal 4, machine.ssl_write(server, "more")
    end
  end

  def test_a_server_that_renegotiates
    with_openssl("s_server", "-tls1_2") do |socket, input, output|
      client = SSL::SSLSocket.new(socket, client_context(SSL::TLS1_2_VERSION))
      machine.ssl_set_bio(client)
      client.connect
      reader = machine.spin { read(client) }
      nil until output.gets.start_with?("Secure Renegotiation")
      command(input, "r")
      input.puts("hello")
      assert_equal "hello\n", machine.join(reader)
      machine.ssl_write(client, "written\n")
      nil until output.gets.include?("written")
    end
  end

  def test_keys_are_updated
    with_openssl("s_server", "-tls1_3") do |socket, input, output|
      client = SSL::SSLSocket.new(socket, client_context(SSL::TLS1_3_VERSION))
      machine.ssl_set_bio(client)
      client.connect
      nil until output.gets.start_with?("CIPHER")
      3.times do |number|
        reader = machine.spin { read(client) }
        command(input, "K")
        input.puts("message #{number}")
        assert_equal "message #{number}\n", machine.join(reader)
        machine.ssl_write(client, "answer #{number}\n")
        nil until output.gets.include?("answer #{number}")
      end
    end
  end

  def test_a_read_that_is_cut_off_loses_nothing
    server, client = connected
    100.times do |number|
      assert_raises(TooLate) { machine.timeout(0, TooLate) { read(client) } } if number.even?
      reader = attempting { read(client) }
      machine.snooze
      machine.schedule(reader, TooLate.new) if number.odd?
      machine.ssl_write(server, "message #{number}")
      result = outcome(reader)
      result = read(client) if result.is_a?(TooLate)
      assert_equal "message #{number}", result
    end
  end

  def test_a_record_in_pieces_and_a_read_that_is_cut_off_between_them
    inner, outer = Socket.pair(:UNIX, :STREAM)
    far, near = Socket.pair(:UNIX, :STREAM)
    @closed.push(inner, outer, far, near)
    server = SSL::SSLSocket.new(inner, server_context)
    client = SSL::SSLSocket.new(near, client_context)
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    pumps = [[outer, far], [far, outer]].map do |from, to|
      machine.spin do
        buffer = +""
        machine.write(to.fileno, buffer) while machine.read(from.fileno, buffer, 10_000).positive?
      end
    end
    accepted = machine.spin { server.accept }
    client.connect
    machine.join(accepted)
    machine.ssl_write(server, "ticket")
    assert_equal "ticket", read(client)
    machine.terminate(pumps)
    machine.join(pumps)

    machine.ssl_write(server, "whole")
    record = +""
    machine.read(outer.fileno, record, 1000)
    received = nil
    record.each_char do |byte|
      reader = attempting { read(client) }
      machine.snooze
      machine.write(far.fileno, byte)
      3.times { machine.snooze }
      machine.submit
      machine.schedule(reader, TooLate.new)
      received = outcome(reader)
      assert_kind_of TooLate, received unless received == "whole"
    end
    received = read(client) unless received == "whole"
    assert_equal "whole", received
  end

  def test_a_write_that_is_cut_off_keeps_the_stream_whole
    server, client = connected
    bytes = "0123456789abcdef" * 200_000
    writer = attempting { machine.ssl_write(client, bytes) }
    machine.sleep(0.001)
    machine.schedule(writer, TooLate.new)
    count = outcome(writer)
    finisher = machine.spin { machine.ssl_write(client, "END") }
    received = +""
    received << read(server) until received.end_with?("END")
    machine.join(finisher)
    assert_equal bytes[0, count], received.delete_suffix("END")
  end

  def test_a_buffered_write_that_is_cut_off_is_continued_not_repeated
    server, client = connected
    bytes = "0123456789abcdef" * 200_000
    writer = attempting { client.write(bytes) }
    machine.sleep(0.001)
    machine.schedule(writer, TooLate.new)
    assert_kind_of TooLate, outcome(writer)
    finisher = machine.spin { client.write("END") }
    assert_equal "#{bytes}END", read_all(server, bytes.bytesize + 3)
    machine.join(finisher)
  end

  def test_interruptions_at_random_lose_and_repeat_nothing
    VERSIONS.each do |version|
      random = Random.new(42)
      server, client = connected(server: server_context(version), client: client_context(version))
      bytes = random.bytes(1_500_000)
      left = bytes.dup
      received = +""
      writer = reader = nil
      until received.bytesize == bytes.bytesize
        writer = attempting { left.empty? ? client.flush : client.write(left.slice!(0, random.rand(1..300_000))) } if writer.nil? || writer.done?
        reader = attempting { received << read(server, random.rand(1..70_000)) } if reader.nil? || reader.done?
        (1 + random.rand(4)).times { machine.snooze }
        machine.submit if random.rand(2).zero?
        machine.schedule([reader, writer].sample(random:), TooLate.new) if random.rand(3).zero?
        machine.snooze
      end
      machine.terminate(writer)
      machine.join(writer)
      assert_equal bytes, received.b
    end
  end

  # What is received as an exception comes is there for the next who reads.
  def test_an_exception_from_another_thread_that_comes_with_a_record
    server, client = ends
    waiting = Thread::Queue.new
    read = +""
    thread = Thread.new do
      own = UM.new
      own.ssl_set_bio(client)
      client.connect
      own.ssl_read(client, read, 100)
      waiting << true
      begin
        own.ssl_read(client, read, 100)
      rescue TooLate
        own.ssl_read(client, read, 100)
      end
    end
    server.accept
    server.write("first")
    waiting.pop
    Thread.pass until thread.stop?
    # Neither lets the other thread run Ruby in between.
    server.write_nonblock("with an exception")
    thread.raise(TooLate)
    assert thread.join(20), "it was lost"
    assert_equal "with an exception", read
  end

  def test_exceptions_from_another_thread_lose_nothing
    server, client = connected
    received = +""
    thread = Thread.handle_interrupt(TooLate => :never) do
      Thread.new do
        until received.end_with?("END")
          begin
            Thread.handle_interrupt(TooLate => :on_blocking) { received << client.readpartial(100) }
          rescue TooLate
            next
          end
        end
      end
    end
    sent = +""
    200.times do |number|
      server.write(text = "message #{number}, ")
      sent << text
      thread.raise(TooLate)
      machine.snooze
    end
    server.write("END")
    value_of(thread)
    assert_equal "#{sent}END", received
  end

  def test_a_write_that_waits_for_its_peer_lets_others_run
    server, client = connected
    writer = machine.spin { client.write("x" * 5_000_000) }
    turns = 0
    other = machine.spin { 10.times { machine.sleep(0.001); turns += 1 } }
    machine.join(other)
    assert_equal 10, turns
    refute_predicate writer, :done?
    read_all(server, 5_000_000)
    assert_equal 5_000_000, machine.join(writer)
  end

  def test_the_timeout_of_the_io_ends_a_wait_of_the_stock_methods
    server, client = connected
    client.to_io.timeout = 0.005
    assert_raises(IO::TimeoutError) { client.gets }
    machine.ssl_write(server, "x\n")
    assert_equal "x\n", client.gets
    assert_raises(IO::TimeoutError) { client.write("x" * 10_000_000) }
  end

  def test_nonblocking_methods
    server, client = ends
    [server, client].each { |ssl| machine.ssl_set_bio(ssl) }
    assert_raises(SSL::SSLErrorWaitReadable) { client.connect_nonblock }
    assert_equal :wait_readable, server.accept_nonblock(exception: false)
    connected = [server, client].map { false }
    until connected.all?
      connected = [server.accept_nonblock(exception: false), client.connect_nonblock(exception: false)].map { |result| result.is_a?(SSL::SSLSocket) }
    end
    assert_equal :wait_readable, client.read_nonblock(10, exception: false)
    assert_raises(SSL::SSLErrorWaitReadable) { client.read_nonblock(10) }
    assert_equal 6, server.write_nonblock("foobar")
    assert_equal "foo", client.read_nonblock(3)
    buffer = +""
    assert_same buffer, client.read_nonblock(10, buffer)
    assert_equal "bar", buffer
    sent = 0
    while (count = server.write_nonblock("x" * 10_000, exception: false)) != :wait_writable
      sent += count
    end
    assert_raises(SSL::SSLErrorWaitWritable) { server.write_nonblock("x") }
    assert_equal sent, client.read(sent).size
    server.close
    assert_nil client.read_nonblock(1, exception: false)
    assert_raises(EOFError) { client.read_nonblock(1) }
  end

  def test_another_thread_uses_its_own_machine
    server, client = connected
    reader = machine.spin { read(client) }
    machine.snooze
    thread = Thread.new do
      server.puts("from a thread")
      server.gets
    end
    assert_equal "from a thread\n", machine.join(reader)
    client.puts("and back")
    assert_equal "and back\n", value_of(thread)
  end

  def test_a_fiber_and_another_thread_read_the_same_connection
    server, client = connected
    reader = machine.spin { read(client) }
    machine.snooze
    thread = Thread.new { client.readpartial(100) }
    Thread.pass until thread.status == "sleep"
    machine.ssl_write(server, "one")
    first = machine.join(reader)
    machine.ssl_write(server, "two")
    assert_equal %w[one two], [first, value_of(thread)]
  end

  def test_a_scheduler_s_fibers_on_its_machine
    server, client = ends
    lines = Thread.new do
      scheduler = UM::FiberScheduler.new
      Fiber.set_scheduler(scheduler)
      [server, client].each { |ssl| scheduler.machine.ssl_set_bio(ssl) }
      lines = []
      Fiber.schedule do
        server.accept
        lines << server.gets
        server.puts("back")
      end
      Fiber.schedule do
        client.connect
        client.puts("there")
        lines << client.gets
      end
      Fiber.set_scheduler(nil)
      lines
    end
    assert_equal %W[there\n back\n], value_of(lines)
  end

  def test_closing_wakes_whoever_waits
    server, client = connected
    client.sync_close = true
    reader = attempting { read(client) }
    machine.snooze
    client.close
    assert_kind_of IOError, outcome(reader)
    assert_equal 0, machine.ssl_read(server, +"", 10)
    assert_raises(IOError) { read(client) }
    assert_raises(IOError) { machine.ssl_write(client, "x") }
    assert_nil client.close
  end

  def test_a_closed_socket_cannot_be_put_on_the_ring
    _, client = ends
    client.to_io.close
    assert_raises(IOError) { machine.ssl_set_bio(client) }
  end

  def test_a_socket_that_is_not_connected
    _, client = ends
    machine.ssl_set_bio(client)
    assert_match(/uninitialized/, assert_raises(SSL::SSLError) { read(client) }.message)
    assert_match(/uninitialized/, assert_raises(SSL::SSLError) { machine.ssl_write(client, "x") }.message)
    _, client = ends
    assert_raises(SSL::SSLError) { read(client) }
  end

  def test_descriptors_that_are_no_sockets
    near, far = PTY.open
    near.raw!
    server, client = connected(sockets: [near, far])
    bytes = Random.bytes(100_000)
    writer = machine.spin { machine.ssl_write(server, bytes) }
    assert_equal bytes, read_all(client, bytes.bytesize).b
    machine.join(writer)
    client.puts("back")
    assert_equal "back\n", server.gets
  end

  def test_what_is_in_use_survives_collection_and_compaction
    server, client = connected
    buffer = +""
    reader = machine.spin { machine.ssl_read(client, buffer, 60_000) }
    line = machine.spin { read(client) }
    machine.snooze
    GC.verify_compaction_references(toward: :empty, expand_heap: true)
    500.times { SSL::SSLSocket.new(@closed.first, client_context) }
    GC.start
    machine.ssl_write(server, "first")
    assert_equal 5, machine.join(reader)
    machine.ssl_write(server, "second")
    assert_equal %w[first second], [buffer, machine.join(line)]
  end

  def test_connections_that_are_dropped_give_their_memory_back
    3.times do
      50.times { connected.each { |ssl| ssl.to_io.close } }
      @closed.clear
      GC.start
    end
    before = rss
    3.times do
      50.times { connected.each { |ssl| ssl.to_io.close } }
      @closed.clear
      GC.start
    end
    assert_operator rss - before, :<, 20_000
  end

  def test_bad_arguments
    server, client = connected
    [nil, 1, "ssl", server.to_io, Object.new, BasicObject.new].each do |wrong|
      assert_names("ssl_socket", TypeError) { machine.ssl_set_bio(wrong) }
      assert_names("ssl_socket", TypeError) { machine.ssl_read(wrong, +"", 1) }
      assert_names("ssl_socket", TypeError) { machine.ssl_write(wrong, "x") }
    end
    assert_names("ssl_socket", UM::Error) { machine.ssl_read(SSL::SSLSocket.allocate, +"", 1) }
    assert_names("buffer", UM::Error) { machine.ssl_read(client, nil, 1) }
    assert_names("buffer", UM::Error) { machine.ssl_write(client, :x) }
    assert_raises(FrozenError) { machine.ssl_read(client, "frozen", 1) }
    assert_names("maxlen", TypeError) { machine.ssl_read(client, +"", "1") }
    assert_names("maxlen", ArgumentError) { machine.ssl_read(client, +"", -1) }
    assert_names("maxlen", ArgumentError) { machine.ssl_read(client, +"", 1 << 80) }
    assert_names("len", TypeError) { machine.ssl_write(client, "x", "1") }
    assert_names("len", ArgumentError) { machine.ssl_write(client, "x", -2) }
    assert_raises(ArgumentError) { machine.ssl_set_bio }
    assert_raises(ArgumentError) { machine.ssl_read(client) }
    assert_raises(TypeError) { client.syswrite(1) }
    assert_raises(ArgumentError) { client.sysread(-1) }
  end

  def test_without_the_openssl_extension
    output, status = ruby(<<~RUBY)
      puts defined?(OpenSSL).inspect
      begin
        UM.new.ssl_set_bio(1)
      rescue TypeError => error
        puts error.message
      end
    RUBY
    assert_predicate status, :success?
    assert_equal "nil\nssl_socket must be an OpenSSL::SSL::SSLSocket, not Integer\n", output
  end

  def test_a_buffered_stream_over_tls
    server, client = connected
    writer = machine.io(server)
    reader = UM::IO.new(machine, client, :ssl)
    assert_equal :ssl, writer.mode
    assert_equal 14, writer.write("foobar\n", "baz", "\r\n", "qu")
    assert_equal "foobar", reader.read_line(0)
    assert_equal "baz", reader.read_line(0)
    assert_equal "qu", reader.read(2)
    bytes = Random.bytes(1_000_000)
    sending = machine.spin { writer.write(bytes) }
    assert_equal bytes, reader.read(bytes.bytesize)
    assert_equal bytes.bytesize, machine.join(sending)
    writer.resp_write(["a", 1])
    assert_equal ["a", 1], reader.resp_read
    assert_raises(TooLate) { machine.timeout(0.002, TooLate) { reader.read(1) } }
    writer.write("after")
    server.close
    assert_equal "after", reader.read(0)
    assert_nil reader.read(0)
    assert_predicate reader, :eof?
  end

  def test_a_buffered_stream_over_a_stock_socket_takes_it_over
    server, client = ends
    accepting = Thread.new { server.accept && server.puts("hello") }
    io = machine.io(client)
    client.connect
    assert_equal "hello", io.read_line
    accepting.join
  end
end
