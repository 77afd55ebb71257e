# frozen_string_literal: true

class UringMachine
  module CoreGaps
    # IO#fsync and IO#fdatasync wait for the disk.
    module Syncing
      # As IO#fsync.
      def fsync
        machine = CoreGaps.machine or return super
        flush
        CoreGaps.naming(self, "rb_io_fsync") { machine.fsync(fileno) }
      end

      # As IO#fdatasync.
      def fdatasync
        machine = CoreGaps.machine or return super
        flush
        # By this name: where there is no fdatasync(2) to be had, Ruby tries fsync(2).
        CoreGaps.naming(self, "rb_io_fsync") { machine.fdatasync(fileno) }
      end
    end

    # IO#write_nonblock asks no hook, as those of turns.rb. Prepended by `take_turns` there.
    module Writing
      # As IO#write_nonblock.
      def write_nonblock(buf, exception: true)
        CoreGaps.take_turn
        super
      end
    end

    # IO#write of several arguments, and `puts`, which is that: one message of a socket that keeps them apart, one segment of TCP
    # (the second waits for the peer to acknowledge the first: Nagle's algorithm, and delayed acknowledgements), one line of a log
    # that several processes write to. For sockets (`take_turns` in turns.rb) and the standard streams; what it costs others would be
    # for little.
    module Whole
      CoreGaps.define_whole_write(self)
    end

    # IO's methods that read and write, without `io_read` and `io_write` where they can.
    module Direct
      CoreGaps.define_reads(self)
      CoreGaps.define_write(self)
    end

    # Has the standard streams of this Ractor write so: called when a scheduler is made.
    def self.meet_streams
      [$stdout, $stderr].each { |stream| stream.extend(Whole) if stream.is_a?(::IO) && !stream.is_a?(Whole) && !stream.frozen? }
    end

    # A copy of more costs too much, and is several segments all the same.
    MOST_IN_ONE = 65_536
    private_constant :MOST_IN_ONE

    # What is written to an IO, as one String if it can be one: its bytes, if the IO has no encoding of its own.
    #
    # @api private
    # @param parts [Array<Object>] what IO#write was given
    # @return [Array<String>]
    def self.whole(io, parts)
      strings = parts.map { |part| part.is_a?(String) ? part : "#{part}" } # rubocop:disable Style/RedundantInterpolation -- to_s may return no String
      return strings if converts?(io) || (strings.sum(&:bytesize) > MOST_IN_ONE && !messages?(io))

      [strings.map(&:b).join]
    end

    # Whether each String is written in another encoding than its own.
    def self.converts?(io) = ![nil, Encoding::BINARY].include?(io.external_encoding)

    # Whether an IO is a socket that keeps messages apart.
    def self.messages?(io) = io.is_a?(BasicSocket) && io.getsockopt(:SOCKET, :TYPE).int != Socket::SOCK_STREAM

    private_class_method :converts?, :messages?, :define_whole_write, :define_reads, :define_write

    ::IO.prepend(Syncing)
  end
end
