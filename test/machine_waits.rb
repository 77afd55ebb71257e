# frozen_string_literal: true

require "io/nonblock"
require_relative "identity"
require_relative "waits"

# Every method of a machine, and of what belongs to one, that waits: what test_machine_cancellation.rb ends. A block of
# `machine` prepares a wait, given the machine; what it has open is of `own` (numbers) and `keep` (IOs).
module Waits
  # What a wait is given by `schedule` that is ended so.
  OTHER = Object.new

  # What has come of a wait's descriptor, or not: it may be dead.
  PATIENCE = 10

  # What never waits for something outside, by reasons.
  NEVER[:machine] = {
    "it tells something, or notes it": %i[
      features fiber_set getsockopt metrics owned? peername pending_fibers profile_mode= profile_mode? setsockopt sidecar_mode? sidecar_start
      sidecar_stop size sockname sqpoll_mode? test_mode= Mutex#locked? Mutex#owned? Queue#count Queue#num_waiting AsyncOp#cancel
      AsyncOp#cancelled? AsyncOp#done? AsyncOp#kind AsyncOp#result IO#consumed IO#eof? IO#mode IO#pending BufferPool#available
      BufferPool#close BufferPool#closed? BufferPool#release BufferPool#size Process#alive? Process#close Process#closed?
      Process#fileno Process#inspect Process#kill Process#on_exit Process#pid Actor#cast Actor#stop Actor#target report
      stalls warn_of_stalls
      Report#fibers Report#headline Report#time Report#to_h Report#to_json Report#to_s
    ],
    "the kernel does it at once": %i[bind listen socket tcp_listen ssl_set_bio submit wakeup],
    "it makes something, which others wait for": %i[io prep_timeout process_open push register_buffers register_file spin unregister_file unshift],
    "it has something done, and does not wait for that": %i[close_async schedule shutdown_async terminate write_async IO#clear],
    "the disk answers, always": %i[fadvise fallocate fdatasync fsync ftruncate link mkdir rename rmdir statx symlink unlink],
    "it lets the others run, and goes on": %i[snooze spin_actor],
    "it never returns": %i[run],
    "it waits on threads of its own: test_doctor.rb": %i[Doctor#findings Doctor#to_h Doctor#to_json Doctor#to_s Doctor#works?],
    "a name server answers: test_resolve.rb": %i[resolve DNSResolver#resolve],
    "a part of an actor, which is its fiber": %i[Actor#prepare Actor#run]
  }

  class << self
    # @return [Hash{Class => String}] the classes whose methods are in the table, with what their names begin with there
    def classes_of_machines
      named = UringMachine.constants.map { |name| UringMachine.const_get(name) }
      named = named.grep(Class).reject { |found| found <= Exception || [UM::FiberScheduler, UM::Selector].include?(found) }
      { UringMachine => "" }.merge(named.to_h { |found| [found, "#{found.name.split("::").last}#"] })
    end

    def machine(*covers, named: covers.first, &) = wait(:machine, *covers, named:, &)

    # Keeps descriptors until all are closed, together.
    def own(*fds)
      (@owned ||= []).concat(fds.grep(Integer))
      fds.size == 1 ? fds.first : fds
    end

    # Somebody has closed one.
    def disown(fd) = @owned.delete(fd)

    # Has something done when all is closed: a call without arguments, whatever comes of it.
    def finally(object, method) = (@last ||= []) << [object, method]

    def close_all_of(machine)
      owned, @owned = @owned || [], []
      last, @last = @last || [], []
      owned.each { |fd| machine.close(fd) }
    ensure
      close_all
      last.each { |object, method| object.public_send(method) rescue nil }
    end

    # A name for a UNIX socket that nobody has had.
    def new_name = "\0um-waits-#{Process.pid}-#{@names = (@names || 0) + 1}"

    # Pairs: the descriptor that a machine waits for, and the other end.

    def reading_pipe = UM.pipe.then { |reader, writer| [own(reader), keep(IO.for_fd(writer, "w").tap { |io| io.sync = true })] }

    def writing_pipe = UM.pipe.then { |reader, writer| [own(writer), keep(IO.for_fd(reader))] }

    def sockets(type = UM::SOCK_STREAM)
      UM.socketpair(UM::AF_UNIX, type, 0).then { |one, other| [own(one), keep(UNIXSocket.for_fd(other))] }
    end

    # What they hold at once is little.
    def tcp_sockets
      server = TCPServer.new("127.0.0.1", 0)
      client = TCPSocket.new("127.0.0.1", server.local_address.ip_port)
      accepted = server.accept
      server.close
      [client, accepted].each { |socket| %i[SNDBUF RCVBUF].each { |buffer| socket.setsockopt(:SOCKET, buffer, 20_000) } }
      client.autoclose = false
      [own(client.fileno), keep(accepted)]
    end

    # An SSLSocket on the machine's ring, and its peer, which is not.
    def tls_sockets(machine)
      one, other = keep(*UNIXSocket.pair)
      context = OpenSSL::SSL::SSLContext.new.tap { |made| made.add_certificate(Identity.certificate, Identity.key) }
      server = OpenSSL::SSL::SSLSocket.new(one, context)
      client = OpenSSL::SSL::SSLSocket.new(other)
      machine.ssl_set_bio(server)
      connecting = Thread.new { client.connect }
      server.accept
      connecting.value
      [server, client]
    end

    # Fills a descriptor whose other end nobody reads; what it holds.
    def fill_fd(fd)
      io = IO.for_fd(fd, autoclose: false)
      fill(io).tap { io.nonblock = false }
    end

    def contents(buffer) = buffer.is_a?(String) ? buffer.b : buffer.get_string

    # The bytes that a read has brought, or what it has returned instead.
    def brought(buffer, count) = count.is_a?(Integer) ? contents(buffer).byteslice(0, count) : count

    # All that there is yet to be read, once something more was written.
    def rest(machine, writer, &read)
      writer << "later\n"
      got = +""
      machine.timeout(PATIENCE, RuntimeError, "what was written did not come") { got << read.call until got.end_with?("later\n") }
      got.delete_suffix("later\n")
    end

    def rest_of(machine, fd, writer)
      rest(machine, writer) { (+"").tap { |piece| machine.read(fd, piece, 100) } }
    end

    # Whether a buffer has what was read, and what was in it before, and nobody holds it.
    def filled?(buffer, before, value)
      if buffer.is_a?(String)
        same = buffer == (value || before)
        # One that is held could not be changed.
        buffer << "x"
        same
      else
        raise "the buffer is locked" if buffer.locked?

        contents(buffer) == "#{value}#{before.byteslice(value.to_s.bytesize..)}"
      end
    end

    # A wait for bytes, in a buffer. The block is given what reads, and the buffer, and returns the count; `again` reads what
    # is left. Some may be there already.
    def reading_into(buffer, (reader, writer), text: "bytes\n", there: 0, again: nil, &read)
      before = contents(buffer)
      again ||= ->(machine, fd) { rest_of(machine, fd, writer) }
      writer << text.byteslice(0, there)
      check = lambda do |machine, value|
        now = contents(buffer)
        left = again.call(machine, reader)
        raise "it was written to afterwards" unless contents(buffer) == now

        filled?(buffer, before, value) && "#{value}#{left}" == text
      end
      fd = reader if reader.is_a?(Integer)
      # What is to be read whole may be read in parts.
      Wait.new(fd:, buffer:, partly: there.positive?, peer: writer, check:, wait: -> { brought(buffer, read.call(reader, buffer)) },
               complete: -> { writer << text.byteslice(there..) })
    end

    # A wait for bytes that are returned. `again` reads what is left.
    def reading_bytes((reader, writer), text: "bytes\n", there: 0, again: nil, held: there.positive?, &read)
      again ||= ->(machine) { rest_of(machine, reader, writer) }
      writer << text.byteslice(0, there)
      fd = reader if reader.is_a?(Integer)
      Wait.new(fd:, held:, wait: -> { read.call(reader) }, complete: -> { writer << text.byteslice(there..) },
               check: ->(machine, value) { "#{value}#{again.call(machine)}" == text })
    end

    # A wait by a UM::IO. What comes is for it, or for one of another machine.
    def reading_by_io(machine, mode, text: "bytes\n", there: 0, value: :itself.to_proc, &read)
      pair = mode == :fd ? reading_pipe : sockets
      io = machine.io(pair.first, mode)
      again = lambda do |other|
        left = other.equal?(machine) ? io : other.io(pair.first, mode)
        pair.last << "later!"
        left.read_to_delim("!").delete_suffix("later")
      end
      reading_bytes(pair, text:, there:, again:) { read.call(io).then { |got| got.equal?(OTHER) ? got : value.call(got) } }
    end

    # A wait for room, until it has been read so much that the end comes. What has arrived is what was there, then as many of
    # the bytes as it says, then what is written next by the same way. `partly`: it may have moved some before it waits, and
    # where it is killed nobody is told; nor elsewhere, if it does not count.
    def writing_by(machine, (writer, reader), partly: false, counts: true, bytes: BYTES, last: nil, &write)
      held = writer.is_a?(Integer) ? fill_fd(writer) : ""
      received = +"".b
      last ||= ->(other) { other.writev(writer, "END") }
      complete = lambda do
        drain(reader, received) if reader.is_a?(IO)
        @draining = Thread.new do
          received << reader.readpartial(1 << 16) until received.end_with?("END")
        rescue IOError, SystemCallError
          # Nobody asks what has come.
        end
      end
      check = lambda do |other, value|
        other.timeout(PATIENCE, RuntimeError, "the descriptor takes no more") { last.call(other) }
        @draining.join
        sent = received.delete_prefix(held).delete_suffix("END")
        raise "other bytes have come than were written" unless bytes.start_with?(sent)

        counts ? sent.bytesize == (value || 0) : value.nil? || sent == bytes
      end
      fd = writer if writer.is_a?(Integer)
      Wait.new(fd:, partly:, held: fd.nil?, wait: -> { write.call(writer, bytes) }, complete:, check:)
    end

    # A wait for a message's place in a queue that is full. It arrives once, if the wait has returned, or not at all.
    def writing_a_message(machine, fd, reader, message: "message", &write)
      count = 0
      receive = lambda do
        loop { count += 1 if reader.recv_nonblock(100) == message }
      rescue IO::WaitReadable
        # All that there is.
      end
      check = lambda do |_, value|
        receive.call
        count == (value ? 1 : 0)
      end
      Wait.new(fd:, wait: -> { write.call(fd, message) }, complete: receive, check:)
    end

    # A wait for a connection. Each of those that come is accepted, once, in order.
    def accepting(machine, text = nil, &accept)
      name = new_name
      server = own(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
      machine.bind(server, name)
      machine.listen(server, 10)
      come = ->(said) { keep(UNIXSocket.new(name)) << said }
      said_by = ->(fd) { IO.for_fd(fd, autoclose: false).readpartial(1) }
      check = lambda do |other, value|
        come.call("2")
        said = [*value].map(&said_by)
        other.timeout(PATIENCE, RuntimeError, "no connection came") { said << said_by.call(own(other.accept(server))) until said.last == "2" }
        said == %w[1 2]
      end
      Wait.new(fd: server, wait: -> { own(accept.call(server)) }, complete: -> { come.call("1") }, check:)
    end

    # A wait for something of which the block's value says whether it is as it should be afterwards.
    def waiting(complete, wait, held: false, &check)
      Wait.new(wait:, complete:, held:, check: ->(machine, value) { check.call(value, machine) })
    end

    # A child that runs until its standard input ends.
    def child
      reader, writer = keep(*IO.pipe)
      @child = Process.spawn("cat", in: reader, out: File::NULL)
      reader.close
      [@child, -> { writer.close }]
    end

    # A folder that is there until all is closed.
    def folder = Dir.mktmpdir.tap { |path| finally(-> { FileUtils.rm_rf(path) }, :call) }
  end

  # --- Bytes into buffers

  BUFFERS = {
    "a short String" => ->(_) { +"#" * 64 },
    "a long String" => ->(_) { "#" * 20_000 },
    "a short IO::Buffer" => ->(_) { IO::Buffer.new(64).clear(35) },
    "a long IO::Buffer" => ->(_) { IO::Buffer.new(20_000).clear(35) },
    "a slice" => ->(_) { IO::Buffer.new(20_000).clear(35).slice(100, 10_000) },
    "a registered buffer" => lambda do |machine|
      pool = machine.register_buffers(count: 1, size: 4096)
      finally(pool, :close)
      pool.acquire.tap { |buffer| buffer.clear(35) && finally(-> { pool.release(buffer) }, :call) }
    end
  }.freeze

  BUFFERS.each do |name, make|
    machine(:read, named: "read into #{name}") do |machine|
      reading_into(make.call(machine), reading_pipe) { |fd, buffer| machine.read(fd, buffer, nil) }
    end
    machine(:recv, named: "recv into #{name}") do |machine|
      reading_into(make.call(machine), sockets) { |fd, buffer| machine.recv(fd, buffer, nil) }
    end
  end
  { "socket" => -> { sockets }, "socket of messages" => -> { sockets(UM::SOCK_SEQPACKET) } }.each do |name, pair|
    machine(:read, named: "read of a #{name}") do |machine|
      reading_into("#" * 20_000, pair.call) { |fd, buffer| machine.read(fd, buffer, nil) }
    end
  end
  machine(:recv, named: "recv of all, with a half there") do |machine|
    all = "all bytes\n"
    reading_into("#" * 20_000, sockets, text: all, there: 4) { |fd, buffer| machine.recv(fd, buffer, all.bytesize, UM::MSG_WAITALL) }
  end
  machine(:recvfrom) do |machine|
    reading_into("#" * 20_000, sockets(UM::SOCK_DGRAM)) do |fd, buffer|
      machine.recvfrom(fd, buffer, nil).then { |got| got.equal?(OTHER) ? got : got.first }
    end
  end
  machine(:ssl_read) do |machine|
    server, client = pair = tls_sockets(machine)
    again = ->(other, _) { rest(other, client) { (+"").tap { |piece| other.ssl_read(server, piece, 100) } } }
    reading_into("#" * 20_000, pair, again:) { |ssl, buffer| machine.ssl_read(ssl, buffer) }
  end

  # --- Bytes otherwise

  machine(:read_each) { |machine| reading_bytes(reading_pipe) { |fd| machine.read_each(fd) { |bytes| break bytes } } }
  { "" => UM::SOCK_STREAM, " of messages" => UM::SOCK_SEQPACKET }.each do |name, type|
    machine(:recv_each, named: "recv_each#{name}") do |machine|
      reading_bytes(sockets(type)) { |fd| machine.recv_each(fd) { |bytes| break bytes } }
    end
  end
  %i[fd socket].each do |mode|
    line = ->(got) { got && "#{got}\n" }
    machine(:"IO#read_line", named: "IO#read_line of a #{mode}") { |machine| reading_by_io(machine, mode, value: line, &:read_line) }
    machine(:"IO#read_line", named: "IO#read_line of a #{mode}, with a half there") do |machine|
      reading_by_io(machine, mode, there: 3, value: line, &:read_line)
    end
    machine(:"IO#read", named: "IO#read of a #{mode}") { |machine| reading_by_io(machine, mode, there: 3) { |io| io.read(6) } }
    machine(:"IO#read", named: "IO#read of anything from a #{mode}") { |machine| reading_by_io(machine, mode) { |io| io.read(-64) } }
    machine(:"IO#read_to_delim", named: "IO#read_to_delim of a #{mode}") do |machine|
      reading_by_io(machine, mode, there: 3, value: line) { |io| io.read_to_delim("\n") }
    end
    machine(:"IO#skip", named: "IO#skip of a #{mode}") do |machine|
      reading_by_io(machine, mode, value: ->(_) { "bytes\n" }) { |io| io.skip(6) }
    end
    machine(:"IO#read_each", named: "IO#read_each of a #{mode}") do |machine|
      reading_by_io(machine, mode) { |io| io.read_each { |bytes| break bytes.get_string } }
    end
    machine(:"IO#resp_read", named: "IO#resp_read of a #{mode}") do |machine|
      reading_by_io(machine, mode, text: "+bytes\r\n", there: 3, value: ->(got) { "+#{got}\r\n" }, &:resp_read)
    end
  end
  # What it has read ahead, it leaves.
  machine(:"IO#read_line", named: "IO#read_line in a block") do |machine|
    reading_bytes(reading_pipe, text: "a line\nand more", there: 3) do |fd|
      got = machine.io(fd, &:read_line)
      got.equal?(OTHER) ? got : "#{got}\n"
    end
  end
  machine(:"IO#read_line", named: "IO#read_line of TLS") do |machine|
    server, client = pair = tls_sockets(machine)
    io = machine.io(server)
    again = lambda do |_|
      client << "later!"
      io.read_to_delim("!").delete_suffix("later")
    end
    reading_bytes(pair, there: 3, again:) { io.read_line.then { |got| got.equal?(OTHER) ? got : "#{got}\n" } }
  end
  %i[splice tee].each do |name|
    machine(name, named: "#{name} of an empty pipe") do |machine|
      reader, writer = reading_pipe
      out_writer, out = writing_pipe
      check = lambda do |other, value|
        there = rest_of(other, reader, writer)
        moved = drain(out)
        name == :tee ? [there, moved] == ["bytes\n", value ? "bytes\n" : ""] : [moved + there, moved.bytesize] == ["bytes\n", value || 0]
      end
      Wait.new(fd: reader, wait: -> { machine.public_send(name, reader, out_writer, 100) }, complete: -> { writer << "bytes\n" }, check:)
    end
  end

  # --- Room

  PIPE_OR_SOCKET = { "pipe" => -> { writing_pipe }, "socket" => -> { sockets } }.freeze
  PIPE_OR_SOCKET.each do |name, pair|
    machine(:write, named: "write to a #{name}") { |machine| writing_by(machine, pair.call) { |fd, bytes| machine.write(fd, bytes) } }
    machine(:writev, named: "writev to a #{name}") do |machine|
      writing_by(machine, pair.call) { |fd, bytes| machine.writev(fd, bytes[0, 1000], bytes[1000..]) }
    end
  end
  machine(:write, named: "write of a registered buffer") do |machine|
    buffer = machine.register_buffers(count: 1, size: BYTES.bytesize).tap { |pool| finally(pool, :close) }.acquire
    buffer.set_string(BYTES)
    writing_by(machine, writing_pipe) { |fd, bytes| machine.write(fd, buffer, bytes.bytesize) }
  end
  { "" => 0, " of all" => UM::MSG_WAITALL }.each do |name, flags|
    machine(:send, named: "send#{name}") { |machine| writing_by(machine, sockets) { |fd, bytes| machine.send(fd, bytes, nil, flags) } }
  end
  machine(:send, named: "send of a message") do |machine|
    writing_a_message(machine, *sockets(UM::SOCK_DGRAM).tap { |fd,| fill_fd(fd) }) { |fd, message| machine.send(fd, message) }
  end
  machine(:send_zc) do |machine|
    writing_by(machine, tcp_sockets, partly: true) { |fd, bytes| machine.send_zc(fd, bytes, UM::MSG_WAITALL) }
  end
  machine(:sendv) { |machine| writing_by(machine, sockets) { |fd, bytes| machine.sendv(fd, bytes[0, 1000], bytes[1000..]) } }
  machine(:sendto) do |machine|
    name = new_name
    receiver = keep(Socket.new(:UNIX, :DGRAM).tap { |socket| socket.bind(Addrinfo.unix(name)) })
    fd = own(machine.socket(UM::AF_UNIX, UM::SOCK_DGRAM))
    filler = keep(Socket.new(:UNIX, :DGRAM).tap { |socket| socket.connect(Addrinfo.unix(name)) })
    fill(filler)
    writing_a_message(machine, fd, receiver) { |to, message| machine.sendto(to, message, nil, 0, name) }
  end
  machine(:send_fd) do |machine|
    fd, reader = sockets
    held = fill_fd(fd).bytesize
    received = +"".b
    check = lambda do |other, value|
      drain(reader, received)
      other.write(fd, "END")
      drain(reader, received)
      received.bytesize == held + (value ? 1 : 0) + 3
    end
    Wait.new(fd:, wait: -> { machine.send_fd(fd, reader.fileno) }, complete: -> { drain(reader, received) }, check:)
  end
  machine(:splice, named: "splice to a full pipe") do |machine|
    reader, writer = reading_pipe
    out_writer, out = writing_pipe
    writer << "bytes\n"
    held = fill_fd(out_writer)
    moved = +"".b
    check = lambda do |other, value|
      there = rest_of(other, reader, writer)
      now = drain(out, moved).delete_prefix(held)
      [now + there, now.bytesize] == ["bytes\n", value || 0]
    end
    Wait.new(fd: out_writer, wait: -> { machine.splice(reader, out_writer, 100) }, complete: -> { drain(out, moved) }, check:)
  end
  machine(:ssl_write) do |machine|
    server, = pair = tls_sockets(machine)
    writing_by(machine, pair, partly: true, bytes: BYTES * 8, last: ->(other) { other.ssl_write(server, "END") }) do |ssl, bytes|
      machine.ssl_write(ssl, bytes)
    end
  end
  { "fd" => -> { writing_pipe }, "socket" => -> { sockets } }.each do |mode, pair|
    machine(:"IO#write", named: "IO#write to a #{mode}") do |machine|
      writing_by(machine, pair.call) { |fd, bytes| machine.io(fd, mode.to_sym).write(bytes[0, 1000], bytes[1000..]) }
    end
  end
  machine(:"IO#write", named: "IO#write to TLS") do |machine|
    pair = tls_sockets(machine)
    io = machine.io(pair.first)
    writing_by(machine, pair, partly: true, bytes: BYTES * 8, last: ->(_) { io.write("END") }) { |_, bytes| io.write(bytes) }
  end
  # It is whole, or is raised of: nobody is told how much went.
  machine(:"IO#resp_write") do |machine|
    bytes = "$#{BYTES.bytesize}\r\n#{BYTES}\r\n"
    writing_by(machine, sockets, bytes:, counts: false) { |fd, _| machine.io(fd, :socket).resp_write(BYTES) }
  end

  # --- Work that was given before

  # What was given to write_async is written whatever ends the wait.
  def self.after_work(machine, method, *arguments)
    fd, reader = sockets
    all = fill_fd(fd) + BYTES
    received = +"".b
    machine.write_async(fd, BYTES)
    complete = lambda do
      @draining = Thread.new do
        received << reader.readpartial(1 << 16) until received.bytesize >= all.bytesize
      rescue IOError
        # Its thread has ended, and the socket with it.
      end
    end
    check = lambda do |other, _|
      other.timeout(PATIENCE, RuntimeError, "it was not written") { other.sleep(0.0005) while @draining.alive? }
      received == all && (method == :shutdown || reader.read.empty?)
    end
    # Whatever ends a close, it is closed.
    disown(fd) if method == :close
    Wait.new(held: true, complete:, check:, wait: -> { machine.public_send(method, fd, *arguments) })
  end

  machine(:shutdown) { |machine| after_work(machine, :shutdown, UM::SHUT_WR) }
  machine(:close) { |machine| after_work(machine, :close) }

  # --- Connections and descriptors

  machine(:accept) { |machine| accepting(machine) { |fd| machine.accept(fd) } }
  machine(:accept_each) { |machine| accepting(machine) { |fd| machine.accept_each(fd) { |connection| break connection } } }
  # It ends when the socket is shut down.
  machine(:accept_into_queue) do |machine|
    queue = UM::Queue.new
    finally(-> { IO.for_fd(machine.shift(queue)).close until queue.count.zero? }, :call)
    wait = accepting(machine) { |fd| machine.accept_into_queue(fd, queue) }
    listener = Socket.for_fd(wait.fd).tap { |socket| socket.autoclose = false }
    come = wait.complete
    wait.complete = -> { come.call && listener.shutdown(:RD) }
    # What came before that is in the queue, or was refused.
    wait.tap { wait.check = ->(*) { true } }
  end
  machine(:connect) do |machine|
    name = new_name
    server = keep(Socket.new(:UNIX, :STREAM).tap { |socket| socket.bind(Addrinfo.unix(name)) && socket.listen(0) })
    accept_all = lambda do
      loop { keep(server.accept_nonblock.first) }
    rescue IO::WaitReadable
      # Nobody waits any more.
    end
    begin
      loop { keep(Socket.new(:UNIX, :STREAM)).connect_nonblock(Addrinfo.unix(name)) }
    rescue IO::WaitWritable, Errno::EAGAIN
      # There is no room for one more.
    end
    fd = own(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
    check = lambda do |other, value|
      accept_all.call
      begin
        other.connect(fd, name) unless value
      rescue Errno::EISCONN
        # It was, when the wait was ended.
      end
      other.write(fd, "bytes") == 5
    end
    Wait.new(fd:, wait: -> { machine.connect(fd, name) }, complete: accept_all, check:)
  end
  machine(:recv_fd) do |machine|
    fd, peer = sockets
    sent = %w[/dev/null /dev/zero].map { |path| keep(File.open(path)) }
    which = ->(received) { sent.index { |file| file.stat.rdev == IO.for_fd(received, autoclose: false).stat.rdev } }
    check = lambda do |other, value|
      peer.send_io(sent.last)
      got = [*value].map(&which)
      other.timeout(PATIENCE, RuntimeError, "no descriptor came") { got << which.call(own(other.recv_fd(fd))) until got.last == 1 }
      got == [0, 1]
    end
    Wait.new(fd:, wait: -> { own(machine.recv_fd(fd)) }, complete: -> { peer.send_io(sent.first) }, check:)
  end
  machine(:open, named: "open of a FIFO") do |machine|
    File.mkfifo(path = File.join(folder, "fifo"))
    waiting(-> { keep(File.open(path, File::RDWR)) }, -> { own(machine.open(path, File::RDONLY)) }) do |value, other|
      (value || own(other.open(path, File::RDONLY | File::NONBLOCK))).is_a?(Integer)
    end
  end
  machine(:open, named: "open of a FIFO with a block") do |machine|
    File.mkfifo(path = File.join(folder, "fifo"))
    waiting(-> { keep(File.open(path, File::RDWR)) }, -> { machine.open(path, File::RDONLY) { 1 } }) { true }
  end
  machine(:flock) do |machine|
    path = File.join(folder, "file")
    other = keep(File.open(path, "w")).tap { |file| file.flock(File::LOCK_EX) }
    fd = own(IO.sysopen(path))
    wait = waiting(-> { other.close }, -> { machine.flock(fd, File::LOCK_EX) }) do |value, _|
      # Whoever gave up has left no lock behind.
      File.open(path) { |file| file.flock(File::LOCK_EX | File::LOCK_NB) } == (value ? false : 0)
    end
    wait.tap { wait.fd = fd }
  end

  # --- Readiness and events

  machine(:poll) do |machine|
    reader, writer = reading_pipe
    check = ->(other, value) { [nil, UM::POLLIN].include?(value) && rest_of(other, reader, writer) == "bytes\n" }
    Wait.new(fd: reader, wait: -> { machine.poll(reader, UM::POLLIN) }, complete: -> { writer << "bytes\n" }, check:)
  end
  machine(:select) do |machine|
    (reader, writer), (other_reader,) = reading_pipe, sockets
    check = ->(other, value) { [nil, [[reader], [], []]].include?(value) && rest_of(other, reader, writer) == "bytes\n" }
    Wait.new(fd: reader, wait: -> { machine.select([other_reader, reader], [], []) }, complete: -> { writer << "bytes\n" }, check:)
  end
  machine(:inotify_get_events) do |machine|
    path = folder
    fd = own(UM.inotify_init.tap { |made| UM.inotify_add_watch(made, path, UM::IN_CREATE) })
    make = ->(name) { File.write(File.join(path, name), "") }
    check = lambda do |other, value|
      make.call("later")
      events = [*value]
      other.timeout(PATIENCE, RuntimeError, "no event came") { events.concat(other.inotify_get_events(fd)) until events.any? { |event| event[:name] == "later" } }
      events.map { |event| event[:name] } == %w[file later]
    end
    Wait.new(fd:, wait: -> { machine.inotify_get_events(fd) }, complete: -> { make.call("file") }, check:)
  end
  machine(:file_watch) do |machine|
    path = folder
    waiting(-> { File.write(File.join(path, "file"), "") }, -> { machine.file_watch(path, UM::IN_CREATE) { |event| break event } }) do |value|
      value.nil? || value[:fn] == File.join(path, "file")
    end
  end

  # --- Time and fibers

  machine(:sleep) { |machine| waiting(-> {}, -> { machine.sleep(0.005) }) { |value| [nil, 0.005].include?(value) } }
  machine(:timeout) do |machine|
    queue = UM::Queue.new
    waiting(-> { machine.push(queue, 1) }, -> { machine.timeout(1000, RuntimeError) { machine.shift(queue) } }) { |value| [*value].size + queue.count == 1 }
  end
  machine(:periodically) { |machine| waiting(-> {}, -> { machine.periodically(0.005) { break 1 } }) { true } }
  %i[await join].each do |name|
    machine(:"AsyncOp##{name}") do |machine|
      operation = machine.prep_timeout(0.005)
      # Whoever gives up cancels it.
      waiting(-> {}, -> { operation.public_send(name) }, held: true) { |value| value == -UM::ETIME || operation.cancelled? || operation.await == -UM::ETIME }
    end
    machine(name) do |machine|
      queue = UM::Queue.new
      fiber = machine.spin { machine.shift(queue) }
      returned = ->(got) { got.tap { raise "it has not ended" unless got.equal?(OTHER) || fiber.done? } }
      waiting(-> { machine.push(queue, 1) }, -> { returned.call(machine.public_send(name, fiber)) }, held: true) { machine.join(fiber) == 1 }
    end
  end
  %i[switch yield].each do |name|
    machine(name) do |machine|
      fiber = nil
      waiting(-> { machine.schedule(fiber, 1) }, -> { (fiber = Fiber.current) && machine.public_send(name) }) { true }
    end
  end
  %i[pop shift].each do |name|
    machine(name) do |machine|
      queue = UM::Queue.new
      waiting(-> { machine.push(queue, 1) }, -> { machine.public_send(name, queue) }) do |value|
        [*value].size + queue.count == 1 && queue.num_waiting.zero?
      end
    end
  end
  machine(:synchronize) do |machine|
    mutex = UM::Mutex.new
    told = UM::Queue.new
    machine.spin { machine.synchronize(mutex) { machine.shift(told) } }
    machine.snooze
    # The fiber that was given up does not have it. One whose thread ends has it for ever.
    waiting(-> { machine.push(told, 1) }, -> { machine.synchronize(mutex) { 1 } }, held: true) do
      machine.synchronize(mutex) { 1 } && !mutex.locked?
    end
  end
  machine(:"BufferPool#acquire") do |machine|
    pool = machine.register_buffers(count: 1, size: 4096)
    buffer = pool.acquire
    waiting(-> { pool.release(buffer) }, -> { pool.acquire { 1 } }, held: true) { pool.available == 1 && pool.close.nil? }
  end

  # --- Processes, threads, actors

  machine(:waitid) do |machine|
    pid, complete = child
    waiting(complete, -> { machine.waitid(UM::P_PID, pid, UM::WEXITED) }) do |value, other|
      (value || other.waitid(UM::P_PID, pid, UM::WEXITED)).first == pid
    end
  end
  machine(:waitid_status) do |machine|
    pid, complete = child
    waiting(complete, -> { machine.waitid_status(UM::P_PID, pid, UM::WEXITED) }) do |value, other|
      (value || other.waitid_status(UM::P_PID, pid, UM::WEXITED)).pid == pid
    end
  end
  { "" => {}, " for a time" => { timeout: 1000 } }.each do |name, options|
    machine(:"Process#wait", named: "Process#wait#{name}") do |machine|
      pid, complete = child
      process = UM::Process.open(pid, machine)
      finally(process, :close)
      waiting(complete, -> { process.wait(**options) }) { |value| [value || process.wait, process.wait].all? { |status| status.pid == pid } }
    end
  end
  machine(:"BlockingOperationThreadPool#process") do |machine|
    pool = UM::BlockingOperationThreadPool.new(1)
    told = Thread::Queue.new
    waiting(-> { told << 1 }, -> { pool.process(machine, -> { told.pop }) }) { |_, other| pool.process(other, -> { 2 }) == 2 }
  end
  # What waits for a thread's queue.
  module Listener
    def setup(told = nil) = told&.pop
    def hear(told) = told.pop
  end
  machine(:"Actor#call") do |machine|
    actor = machine.spin_thread_actor(Listener).tap { |made| finally(made, :stop) }
    told = Thread::Queue.new
    mailbox = UM::Queue.new
    # An answer that nobody waits for any more is in the mailbox.
    waiting(-> { told << 1 }, -> { actor.call(mailbox, :hear, told) }) do |value, other|
      heard = value || other.shift(mailbox).last
      other.await(actor.stop)
      heard == 1
    end
  end
  machine(:spin_thread_actor) do |machine|
    told = Thread::Queue.new
    waiting(-> { told << 1 }, -> { machine.spin_thread_actor(Listener, told) }) { |value, other| value.nil? || other.await(value.stop) == 1 }
  end
  # The socket that it has made goes with it: see `connect`.
  machine(:tcp_connect) do |machine|
    server = keep(Socket.new(:INET, :STREAM).tap { |socket| socket.bind(Addrinfo.tcp("127.0.0.1", 0)) && socket.listen(0) })
    port = server.local_address.ip_port
    # What comes while there is no room is thrown away, and comes again after a second.
    2.times { keep(Socket.new(:INET, :STREAM)).connect_nonblock(Addrinfo.tcp("127.0.0.1", port), exception: false) }
    Wait.new(endless: true, wait: -> { own(machine.tcp_connect("127.0.0.1", port)) }, complete: -> {}, check: ->(*) { true })
  end
end
