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

    # Flags of a message's header (RFC 1035, 4.1.1), and how a name goes on (4.1.4).
    IS_ANSWER = 0x8000
    IS_CUT_OFF = 0x0200
    CODE = 0x000f
    LONGEST_LABEL = 63
    LEAST_POINTER = 0xc0

    # No answer has come in time.
    class Timeout < StandardError; end

    # What counts of an answer: records are those of the type that was asked for.
    Answer = Data.define(:code, :is_cut_off, :records)

    private_constant :IS_ANSWER, :IS_CUT_OFF, :CODE, :LONGEST_LABEL, :LEAST_POINTER, :Timeout, :Answer

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
      case answer.code
      when Resolv::DNS::RCode::NoError then answer.records.map { |record| value(record) }
      when Resolv::DNS::RCode::NXDomain then raise Socket::ResolutionError, "#{hostname}: no such host"
      else raise Socket::ResolutionError, "#{hostname}: the server answered with code #{answer.code}"
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

    def value(record)
      case record
      when Resolv::DNS::Resource::IN::A, Resolv::DNS::Resource::IN::AAAA then record.address.to_s
      when Resolv::DNS::Resource::DomainName then text(record.name.to_s)
      when Resolv::DNS::Resource::TXT then text(record.strings.join)
      else record
      end
    end

    def text(bytes) = bytes.force_encoding(Encoding::UTF_8)

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
      return answer unless answer.is_cut_off

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
        bytes = length && io.read(length)
        answer = decode(bytes || "", question)
        raise Errno::EPROTO, "DNS answer by TCP" if answer.nil? || answer.is_cut_off

        answer
      end
    end

    # The answer, if it is one to that question. Of one that was cut off only the header is decoded, and of the others only
    # what was asked for: Resolv makes a class for each type that it does not know, and a peer may name them all.
    def decode(bytes, question)
      Resolv::DNS::Message::MessageDecoder.new(bytes.b) { |message| return answer(message, question) }
    rescue Resolv::DNS::DecodeError
      nil
    end

    def answer(message, question)
      id, flags, questions, answers = message.get_unpack("nnnnnn")
      return unless id == question.id
      return Answer.new(code: flags & CODE, is_cut_off: true, records: []) if flags.anybits?(IS_CUT_OFF)
      return unless flags.anybits?(IS_ANSWER) && questions == 1

      name, resource = question.question.first
      asked = [message.get_name.to_s.downcase, *message.get_unpack("nn")]
      return unless asked == [name.to_s.downcase, *sort(resource)]

      records = Array.new(answers) { record(message, resource) }
      Answer.new(code: flags & CODE, is_cut_off: false, records: records.compact)
    end

    def sort(resource) = [resource::TypeValue, resource::ClassValue]

    # The next record, or nil if it is of another type.
    def record(message, resource)
      skip_name(message)
      type, network, ttl = message.get_unpack("nnN")
      record = message.get_length16 do
        [type, network] == sort(resource) ? data(message, resource, ttl) : message.get_bytes && nil
      end
      # Resolv takes the length for granted: what ends beyond the message was cut off.
      message.get_bytes(0)
      record
    end

    def data(message, resource, ttl)
      resource.decode_rdata(message).tap { |record| record.instance_variable_set(:@ttl, ttl) }
    rescue StandardError => e
      # Data that is none of its type meets Resolv's methods as it may.
      raise Resolv::DNS::DecodeError, e.message
    end

    # Names of records do not matter, and to follow their pointers would take a peer's time of ours.
    def skip_name(message)
      loop do
        length, = message.get_unpack("C")
        return message.get_bytes(1) if length >= LEAST_POINTER
        return if length.zero?
        raise Resolv::DNS::DecodeError, "a label is too long" if length > LONGEST_LABEL

        message.get_bytes(length)
      end
    end
  end
end
