# frozen_string_literal: true

require_relative "../test_helper"
require_relative "../fuzz"
require "resolv"

# What a name server, or whoever forges its answers, may send to UM::DNSResolver.
class TestResolveFuzz < MachineTest
  include Fuzz

  IN = Resolv::DNS::Resource::IN
  TYPES = [IN::A, IN::AAAA, IN::MX, IN::TXT, IN::CNAME, IN::NS, IN::SRV, IN::PTR, IN::SOA, IN::HINFO].freeze

  def setup
    super
    @resolver = UM::DNSResolver.new(machine, nameservers: [])
  end

  def decode(bytes, question) = @resolver.send(:decode, bytes, question)

  def host(random) = Resolv::DNS::Name.create("#{Array.new(random.rand(1..4)) { "a#{random.rand(20)}" * random.rand(1..5) }.join(".")}.")

  def data(resource, random)
    number = -> { random.rand(0x10000) }
    arguments = {
      IN::A => -> { ["192.0.2.#{random.rand(256)}"] }, IN::AAAA => -> { ["2001:db8::#{number.().to_s(16)}"] },
      IN::MX => -> { [number.(), host(random)] }, IN::SRV => -> { [number.(), number.(), number.(), host(random)] },
      IN::SOA => -> { [host(random), host(random), *Array.new(5) { number.() }] }, IN::HINFO => -> { [random.bytes(5), random.bytes(5)] },
      IN::TXT => -> { Array.new(random.rand(1..3)) { random.bytes(random.rand(200)) } }
    }
    resource.new(*arguments.fetch(resource) { -> { [host(random)] } }.())
  end

  def question(resource, random)
    Resolv::DNS::Message.new(random.rand(0x10000)).tap { |message| message.add_question(host(random), resource) }
  end

  # An answer to a question, with records of its type and of others.
  def answer(question, random, others: true)
    asked, resource = question.question.first
    answer = Resolv::DNS::Message.new(question.id)
    answer.qr = 1
    answer.rcode = random.rand(8).zero? ? random.rand(16) : 0
    answer.add_question(Resolv::DNS::Name.create("#{asked.to_s.swapcase}."), resource)
    random.rand(6).times { answer.add_answer(host(random), random.rand(1000), data([resource, resource, TYPES.sample(random:)].sample(random:), random)) }
    return answer unless others

    random.rand(3).times { answer.add_authority(host(random), 1, data(IN::NS, random)) }
    random.rand(3).times { answer.add_additional(host(random), 1, data(IN::A, random)) }
    answer
  end

  def of(resource, message)
    message.answer.map { |_name, ttl, record| [record, ttl] if record.instance_of?(resource) }.compact
  end

  def records(answer) = answer.records.map { |record| [record, record.ttl] }

  def test_what_a_server_encodes_is_decoded
    fuzz(300) do |random|
      resource = TYPES.sample(random:)
      question = question(resource, random)
      message = answer(question, random)
      answer = decode(message.encode, question)
      assert_equal message.rcode, answer.code
      refute answer.is_cut_off
      assert_equal of(resource, message), records(answer)
    end
  end

  def test_what_is_cut_off_anywhere_is_no_answer
    fuzz(20) do |random|
      question = question(TYPES.sample(random:), random)
      bytes = answer(question, random, others: false).encode
      bytes.bytesize.times { |length| assert_nil decode(bytes[0, length], question), "#{length} of #{bytes.inspect}" }
      refute_nil decode(bytes, question)
    end
  end

  # Nothing is raised, and what is an answer to Resolv too has the same records.
  def test_an_answer_that_was_changed_is_one_or_none
    fuzz(1000) do |random|
      resource = TYPES.sample(random:)
      question = question(resource, random)
      bytes = mutated(answer(question, random).encode, random)
      answer = decode(bytes, question)
      next if answer.nil? || answer.is_cut_off

      assert(answer.records.all? { |record| record.instance_of?(resource) })
      theirs = theirs(bytes)
      assert_equal of(resource, theirs), records(answer) if theirs
    end
  end

  def theirs(bytes)
    Resolv::DNS::Message.decode(bytes)
  rescue StandardError
    nil
  end

  def test_bytes_by_chance_are_no_answer
    fuzz(500) do |random|
      question = question(IN::A, random)
      header = [question.id, 0x8000, random.rand(3), random.rand(0x10000), 0, 0].pack("n6")
      assert_nil decode(random.bytes(random.rand(40)), question)
      assert_nil decode(header + random.bytes(random.rand(600)), question)
    end
  end

  # Bytes after the header: a question for a.test of type A, then what a record is.
  def after_question(answers, rest, id: 1)
    [id, 0x8000, 1, answers, 0, 0].pack("n6") + "\1a\4test\0".b + [1, 1].pack("nn") + rest
  end

  def asked(resource = IN::A) = Resolv::DNS::Message.new(1).tap { |message| message.add_question("a.test.", resource) }

  def record(name, type, data, length = data.bytesize) = name.b + [type, 1, 0, length].pack("nnNn") + data.b

  def test_names_that_point_to_themselves_forward_or_in_circles
    question = asked
    address = "\xc0\0\2\1".b
    assert_equal [IN::A.new("192.0.2.1")], decode(after_question(1, record("\xc0\x0c", 1, address)), question).records
    # Nobody goes where the name of a record points.
    ["\xc0\x1d", "\xff\xff", "\1b\xc0\x1d"].each { |name| assert_equal 1, decode(after_question(1, record(name, 1, address)), question).records.size }
    ["\x80\0", "\x40\0", "\xbf".ljust(300, "x")].each { |name| assert_nil decode(after_question(1, record(name, 1, address)), question) }
    # It is followed where it is the answer: from 35 on, the data of an alias.
    alias_question = asked(IN::CNAME)
    header = [1, 0x8000, 1, 1, 0, 0].pack("n6") + "\1a\4test\0".b + [5, 1].pack("nn")
    data_at = header.bytesize + 12
    itself, forward, back = data_at, data_at + 2, 12
    { itself => nil, forward => nil, back => "a.test" }.each do |place, target|
      answer = decode(header + record("\0", 5, [0xc000 | place].pack("n")), alias_question)
      target.nil? ? assert_nil(answer) : assert_equal([target], answer.records.map { |record| record.name.to_s })
    end
    circle = decode(header + record("\0", 5, "\1b".b + [0xc000 | data_at].pack("n")), alias_question)
    assert_nil circle
  end

  # In a buffer as it is received into.
  def test_a_name_that_is_no_text_is_another_one
    bytes = [1, 0x8000, 1, 0, 0, 0].pack("n6") + "\1\xff\0".b + [1, 1].pack("nn")
    assert_nil decode(bytes.force_encoding(Encoding::UTF_8), asked)
  end

  def test_counts_that_are_wrong
    question = asked
    one = record("\0", 1, "\xc0\0\2\1")
    assert_nil decode(after_question(2, one), question)
    assert_nil decode(after_question(0xffff, one), question)
    assert_empty decode(after_question(0, one), question).records
    bytes = after_question(1, one)
    [0, 2, 0xffff].each { |questions| assert_nil decode(bytes.dup.tap { |changed| changed[4, 2] = [questions].pack("n") }, question) }
    # Lengths of data that are not those of its type, or end beyond the message.
    assert_nil decode(after_question(1, record("\0", 1, "\xc0\0\2")), question)
    assert_nil decode(after_question(1, record("\0", 1, "\xc0\0\2\1\1")), question)
    assert_nil decode(after_question(1, record("\0", 1, "\xc0\0\2\1", 5)), question)
    assert_nil decode(after_question(1, record("\0", 99, "x", 0xffff)), question)
    assert_nil decode(after_question(1, record("\0", 16, "\xffabc")), asked(IN::TXT))
  end

  # Resolv makes a class of each type that it does not know, for ever.
  def test_types_that_were_not_asked_for_make_no_classes
    before = Resolv::DNS::Resource::Generic.constants.size
    unknown = (1000...3000).map { |type| record("\0", type, "x") }.join
    assert_empty decode(after_question(2000, unknown), asked).records
    assert_equal before, Resolv::DNS::Resource::Generic.constants.size
  end

  # A server on loopback, by UDP and by TCP, which answers as the blocks do; gives a resolver that asks it.
  def with_server(by_udp:, by_tcp: nil)
    udp = UDPSocket.new
    udp.bind("127.0.0.1", 0)
    tcp = by_tcp && TCPServer.new("127.0.0.1", udp.addr[1])
    servers = [Thread.new { loop { serve_udp(udp, by_udp) } }]
    servers << Thread.new { loop { serve_tcp(tcp, by_tcp) } } if tcp
    yield UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", udp.addr[1]]])
  rescue Errno::EADDRINUSE
    udp.close
    retry
  ensure
    servers&.each(&:kill)&.each(&:join)
    [udp, tcp].compact.each(&:close)
  end

  def serve_udp(socket, answers)
    bytes, sender = socket.recvfrom(1000)
    answers.(Resolv::DNS::Message.decode(bytes)).each { |answer| socket.send(answer, 0, sender[3], sender[1]) }
  end

  def serve_tcp(server, answer)
    client = server.accept
    bytes = client.read(client.read(2).unpack1("n"))
    client.write(answer.(Resolv::DNS::Message.decode(bytes)))
  rescue Errno::ECONNRESET, Errno::EPIPE
    # It has heard enough.
  ensure
    client&.close
  end

  def right(question)
    answer = Resolv::DNS::Message.new(question.id).tap { |message| message.qr = 1 }
    answer.add_question(*question.question.first)
    answer.add_answer("host.test.", 60, IN::A.new("192.0.2.1"))
    answer.encode
  end

  def test_the_right_answer_is_found_among_forgeries
    fuzz(20) do |random|
      forged = lambda do |question|
        forgeries = Array.new(20) { mutated(right(question), random) }
        # One that is good enough would be taken.
        forgeries.select { |bytes| decode(bytes, question).nil? } << right(question)
      end
      with_server(by_udp: forged) { |resolver| assert_equal ["192.0.2.1"], resolver.resolve("host.test", :A) }
    end
  end

  def test_what_comes_by_tcp_is_an_answer_or_an_error
    cut_off = ->(question) { [[question.id, 0x8200, 0, 0, 0, 0].pack("n6")] }
    framed = ->(bytes, length = bytes.bytesize) { [length].pack("n") + bytes }
    with_server(by_udp: cut_off, by_tcp: ->(question) { framed.(right(question)) }) do |resolver|
      assert_equal ["192.0.2.1"], resolver.resolve("host.test", :A)
    end
    [
      ->(_) { "" }, ->(_) { "\0" }, ->(_) { framed.("") }, ->(_) { framed.("x", 0xffff) }, ->(question) { framed.(cut_off.(question).first) },
      ->(question) { framed.(right(question), 20) }, ->(question) { framed.(right(question).tap { |bytes| bytes[0, 2] = "??" }) }
    ].each do |answer|
      with_server(by_udp: cut_off, by_tcp: answer) { |resolver| assert_raises(Socket::ResolutionError) { resolver.resolve("host.test", :A) } }
    end
  end
end
