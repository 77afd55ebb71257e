# frozen_string_literal: true

require "socket"

class UringMachine
  autoload :DNSResolver, File.expand_path("../dns_resolver.rb", __dir__)

  # Makes a TCP socket that takes connections. An address may be bound again at once after it was closed
  # (SO_REUSEADDR).
  #
  # @param host [String] IPv4 or IPv6 address, or a name, whose first address is taken
  # @param port [Integer] 0 to 65535, 0 for any that is free
  # @param backlog [Integer] the connections that may wait to be accepted
  # @param reuse_port [Boolean] whether other sockets may take connections at the same address (SO_REUSEPORT)
  # @return [Integer] file descriptor
  # @raise [SystemCallError] as bind(2)
  # @raise [Socket::ResolutionError] if the name has no address
  # @example
  #   server = machine.tcp_listen("127.0.0.1", 1234)
  def tcp_listen(host, port, backlog: Socket::SOMAXCONN, reuse_port: false)
    address = tcp_addresses(host, port).first
    with_socket(family(address)) do |fd|
      setsockopt(fd, Socket::SOL_SOCKET, Socket::SO_REUSEADDR, true)
      setsockopt(fd, Socket::SOL_SOCKET, Socket::SO_REUSEPORT, true) if reuse_port
      bind(fd, address, port)
      listen(fd, backlog)
    end
  end

  # Makes a TCP socket and connects it. A name with several addresses is tried address after address.
  #
  # @param host [String] IPv4 or IPv6 address, or a name
  # @param port [Integer] 1 to 65535
  # @return [Integer] file descriptor
  # @raise [SystemCallError] as connect(2), of the last address
  # @raise [Socket::ResolutionError] if the name has no address
  # @example
  #   fd = machine.tcp_connect("localhost", 1234)
  def tcp_connect(host, port)
    addresses = tcp_addresses(host, port)
    addresses.each_with_index do |address, place|
      return with_socket(family(address)) { |fd| connect(fd, address, port) }
    rescue SystemCallError
      raise if place == addresses.size - 1
    end
  end

  # Looks a host up. Without a type the system's resolver does: /etc/hosts, DNS and whatever nsswitch.conf(5) names.
  # With one, a DNS server that resolv.conf(5) names is asked for records of that type.
  #
  # @param hostname [String]
  # @param type [Symbol, nil] :A, :AAAA, :CNAME, :MX, :NS, :PTR, :SOA, :SRV, :TXT …
  # @return [Array] addresses as Strings; for :CNAME, :NS, :PTR names and for :TXT texts, as Strings; for other types
  #   Resolv::DNS::Resource objects
  # @raise [Socket::ResolutionError] if there is no such host, or no server answers
  # @raise [ArgumentError] if the type is unknown
  # @raise [TypeError] if hostname is no String
  # @example
  #   machine.resolve("localhost") #=> ["::1", "127.0.0.1"]
  #   machine.resolve("example.com", :MX).map(&:exchange)
  def resolve(hostname, type = nil)
    raise TypeError, "hostname must be a String, not #{hostname.class}" unless hostname.is_a?(String)
    return system_addresses(hostname) unless type

    (@dns_resolver ||= DNSResolver.new(self)).resolve(hostname, type)
  end

  private

  def tcp_addresses(host, port)
    raise TypeError, "host must be a String, not #{host.class}" unless host.is_a?(String)
    raise TypeError, "port must be an Integer, not #{port.class}" unless port.is_a?(Integer)

    host.match?(/\A[\d.]+\z|:/) ? [host] : system_addresses(host)
  end

  def family(address) = address.include?(":") ? Socket::AF_INET6 : Socket::AF_INET

  # A new stream socket, closed if the block raises; returns it. The collector closes it, should the fiber go on no more.
  def with_socket(family)
    fd = socket(family, Socket::SOCK_STREAM, 0, 0)
    keeper = ::IO.for_fd(fd)
    yield fd
    done = fd
  ensure
    keeper.autoclose = false if keeper
    close(fd) if fd && !done
  end
end
