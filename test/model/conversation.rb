# frozen_string_literal: true

module Model
  # Lines of many lengths, and no mark of an end. ASCII: a limit of `gets` keeps characters whole, and so may want more.
  PERIOD = 1 << 20
  TEXT = (Random.new(1).then do |random|
    text = +""
    text << "#{random.bytes(random.rand([20, 20, 20, 20, 3000].sample(random:))).unpack1("H*")},\n" while text.size < PERIOD
    text[0, PERIOD]
  end * 6).freeze
  END_MARK = "\0the end\n"

  # A channel, and the two sides that talk over it.
  class Conversation
    attr_accessor :count
    attr_reader :sides

    # @param kind [Symbol] of channel
    # @param episodes [Array<Array>] names and arguments
    def initialize(index, kind, episodes)
      @kind = kind
      @episodes = episodes
      @sides = %i[left right].map { |role| Side.new("#{index} #{role}", self) }
      @sides.each_with_index { |side, number| side.other = @sides[1 - number] }
      @count = 0
      @mutex = Mutex.new
      @monitor = Monitor.new
      @tokens = Thread::SizedQueue.new(1)
      open
    end

    def open
      right, left = channel
      @sides.zip([left, right]) do |side, io|
        side.io = io
        io.sync = true
        io.binmode if io.is_a?(IO)
      end
    end

    # Whether fibers read and write it through the ring.
    def on_ring? = @kind == :tls_on_ring

    # @return [Array(Proc, Proc)] what the two tasks run
    def tasks
      %i[left right].zip(@sides).map { |role, side| -> { side.run(@episodes, role) } }
    end

    # Runs the block while nobody else is in it.
    def locked(lock, &)
      case lock
      when :mutex then @mutex.synchronize(&)
      when :monitor then @monitor.synchronize(&)
      when :token then with_token(&)
      when :flock then File.open(lock_file) { |file| file.flock(File::LOCK_EX) && yield }
      end
    end

    def locked? = @mutex.locked? || @monitor.mon_locked?

    def close
      # Not by TLS, which would be that of this thread.
      @sides.each { |side| side.io.to_io.close }
      File.unlink(@lock_file) if @lock_file
    end

    private

    def with_token
      @tokens << 1
      yield
    ensure
      @tokens.pop
    end

    def lock_file = @lock_file ||= File.join(Dir.tmpdir, "model-#{Process.pid}-#{object_id}").tap { |path| File.write(path, "") }

    def channel
      case @kind
      when :pipe then IO.pipe
      when :unix then UNIXSocket.pair
      when :datagram then UNIXSocket.pair(:DGRAM)
      when :seqpacket then UNIXSocket.pair(:SEQPACKET)
      when :tcp then tcp_pair
      when :cat then [IO.popen("cat", "r+")] * 2
      when :fifo then fifo
      when :terminal then PTY.open.each(&:raw!)
      when :tls, :tls_on_ring then tls_pair
      end
    end

    # In the mode that open(2) gives, as pipes of Ruby's are not.
    def fifo
      Dir.mktmpdir do |folder|
        File.mkfifo(path = File.join(folder, "fifo"))
        reader = File.open(path, File::RDONLY | File::NONBLOCK)
        [reader, File.open(path, File::WRONLY)].each { |io| io.nonblock = false }
      end
    end

    # By a handshake of the stock, over; what a server says of its own accord after it has been read.
    def tls_pair
      context = OpenSSL::SSL::SSLContext.new.tap { |made| made.add_certificate(Identity.certificate, Identity.key) }
      server, client = UNIXSocket.pair.zip([context]).map { |socket, given| OpenSSL::SSL::SSLSocket.new(*[socket, given].compact) }
      [server, client].each { |socket| socket.sync_close = true }
      accepting = Thread.new { server.accept && server.write("x") }
      client.connect.readpartial(1)
      accepting.join
      [server, client]
    end

    # What they hold at once does not grow.
    def tcp_pair
      pair = TCPServer.open("127.0.0.1", 0) { |server| [TCPSocket.new("127.0.0.1", server.addr[1]), server.accept] }
      pair.each { |socket| %i[SNDBUF RCVBUF].each { |buffer| socket.setsockopt(:SOCKET, buffer, 100_000) } }
    end
  end
end
