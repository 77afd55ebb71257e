# frozen_string_literal: true

require_relative "../test_helper"
require_relative "../fuzz"
require_relative "resp_model"

# UM::IO, and what a peer may send it: random bytes in random pieces, read in random ways, as a String holds them.
class TestIOFuzz < MachineTest
  include Fuzz

  # What is left of the bytes, read in the plainest way.
  class Lines
    attr_reader :left

    def initialize(bytes)
      @left = bytes.b
    end

    def read_line(limit)
      seen = limit.zero? ? @left : @left[0, limit]
      if (place = seen.index("\n"))
        take(place + 1).delete_suffix("\n").delete_suffix("\r")
      elsif limit.zero? || @left.bytesize < limit
        take(@left.bytesize) unless @left.empty?
      end
    end

    def read_to_delim(delimiter, limit)
      seen = limit.zero? ? @left : @left[0, limit.abs]
      if (place = seen.index(delimiter))
        take(place + 1)[0...-1]
      elsif limit.negative?
        take(seen.bytesize) unless @left.empty?
      end
    end

    def read(length) = (take(length) if @left.bytesize >= length)

    def skip(count) = take(count).bytesize

    def take(count) = @left.slice!(0, count)
  end

  # Bytes of which many are newlines and delimiters.
  def text(random)
    alphabet = ["\n", "\r\n", "\r", ",", "a", "bc", "\0", "\xff".b, "d" * random.rand(50)]
    text = Array.new(random.rand(60)) { alphabet.sample(random:).b }.join
    random.rand(20).zero? ? text * random.rand(1..500) : text
  end

  def test_lines_delimiters_and_lengths_are_those_of_the_whole
    fuzz(400) do |random|
      bytes = text(random)
      stream(bytes, random) do |io|
        model = Lines.new(bytes)
        until model.left.empty?
          limit = [0, 0, random.rand(10), random.rand(100)].sample(random:)
          case random.rand(6)
          when 0, 1 then assert_read(model.read_line(limit), io.read_line(limit), "read_line(#{limit})")
          when 2
            limit = -limit if random.rand(2).zero?
            delimiter = [",", "\n", "\0", "\xff".b].sample(random:)
            assert_read(model.read_to_delim(delimiter.b, limit), io.read_to_delim(delimiter, limit), "read_to_delim(#{delimiter.inspect}, #{limit})")
          when 3 then assert_read(model.read(limit + 1), io.read(limit + 1), "read(#{limit + 1})")
          when 4 then assert_equal(model.skip(limit), io.skip(limit), "skip(#{limit})")
          when 5 then assert_some(io.read(-limit), limit, model)
          end
          assert_equal bytes.bytesize - model.left.bytesize, io.consumed
        end
        assert_equal [nil, nil, nil, 0], [io.read_line, io.read(1), io.read_to_delim(",", -5), io.skip(3)]
        assert_predicate io, :eof?
      end
    end
  end

  def assert_read(expected, read, call)
    expected.nil? ? assert_nil(read, call) : assert_equal(expected, read, call)
  end

  # As much as has come, or as was asked for.
  def assert_some(read, most, model)
    refute_empty read
    assert_operator read.bytesize, :<=, most unless most.zero?
    assert_equal model.take(read.bytesize), read
  end

  # Replies of every kind, mostly short and flat.
  def reply(random, depth = 0)
    inner = -> { reply(random, depth + 1) }
    count = random.rand(depth < 3 ? 4 : 1)
    word = -> { random.bytes(random.rand(6)).delete("\r\n") }
    number = -> { ["", "-", "+"].sample(random:) + random.rand(10**random.rand(1..25)).to_s }
    case random.rand(18)
    when 0 then "+#{word.()}\r\n"
    when 1 then "-ERR #{word.()}\r\n"
    when 2, 3 then ":#{number.()}\r\n"
    when 4 then "(#{number.()}\r\n"
    when 5 then ",#{[number.(), random.rand.to_s, "inf", "-inf", "nan", "1e#{random.rand(400)}", ".5", "5."].sample(random:)}\r\n"
    when 6 then ["_\r\n", "#t\r\n", "#f\r\n", "$-1\r\n", "*-1\r\n"].sample(random:)
    when 7, 8 then bulk("$", random.bytes(random.rand(20)))
    when 9 then bulk("!", "ERR #{random.bytes(random.rand(5))}")
    when 10 then bulk("=", "txt:#{random.bytes(random.rand(5))}")
    when 11, 12 then "#{["*", "~", ">"].sample(random:)}#{count}\r\n#{Array.new(count) { inner.() }.join}"
    when 13 then "#{["%", "|"].sample(random:)}#{count}\r\n#{Array.new(2 * count) { inner.() }.join}"
    when 14 then "$?\r\n#{Array.new(count) { bulk(";", random.bytes(random.rand(1..5))) }.join};0\r\n"
    when 15 then "*?\r\n#{Array.new(count) { inner.() }.join}.\r\n"
    when 16 then "%?\r\n#{Array.new(2 * count) { inner.() }.join}.\r\n"
    when 17 then depth.zero? ? "*1\r\n" * random.rand(120..140) + ":1\r\n" : ":1\r\n"
    end.b
  end

  def bulk(mark, bytes) = "#{mark}#{bytes.bytesize}\r\n".b << bytes.b << "\r\n"

  def assert_resp(bytes, random)
    model = RespModel.outcomes(bytes)
    stream(bytes, random) do |io|
      read = []
      read << outcome(io) while read.size < model.size
      assert_equal model, read, bytes[0, 500].inspect
    end
  end

  # What comes of one read, as RespModel has it.
  def outcome(io)
    before = io.consumed
    value = io.resp_read
    value.nil? && io.consumed == before ? :end : RespModel.describe(value)
  rescue UM::Error, EOFError => e
    e.class
  end

  def test_replies_are_those_of_the_whole
    fuzz(400) { |random| assert_resp(Array.new(random.rand(1..3)) { reply(random) }.join, random) }
  end

  def test_what_is_no_reply_is_an_error_that_is_documented
    fuzz(800) { |random| assert_resp(mutated(Array.new(random.rand(1..3)) { reply(random) }.join, random), random) }
  end

  def test_bytes_by_chance_are_an_error_that_is_documented
    fuzz(200) { |random| assert_resp(Array.new(random.rand(20)) { random.rand(3).zero? ? random.bytes(3) : Fuzz::SNAGS.sample(random:) }.join, random) }
  end

  # What resp_encode takes.
  def object(random, depth = 0)
    count = random.rand(depth < 4 ? 4 : 1)
    case random.rand(10)
    when 0 then [nil, true, false].sample(random:)
    when 1 then random.rand(-100..100)
    when 2 then random.rand(-(2**random.rand(1..200))..2**random.rand(1..200))
    when 3 then [random.rand, -random.rand * 10**random.rand(300), Float::INFINITY, -Float::INFINITY, Float::NAN, -0.0, 5e-324].sample(random:)
    when 4, 5 then random.bytes(random.rand(30)).force_encoding(Encoding::UTF_8)
    when 6 then "\r\n$5\r\n" * random.rand(3)
    when 7 then random.rand(10).zero? ? "x" * random.rand(200_000) : ""
    when 8 then Array.new(count) { object(random, depth + 1) }
    when 9 then Array.new(count) { [object(random, depth + 1), object(random, depth + 1)] }.to_h
    end
  end

  def test_what_is_encoded_is_read
    fuzz(300) do |random|
      objects = Array.new(random.rand(1..3)) { object(random) }
      bytes = objects.reduce(+"") { |string, object| UM::IO.resp_encode(string, object) }
      stream(bytes, random) do |io|
        assert_equal(objects.map { |object| RespModel.describe(object) }, objects.map { RespModel.describe(io.resp_read) })
        assert_nil io.resp_read
      end
    end
  end

  # A peer that says how much will come, and sends nothing.
  def test_what_is_only_promised_takes_no_memory
    opened_streams = %w[$ ! = * ~ > % |].flat_map do |mark|
      Array.new(10) do
        reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
        machine.write(writer, "#{mark}536870912\r\n")
        machine.io(reader)
      end
    end
    before = rss
    fibers = opened_streams.map { |io| machine.spin { io.resp_read rescue $!.class } }
    eventually { opened_streams.all? { |io| io.consumed.positive? } }
    assert_operator rss - before, :<, 50_000
    @opened.each_slice(2) { |_, writer| machine.close(writer) }
    assert_equal [EOFError], machine.join(fibers).uniq
  end
end
