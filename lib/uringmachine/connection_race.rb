# frozen_string_literal: true

require "socket"

class UringMachine
  # Connects to the addresses of a host as RFC 8305 says (Happy Eyeballs): IPv6 first, the families in turn, the next
  # address when one has failed or has not answered for a while; the first connection wins.
  class ConnectionRace
    # How long an address has until the next is tried too.
    DELAY = 0.25
    class Late < StandardError; end
    # IO::TimeoutError since Ruby 4.0.
    TIMEOUT_NAMES_HOST = RUBY_VERSION >= "4"

    def initialize(machine, host, port, local_host = nil, local_port = nil, resolv_timeout: nil, connect_timeout: nil, open_timeout: nil)
      @host = host
      @port = port
      [resolv_timeout, connect_timeout, open_timeout].each { |timeout| check(timeout) }
      @connect_timeout = connect_timeout
      @deadline = now + open_timeout if open_timeout
      @remotes = resolve(machine, host, port, resolv_timeout || open_timeout)
      @local_name = [local_host, local_port]
      @locals = resolve(machine, local_host, local_port, resolv_timeout || open_timeout) if local_host || local_port
      @pending = []
    end

    # The connected Socket.
    def winner
      candidates = in_turn
      until candidates.empty? && @pending.empty?
        late! if @deadline && now >= @deadline
        socket = if candidates.any? && (@pending.empty? || now >= @next_at)
                   attempt(candidates.shift)
                 else
                   wait(candidates.empty? ? @connect_deadline : @next_at, candidates.empty?)
                 end
        return socket if socket
      end
      raise @error
    ensure
      @pending.each { |loser| loser.close unless loser.equal?(socket) }
    end

    private

    def now = ::Process.clock_gettime(::Process::CLOCK_MONOTONIC)

    def check(timeout)
      return unless timeout
      raise TypeError, "can't convert #{timeout.class} into time interval" unless timeout.is_a?(Numeric)
      raise ArgumentError, "time interval must not be negative" if timeout.negative?
    end

    def resolve(machine, host, port, timeout)
      return Addrinfo.getaddrinfo(host, port, nil, :STREAM) unless timeout

      begin
        machine.timeout(timeout, Late) { Addrinfo.getaddrinfo(host, port, nil, :STREAM) }
      rescue Late
        late!
      end
    end

    def in_turn
      later, first = @remotes.partition(&:ipv4?)
      Array.new([first, later].map(&:size).max) { |place| [first[place], later[place]] }.flatten.compact
    end

    # Begins to connect; the socket, if that has succeeded already.
    def attempt(remote)
      socket = bound(remote) or return
      @next_at = now + DELAY
      @connect_deadline = now + @connect_timeout if @connect_timeout
      @pending << socket
      socket if socket.connect_nonblock(remote, exception: false) != :wait_writable
    rescue SystemCallError => e
      lose(socket, e.errno)
    end

    # A socket for a remote address, at the local one of its family, if there is to be one.
    def bound(remote)
      socket = Socket.new(remote.pfamily, remote.socktype, remote.protocol)
      return socket unless @locals

      local = @locals.find { |address| address.afamily == remote.afamily } or raise Errno::EAFNOSUPPORT
      socket.setsockopt(:SOCKET, :REUSEADDR, true)
      socket.bind(local)
      socket
    rescue SystemCallError => e
      socket&.close
      note(e.errno, "bind(2)", *@local_name)
    end

    # Waits for a socket to be connected, or to fail.
    def wait(moment, last)
      moment = [moment, @deadline].compact.min
      _, ready, = ::IO.select(nil, @pending, nil, moment && [moment - now, 0].max)
      late! if ready.nil? && last
      ready&.each do |socket|
        errno = socket.getsockopt(:SOCKET, :ERROR).int
        return socket if errno.zero?

        lose(socket, errno)
      end
      nil
    end

    def lose(socket, errno)
      @pending.delete(socket)
      socket&.close
      @next_at = 0
      note(errno, "connect(2)", @host, @port)
    end

    def note(errno, call, host, port)
      @error = SystemCallError.new("#{call} for #{host.inspect} port #{port}", errno)
      nil
    end

    # As Ruby says it when it races, or has nothing to race.
    def late!
      one = @remotes&.one?
      if TIMEOUT_NAMES_HOST
        raise ::IO::TimeoutError, "user specified timeout for #{one ? @remotes.first.inspect_sockaddr : "#{@host} port #{@port}"}"
      end

      one ? raise(::IO::TimeoutError, "Connect timed out!") : raise(Errno::ETIMEDOUT, "user specified timeout")
    end
  end
  private_constant :ConnectionRace
end
