# frozen_string_literal: true

class UringMachine
  # A copy from one descriptor to another: what IO.copy_stream does under a UM::FiberScheduler.
  class Copy
    # The caller's ends, or the files opened from their paths.
    attr_reader :source, :destination

    # nil if Ruby's own copy is the one to do it.
    def self.of(scheduler, source, destination, offset)
      new(scheduler, source, destination) if target?(destination) && origin?(source, offset) && !stored?(source, destination)
    end

    def self.target?(destination)
      return SSL.kernel_sends?(destination) if ssl?(destination)

      open_or_named?(destination)
    end

    def self.origin?(source, offset) = ssl?(source) ? offset.nil? && SSL.kernel_receives?(source) : open_or_named?(source)

    def self.open_or_named?(object)
      io = io_of(object)
      io.nil? ? named?(object) : io.is_a?(::IO) && !io.closed?
    end

    # Whether both are known to be regular files.
    def self.stored?(*ends) = ends.all? { |object| !ssl?(object) && io_of(object)&.stat&.file? }

    # nil of what is opened by its path.
    def self.io_of(object) = named?(object) ? ::IO.try_convert(object) : object

    # As Ruby has it, what is no IO and has no path is asked for its bytes.
    def self.named?(object) = object.is_a?(String) || (!object.is_a?(::IO) && object.respond_to?(:to_path))

    def self.ssl?(object) = object.is_a?(TLS::Socket) && !object.closed?

    def initialize(scheduler, source, destination)
      @scheduler = scheduler
      @opened = []
      @encrypted = source.is_a?(TLS::Socket)
      @source = @encrypted ? source : ::IO.try_convert(source) || open(source, "rb")
      @origin = @encrypted ? source.io : @source
      @destination = destination.is_a?(TLS::Socket) ? destination : ::IO.try_convert(destination) || open(destination, WRITES)
      @target = destination.is_a?(TLS::Socket) ? destination.io : @destination
    rescue Exception # rubocop:disable Lint/RescueException -- what was opened is closed, whatever is raised
      close
      raise
    end

    # Whether the kernel can move the bytes, other than from a file to a file, and where no position is asked for that
    # the source does not have.
    def moves?(offset)
      return true if @encrypted

      @stored = @source.stat.file?
      @stored ? !@target.stat.file? : offset.nil?
    end

    # Returns the bytes copied. The block copies what cannot be moved within the kernel.
    def run(length, offset)
      # Raises if either end is not open for it.
      @scheduler.io_splice(@origin, @target, 0)
      @destination.flush
      copied = offset ? 0 : copy_read_ahead(length)
      loop do
        rest = length && (length - copied)
        break if rest&.zero?

        moved = @scheduler.io_splice(@origin, @target, step(rest), offset && (offset + copied))
        moved = copy_record(rest) if @encrypted && (moved.zero? || moved == NO_DATA)
        return copied + (@stored ? yield(rest, offset && (offset + copied)) : copy_rest(rest)) if refused?(moved)
        raise SystemCallError.new(call_that_failed(-moved), -moved) if moved.negative?
        break if moved.zero?

        copied += moved
      end
      copied
    end

    def close
      @opened.each(&:close)
    end

    private

    WRITES = File::WRONLY | File::CREAT | File::TRUNC
    private_constant :WRITES

    def open(path, mode) = File.open(path, mode).tap { |file| @opened << file }

    # Neither is what splice(2) takes.
    REFUSED = [Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EBADF].map { |error| -error::Errno }.freeze
    private_constant :REFUSED

    def refused?(moved) = REFUSED.include?(moved)

    # The call of Ruby's own copy that would have failed: the kernel does not say which end it was.
    def call_that_failed(errno)
      return "sendfile" if @stored

      WRITE_ERRORS.include?(errno) || !@origin.is_a?(BasicSocket) ? "write" : "read"
    end

    WRITE_ERRORS = [Errno::EPIPE, Errno::ENOSPC, Errno::EFBIG, Errno::EDQUOT].map { |error| error::Errno }.freeze
    private_constant :WRITE_ERRORS

    # How much to move at once. Where the kernel encrypts it takes bytes for a peer that is gone, so it is asked now and
    # then.
    def step(rest)
      return rest if @destination.is_a?(::IO)

      TLS.check_peer(@destination)
      [rest, MOVED_AT_ONCE].compact.min
    end

    MOVED_AT_ONCE = 1 << 20
    private_constant :MOVED_AT_ONCE

    # The record that is next on an encrypted connection is not the program's (splice answers EINVAL), or there is
    # none: OpenSSL has a look at it, and waits for one that is.
    NO_DATA = -Errno::EINVAL::Errno
    private_constant :NO_DATA

    def copy_record(length)
      copy_some(length)
    rescue EOFError
      0
    end

    # What does not wait for its bytes Ruby's own copies in one call. That ends when it is over, whatever is raised in
    # the fiber meanwhile.
    def copy_rest(length)
      copied = 0
      copied += copy_some(length && (length - copied)) while length.nil? || copied < length
      copied
    rescue EOFError
      copied
    end

    # What Ruby has read and the program has not goes first.
    def copy_read_ahead(length)
      copied = 0
      copied += copy_some(length && (length - copied)) while read_ahead? && (length.nil? || copied < length)
      copied
    end

    def read_ahead? = @encrypted ? @source.um_read_ahead? : FiberScheduler.read_ahead?(@source)

    def copy_some(length)
      bytes = read_some(length ? [length, 65_536].min : 65_536)
      count = bytes.bytesize
      if @destination.is_a?(::IO)
        write(bytes)
      else
        # What an exception keeps from being written, the SSLSocket writes later.
        @destination.write(bytes)
        @destination.flush
      end
      count
    end

    def read_some(length)
      @source.readpartial(length)
    rescue SystemCallError => e
      raise SystemCallError.new("read", e.errno)
    end

    # Writes all of it; what an exception keeps from being written goes back to the source.
    def write(bytes)
      @scheduler.__send__(:write_off, @target, bytes)
    ensure
      put_back(bytes) unless bytes.empty?
    end

    def put_back(bytes)
      @encrypted ? @source.um_unread(bytes) : @scheduler.__send__(:put_back, @source, bytes)
    end
  end
  private_constant :Copy
end
