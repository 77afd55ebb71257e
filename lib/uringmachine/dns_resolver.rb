# frozen_string_literal: true

require "resolv"

class UringMachine
  # Asks DNS servers (RFC 1035), by UDP, and by TCP where an answer is too long for it.
  class DNSResolver
    # Seconds until the next server is asked, and rounds over all servers: resolv.conf(5)'s defaults.
    TIMEOUT = 5
    ATTEMPTS = 2
    PORT = 53
    # The longest answer by UDP without EDNS (RFC 1035, 4.2.1) is 512 bytes; a server may send more.
    LONGEST_ANSWER = 65_535

    # No answer has come in time.
    class Timeout < StandardError; end
    private_constant :Timeout

    # @param machine [UringMachine]
    # @param nameservers [Array<Array(String, Integer)>] addresses and ports; those of resolv.conf(5) if left out
    # @example
    #   UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", 53]])
    def initialize(machine, nameservers: nil)
      @machine = machine
      @nameservers = nameservers || system_nameservers
    end

    # @param hostname [String]
    # @param type [Symbol] as for UM#resolve
    # @return [Array] as UM#resolve
    # @raise [Socket::ResolutionError] if there is no such host, or no server answers
    # @raise [ArgumentError] if the type is unknown
    # @example
    #   resolver.resolve("example.com", :A) #=> ["192.0.2.1"]
    def resolve(hostname, type = :A)
      resource = resource_class(type)
      answer = ask(hostname, resource)
      case answer.rcode
      when Resolv::DNS::RCode::NoError then records(answer, resource)
      when Resolv::DNS::RCode::NXDomain then raise Socket::ResolutionError, "#{hostname}: no such host"
      else raise Socket::ResolutionError, "#{hostname}: the server answered with code #{answer.rcode}"
      end
    end

    private

    def system_nameservers
      lines = File.exist?("/etc/resolv.conf") ? File.readlines("/etc/resolv.conf") : []
      servers = lines.filter_map { |line| line[/\Anameserver\s+(\S+)/, 1] }
      servers = ["127.0.0.1"] if servers.empty?
      servers.map { |server| [server, PORT] }
    end

    def resource_class(type)
      name = type.to_s
      found = name.match?(/\A[A-Z]+\z/) && Resolv::DNS::Resource::IN.const_defined?(name, false)
      raise ArgumentError, "type #{type.inspect} is unknown" unless found

      Resolv::DNS::Resource::IN.const_get(name)
    end

    def records(answer, resource)
      answer.answer.filter_map do |_name, _ttl, record|
        next unless record.is_a?(resource)

        case record
        when Resolv::DNS::Resource::IN::A, Resolv::DNS::Resource::IN::AAAA then record.address.to_s
        when Resolv::DNS::Resource::DomainName then record.name.to_s
        when Resolv::DNS::Resource::TXT then record.strings.join
        else record
        end
      end
    end

    # The first answer that any server gives.
    def ask(hostname, resource)
      question = Resolv::DNS::Message.new(Random.rand(0x10000))
      question.rd = 1
      question.add_question(hostname, resource)
      ATTEMPTS.times do
        @nameservers.each do |host, port|
          return @machine.timeout(TIMEOUT, Timeout) { ask_server(host, port, question) }
        rescue Timeout, SystemCallError
          next
        end
      end
      raise Socket::ResolutionError, "#{hostname}: no DNS server answers"
    end

    def ask_server(host, port, question)
      answer = with_socket(host, port, Socket::SOCK_DGRAM) { |fd| ask_by_udp(fd, question) }
      return answer if answer.tc.zero?

      with_socket(host, port, Socket::SOCK_STREAM) { |fd| ask_by_tcp(fd, question) }
    end

    # A port of its own for each question makes an answer hard to forge.
    def with_socket(host, port, type)
      family = host.include?(":") ? Socket::AF_INET6 : Socket::AF_INET
      fd = @machine.socket(family, type, 0, 0)
      @machine.connect(fd, host, port)
      yield fd
    ensure
      @machine.close(fd) if fd
    end

    def ask_by_udp(fd, question)
      @machine.send(fd, question.encode)
      buffer = +""
      loop do
        @machine.recv(fd, buffer, LONGEST_ANSWER)
        answer = decode(buffer, question)
        return answer if answer
      end
    end

    def ask_by_tcp(fd, question)
      message = question.encode
      @machine.sendv(fd, [message.bytesize].pack("n"), message)
      @machine.io(fd, :socket) do |io|
        length = io.read(2)&.unpack1("n")
        answer = length && io.read(length)
        decode(answer || "", question) or raise Errno::EPROTO, "DNS answer by TCP"
      end
    end

    # The answer, if it is one to that question. Of one that was cut off only the header is decoded.
    def decode(bytes, question)
      answer = Resolv::DNS::Message.decode(bytes)
      return unless answer.id == question.id

      answer if answer.tc == 1 || (answer.qr == 1 && asked(answer) == asked(question))
    rescue Resolv::DNS::DecodeError
      nil
    end

    def asked(message) = message.question.map { |name, type| [name.to_s.downcase, type] }
  end
end
