# frozen_string_literal: true

module Model
  # What the two sides of a conversation do with each other. An episode is two methods, `left_…` and `right_…`, with the same
  # arguments. Left writes and right reads; each has one possible outcome, whoever runs first.
  module Episodes
    # No test of time: what each lets the other do meanwhile.
    TURNS = {
      sleep: -> { sleep(0) }, pass: -> { Thread.pass }, collect: -> { GC.start }, compact: -> { GC.compact },
      thread: -> { Thread.new { 1 }.value }, mutex: -> { Mutex.new.synchronize { sleep(0) } },
      timeout: -> { Timeout.timeout(1000) { sleep(0) } }, stat: -> { File.stat("/") }, system: -> { system("true") },
      popen: -> { IO.popen("cat", "r+") { |cat| cat.write("x") && cat.close_write || cat.read } },
      backticks: -> { `echo x` }, child: -> { Process.wait(fork { exit!(3) }) }, look_up: -> { Addrinfo.tcp("127.0.0.1", 1) },
      glob: -> { Dir.glob("/*") }, detach: -> { Process.detach(fork { exit!(3) }).value }
    }.freeze

    # @param writes [Array<Array(Symbol, Integer)>] ways and sizes
    # @param reads [Array<Array(Symbol, Integer)>] ways and sizes at most, in turn
    # @param limit [Symbol, nil] a time limit that does not come
    def left_transfer(writes, _reads, limit)
      patiently(limit) do
        writes.each do |way, size|
          __send__("put_#{way}", io, text(size))
          @position += size
        end
      end
    end

    def right_transfer(writes, reads, limit)
      size = writes.sum(&:last)
      got = +""
      patiently(limit) { take_all(got, size, reads) }
      compare(got, text(size))
      @position += size
    end

    # The same, in the other direction.
    def left_answer(...) = right_transfer(...)

    def right_answer(...) = left_transfer(...)

    def left_turn(kind)
      TURNS.fetch(kind).call
      note(kind)
    end

    def right_turn(kind) = left_turn(kind)

    # Reads what nobody writes.
    def left_hush(_way, cancel)
      disturb(cancel)
      hear
    end

    def right_hush(way, cancel)
      in_vain(cancel) { __send__("take_#{way}", io, 10) }
      tell
    end

    # The same by one who listens to both directions: the other's.
    def left_answer_hush(...) = right_hush(...)

    def right_answer_hush(...) = left_hush(...)

    # Reads more than is written: what has come is there, or has been read.
    def left_half(size, _way, cancel)
      io.write(text(size))
      @position += size
      # A brief limit is for what does not come. TCP keeps bytes back at times, after its window was full.
      give_way until cancel != :io_timeout || there >= size
      tell
      give_way until cancel == :io_timeout || other.got&.bytesize == size
      disturb(cancel)
      hear
    end

    def right_half(size, way, cancel)
      hear
      @got = +""
      in_vain(cancel) { take_all(@got, size + 10, [[way, size + 10]]) }
      compare(@got, text(size))
      @position += size
      @got = nil
      tell
    end

    # Writes more than there is room for: what the other side reads is the beginning, and nothing else.
    def left_fill(size, way, cancel)
      @wrote = 0
      in_vain(cancel) { __send__("put_#{way}", io, text(size)) }
      @position += size
      tell(@wrote)
      # What a cancelled flush has left.
      io.flush
      io.sync = true
      io.write(END_MARK)
      hear
    end

    def right_fill(size, _way, cancel)
      disturb(cancel)
      wrote = hear
      got = io.gets(END_MARK).delete_suffix(END_MARK)
      note(got == text(got.bytesize) ? :beginning : :other)
      note(:fewer, got.bytesize, wrote) if got.bytesize < wrote
      @position += size
      tell
    end

    # Writes until the other closes its end.
    def left_break(way)
      loop { __send__("put_#{way}", io, text(1000)) }
    rescue SystemCallError => e
      note(:raised, e.class.name)
    end

    def right_break(_way)
      io.readpartial(10)
      io.close
    end

    # The other closes what is read.
    def left_close_reader(_way)
      disturb(:close)
      note(:closed, other.io.closed?)
      hear
      # As long as a child of another conversation has a copy of the other end, there is no error.
      loop { io.write("nobody reads it") }
    rescue SystemCallError => e
      note(:raised, e.class.name)
    end

    def right_close_reader(way)
      in_vain(:close) { __send__("take_#{way}", io, 10) }
      tell
    end

    # The other closes what is written to.
    def left_close_writer(size, way)
      @wrote = 0
      in_vain(:close) { __send__("put_#{way}", io, text(size)) }
      tell
    end

    def right_close_writer(_size, _way)
      disturb(:close)
      note(:closed, other.io.closed?)
      hear
      got = io.read
      note(got == text(got.bytesize) ? :beginning : :other)
    end

    # The other is killed, while it reads.
    def left_kill_reader(_way)
      disturb(:kill)
      hear
      note(:ended, other.task.is_a?(Thread) ? other.task.join.alive? : other.task.alive?)
    end

    def right_kill_reader(way)
      @waiting = @number
      __send__("take_#{way}", io, 10)
    ensure
      note(:unwound)
      tell
    end

    def left_kill_writer(size, way)
      @waiting = @number
      __send__("put_#{way}", io, text(size))
    ensure
      note(:unwound)
      tell
    end

    def right_kill_writer(_size, _way)
      disturb(:kill)
      hear
      other.io.close
      got = io.read
      note(got == text(got.bytesize) ? :beginning : :other)
    end

    # The end of the stream, found by one who waits.
    def left_finish(_way, close)
      once_other_waits { io.__send__(close) }
    end

    def right_finish(way, _close)
      @waiting = @number
      value = __send__("take_#{way}", io, 10)
      note(value.to_s)
    rescue EOFError => e
      note(e.class.name)
    ensure
      io.close
    end

    # For a wait that has nothing to do with the channel.
    def left_still(_what, cancel)
      disturb(cancel)
      hear
    end

    def right_still(what, cancel)
      @cancel = cancel
      __send__("wait_#{what}")
      tell
    end

    # Both count, and only one at a time.
    def left_count(lock, times)
      times.times do
        @talk.locked(lock) do
          count = @talk.count
          give_way
          @talk.count = count + 1
        end
      end
      tell
      hear
      note(@talk.count)
      tell
      hear
    end

    def right_count(...) = left_count(...)

    # A connection made for it.
    def left_dial(family, way, _accept, size)
      address = hear
      connection = family == :tcp ? dial_tcp(way, address) : UNIXSocket.new(address)
      connection.write(text(size))
      connection.close
      @position += size
    end

    # Under a name of its own: a child that another's fork makes meanwhile has the server too, and keeps its name taken.
    def right_dial(family, _way, accept, size)
      server = family == :tcp ? TCPServer.new("127.0.0.1", 0) : UNIXServer.new("\0model-#{Process.pid}-#{object_id}-#{@number}")
      tell(server.addr[1])
      connection = accept_by(accept, server)
      compare(connection.read, text(size))
      @position += size
    ensure
      [connection, server].compact.each(&:close)
    end

    private

    # How many bytes the other side may read (FIONREAD, ioctl_tty(2)), more if they are encrypted.
    def there = [0].pack("i").tap { |count| other.io.to_io.ioctl(0x541B, count) }.unpack1("i")

    def take_all(got, size, reads)
      reads.cycle do |way, most|
        left = size - got.bytesize
        break if left.zero?

        piece = __send__("take_#{way}", io, [most, left].min)
        raise "the end, after #{got.bytesize} of #{size} bytes" unless piece

        got << piece
      end
    end

    def patiently(limit, &)
      case limit
      when :timeout then Timeout.timeout(LONG, &)
      when :io_timeout then with_io_timeout(LONG, &)
      else yield
      end
    end

    def dial_tcp(way, port)
      case way
      when :new then TCPSocket.new("127.0.0.1", port)
      when :name then TCPSocket.new("localhost", port)
      when :tcp then Socket.tcp("127.0.0.1", port)
      when :connect
        Socket.new(:INET, :STREAM).tap { |socket| socket.connect(Addrinfo.tcp("127.0.0.1", port)) }
      end
    end

    def accept_by(way, server)
      case way
      when :accept then server.accept
      when :sysaccept then server.class.superclass.for_fd(server.sysaccept)
      when :nonblock
        while (connection = server.accept_nonblock(exception: false)) == :wait_readable
          server.wait_readable
        end
        connection
      when :select then IO.select([server]) && server.accept
      end
    end
  end
end
