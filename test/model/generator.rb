# frozen_string_literal: true

module Model
  # Makes programs of a seed. Each has one possible outcome, whoever runs first.
  class Generator
    STREAMS = %i[pipe unix tcp cat fifo terminal].freeze
    PIPES = %i[pipe fifo].freeze
    SOCKETS = %i[unix tcp].freeze
    # A thread waits for them in the kernel, which knows nothing of io.timeout.
    BLOCKING = %i[fifo terminal].freeze
    TLS = %i[tls tls_on_ring].freeze
    MESSAGES = %i[datagram seqpacket].freeze

    PUTS = %i[
      write pieces print shovel syswrite flushed nonblock selected copied copied_file copied_slice buffer forked from_child
    ].freeze
    SOCKET_PUTS = %i[send sendmsg sendmsg_nonblock].freeze
    TAKES = %i[
      read read_into readpartial readpartial_into gets gets_comma readline each_line nonblock waited selected copied
      copied_to_pipe
    ].freeze
    BYTES = %i[getbyte readchar each_byte back enumerated].freeze
    # Past the buffer.
    RAW = %i[sysread buffer].freeze
    SOCKET_RAW = %i[recv recv_into recvmsg recvfrom recv_nonblock].freeze
    # By what a wait has read at once, nothing is lost.
    HALVES = %i[readpartial readpartial_into getbyte readchar each_byte back nonblock waited selected].freeze
    RAW_HALVES = RAW + SOCKET_RAW

    # Ruby waits without io.timeout in these (io.c, `iis.timeout = NULL` in io_getpartial and rb_io_sysread, and all that waits by
    # itself), or answers without an exception.
    TIMELESS = %i[
      readpartial readpartial_into nonblock waited selected copied_to_pipe sysread buffer recv_nonblock copied_file copied_slice
      sendmsg_nonblock
    ].freeze

    # A close does not end them in a thread (thread.c, rb_thread_fd_select; io.c, nogvl_copy_stream_func), or by another error.
    DEAF = %i[selected copied_to_pipe nonblock sendmsg_nonblock recv_nonblock waited].freeze

    # They close something when they end. Ruby kills a killed fiber anew when that waits (cont.c, fiber_switch).
    TIDY = %i[copied_file copied_slice copied_to_pipe].freeze

    # What an SSLSocket has that does not wait by its IO. Its `gets` reads on to the end of the line, whatever the limit.
    TLS_PUTS = %i[write pieces print shovel syswrite flushed nonblock copied copied_file copied_slice from_child].freeze
    TLS_TAKES = %i[read read_into readpartial readpartial_into nonblock copied getbyte readchar each_byte].freeze
    TLS_HALVES = HALVES & TLS_TAKES

    MESSAGE_PUTS = %i[write syswrite nonblock send sendmsg sendmsg_nonblock].freeze
    MESSAGE_TAKES = %i[recv recv_into recvmsg recvfrom recv_nonblock sysread readpartial nonblock].freeze
    CUTS = %i[recv recv_into recvmsg recvfrom recv_nonblock].freeze

    STILL = Waits.instance_methods(false).grep(/\Await_/).map { |name| name.to_s.delete_prefix("wait_").to_sym }.freeze
    CANCELS = %i[raise timeout named_timeout].freeze

    def initialize(seed)
      @random = Random.new(seed)
    end

    # @return [Array<Array>] conversations: kinds of channels, and episodes with their arguments
    def program = Array.new(1 + rand(5)) { conversation }

    private

    def rand(...) = @random.rand(...)

    def pick(*lists) = lists.flatten.sample(random: @random)

    # Small ones often, and such as fill a pipe.
    def size = pick(rand(1..10), rand(1..300), rand(1..9000), rand(1..9000), rand(60_000..70_000), rand(1..400_000))

    def conversation
      @kind = pick(STREAMS, SOCKETS, :pipe, TLS, MESSAGES)
      @raw = rand(4).zero?
      episodes = Array.new(1 + rand(6)) { MESSAGES.include?(@kind) ? message_episode : stream_episode }
      episodes << ending if !MESSAGES.include?(@kind) && rand(2).zero?
      [@kind, episodes]
    end

    def socket? = SOCKETS.include?(@kind)

    def tls? = TLS.include?(@kind)

    # Whether both read and both write.
    def two_ways? = socket? || tls? || @kind == :terminal

    # Of what is open for both, Ruby 3.4 writes an IO::Buffer to the end that reads (io_buffer.c, rb_io_buffer_write), and
    # refuses to wait for the other to be writable (io.c, io_wait_writable). Whoever reads it flushes what is to be written
    # first, and may wait for that (io.c, rb_io_check_char_readable).
    def puts
      return TLS_PUTS if tls?

      # A flush after one that was cut short holds the thread (docs/reliability.md).
      return PUTS - %i[flushed] if BLOCKING.include?(@kind)

      { cat: PUTS - %i[buffer nonblock flushed] }.fetch(@kind, socket? ? PUTS + SOCKET_PUTS : PUTS)
    end

    def takes
      return @raw ? %i[sysread] : TLS_TAKES if tls?
      return @raw ? RAW + SOCKET_RAW : TAKES + BYTES if socket?

      @raw ? RAW : TAKES + BYTES
    end

    def some(list) = Array.new(1 + rand(4)) { pick(list) }

    # A way, and what ends its wait in vain.
    def way_and_cancel(ways, cancels = CANCELS + [:io_timeout])
      way = pick(ways)
      cancels -= [:io_timeout] if TIMELESS.include?(way) || @kind == :cat || BLOCKING.include?(@kind)
      [way, pick(cancels)]
    end

    def stream_episode
      case rand(13)
      when 0..3 then [:transfer, *transfer]
      when 4 then two_ways? ? [:answer, *transfer] : [:turn, pick(Episodes::TURNS.keys)]
      when 5..6 then [:hush, *way_and_cancel(takes)]
      when 7 then [:half, rand(1..4000), *way_and_cancel(halves, %i[raise io_timeout])]
      # OpenSSL wants what a write was cut off from, and nothing else.
      when 8..9 then tls? ? still : [:fill, fill_size, *way_and_cancel(fills)]
      when 10 then still
      else aside
      end
    end

    def halves
      return @raw ? %i[sysread] : TLS_HALVES if tls?
      return HALVES unless @raw

      socket? ? RAW_HALVES : RAW
    end

    # A byte a step takes its time.
    def transfer
      # Each read of them goes to a worker and back.
      least = BLOCKING.include?(@kind) ? 1000 : 1
      reads = some(takes).map { |way| [way, [size, least].max] }
      writes = some(puts).map { |way| [way, size] }
      writes = writes.map { |way, size| [way, [size, 5000].min] } if reads.all? { |way,| BYTES.include?(way) }
      [writes, reads, pick(nil, nil, :timeout, :io_timeout)]
    end

    # More than any channel takes without a reader.
    def fill_size = PIPES.include?(@kind) || @kind == :terminal ? 200_000 : 2_000_000

    # Not what writes pieces from a child, or a byte a step.
    def fills = puts - %i[forked from_child]

    def message_episode
      case rand(8)
      when 0..2
        [:messages, Array.new(1 + rand(30)) { rand(1..pick(10, 1000, 60_000)) }, some(MESSAGE_PUTS), some(MESSAGE_TAKES)]
      when 3 then [:hush, *way_and_cancel(MESSAGE_TAKES)]
      when 4 then [:cut, rand(2..5000), pick(MESSAGE_PUTS), pick(CUTS)]
      when 5 then [:flood, rand(1..5000), *way_and_cancel(MESSAGE_PUTS)]
      when 6 then still
      else aside
      end
    end

    def still = [:still, pick(STILL), pick(CANCELS)]

    def aside
      case rand(3)
      when 0 then [:turn, pick(Episodes::TURNS.keys)]
      when 1 then [:count, pick(%i[mutex monitor token flock]), rand(1..10)]
      else dial
      end
    end

    def dial
      family = pick(%i[tcp unix])
      [:dial, family, pick(%i[new name tcp connect]), pick(%i[accept sysaccept nonblock select]), size]
    end

    def ending
      return [:finish, pick(takes), :close_write] if @kind == :cat
      return [[:finish, pick(takes), :close], [:kill_reader, pick(takes - TIDY)]].sample(random: @random) if tls?
      # The end of a terminal is an error, and may take along what was not read.
      return [:kill_reader, pick(takes - TIDY)] if @kind == :terminal

      # A close writes first what has not been flushed: it would wait for its own fiber to read.
      endings = [[:finish, pick(takes), pick(socket? ? %i[close close_write shutdown] : [:close])],
                 [:close_writer, fill_size, pick(fills - DEAF - %i[flushed])],
                 [:kill_writer, fill_size, pick(fills - TIDY - %i[flushed])], [:kill_reader, pick(takes - TIDY)]]
      # What the writer sees is the network's to say.
      endings << [:close_reader, pick(takes - DEAF)] unless @kind == :tcp
      # IO::Buffer#write answers an error by a number, and a close flushes what has not been.
      endings << [:break, pick(PUTS - %i[forked flushed buffer])] if PIPES.include?(@kind)
      endings.sample(random: @random)
    end
  end
end
