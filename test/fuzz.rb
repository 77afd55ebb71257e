# frozen_string_literal: true

# Random cases for what reads what peers send. Each has a seed of its own, which a failure names:
#
#   UM_FUZZ_CASES=1000000 script/with-ruby ruby -W:no-experimental -Itest test/classes/test_io_fuzz.rb
#   UM_FUZZ_SEED=4711 UM_FUZZ_CASES=1 …    that one
module Fuzz
  SEED = Integer(ENV.fetch("UM_FUZZ_SEED", 7))
  # Longer than a case takes, on any machine: what waits for bytes that there are says so.
  PATIENCE = 30

  # A case that has not ended.
  class Hang < StandardError; end

  # Numbers and marks that parsers stumble over.
  SNAGS = ["\r", "\n", "\r\n", "\0", "-", "+", "-1", "-0", "+1", "?", ".", ",", ":", ";", "$", "*", "0" * 20, "9" * 19, "536870912", "536870913", "2147483648",
           "4294967296", "18446744073709551616", "1e999", "\xff\xff", "\xc0\x0c", "\xc0\xff", "e"].map(&:b).freeze

  # Runs the block with random numbers, case by case.
  def fuzz(usual)
    Integer(ENV.fetch("UM_FUZZ_CASES", usual)).times do |number|
      seed = SEED + number
      machine.timeout(PATIENCE, Hang) { yield Random.new(seed) }
    rescue Minitest::Assertion, StandardError => e
      raise Minitest::Assertion, "UM_FUZZ_SEED=#{seed} UM_FUZZ_CASES=1: #{e.class}: #{e.message}", e.backtrace
    end
  end

  # The bytes with something changed, taken out, put in, said twice, or cut off.
  def mutated(bytes, random)
    bytes = bytes.b
    random.rand(1..3).times do
      at = random.rand(bytes.bytesize + 1)
      case random.rand(6)
      when 0 then bytes.setbyte(at, random.rand(256)) if at < bytes.bytesize
      when 1 then bytes.slice!(at, random.rand(1..8))
      when 2 then bytes.insert(at, random.bytes(random.rand(1..4)))
      when 3 then bytes.insert(at, bytes[random.rand(bytes.bytesize + 1), 16] || "")
      when 4 then bytes.insert(at, SNAGS.sample(random:))
      when 5 then bytes.slice!(at..)
      end
    end
    bytes
  end

  # The bytes as a network may bring them.
  def pieces(bytes, random)
    case random.rand(4)
    when 0 then [bytes]
    when 1 then bytes.bytesize < 100 ? bytes.each_char.to_a : [bytes]
    else
      cuts = Array.new(random.rand(1..6)) { random.rand(bytes.bytesize + 1) }.sort
      [0, *cuts, bytes.bytesize].each_cons(2).map { |from, to| bytes.byteslice(from...to) }
    end
  end

  # Has a fiber send the bytes in pieces, and the end; gives the block a stream of what comes, by a pipe or a socket.
  def stream(bytes, random)
    socket = random.rand(2).zero?
    ends = socket ? UNIXSocket.pair : IO.pipe
    reader, writer = ends.map { |io| io.autoclose = false; io.fileno }
    sender = machine.spin do
      pieces(bytes.b, random).each do |piece|
        machine.writev(writer, piece) unless piece.empty?
        # It is read before more comes.
        random.rand(3).times { machine.snooze }
      end
    rescue Errno::EPIPE, Errno::ECONNRESET
      # The reader has gone.
    ensure
      machine.close(writer)
    end
    yield machine.io(reader, socket ? :socket : :fd)
  ensure
    machine.close(reader)
    machine.join(sender)
  end
end
