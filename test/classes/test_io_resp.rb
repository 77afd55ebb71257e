# frozen_string_literal: true

require_relative "../test_helper"

# RESP2 and RESP3 on UM::IO.
class TestMachineResp < MachineTest
  def setup
    super
    @reader, @writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
    @io = UM::IO.new(machine, @reader)
  end

  REPLIES = {
    "+foo bar\r\n" => "foo bar", ":123\r\n" => 123, ":-123\r\n" => -123, ":+5\r\n" => 5, ",123.321\r\n" => 123.321,
    ",inf\r\n" => Float::INFINITY,
    ",-inf\r\n" => -Float::INFINITY, "_\r\n" => nil, "#t\r\n" => true, "#f\r\n" => false, "$6\r\nfoobar\r\n" => "foobar", "$0\r\n\r\n" => "",
    "$-1\r\n" => nil, "*-1\r\n" => nil, "*0\r\n" => [], "=10\r\ntxt:foobar\r\n" => "foobar",
    "(123456789012345678901234567890\r\n" => 123_456_789_012_345_678_901_234_567_890,
    "(-5\r\n" => -5, "*3\r\n+foo\r\n:42\r\n$3\r\nbar\r\n" => ["foo", 42, "bar"], "~2\r\n+foo\r\n:42\r\n" => ["foo", 42],
    ">2\r\n+push\r\n_\r\n" => ["push", nil],
    "%2\r\n+a\r\n:1\r\n+b\r\n*2\r\n+c\r\n#t\r\n" => { "a" => 1, "b" => ["c", true] }, "|1\r\n+ttl\r\n:5\r\n" => { "ttl" => 5 },
    "$4\r\na\r\nb\r\n" => "a\r\nb",
    "$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n" => "Hello", "*?\r\n:1\r\n:2\r\n.\r\n" => [1, 2], "%?\r\n+a\r\n:1\r\n.\r\n" => { "a" => 1 }
  }.freeze

  def test_every_kind_of_reply_in_one_piece_and_in_every_two
    REPLIES.each do |bytes, value|
      (0...bytes.bytesize).each do |cut|
        fiber = machine.spin { @io.resp_read }
        [bytes.byteslice(0, cut), bytes.byteslice(cut..)].each { |piece| machine.write(@writer, piece) && 2.times { machine.snooze } }
        result = machine.join(fiber)
        value.nil? ? assert_nil(result) : assert_equal(value, result, bytes)
      end
    end
    machine.write(@writer, ",nan\r\n")
    assert_predicate @io.resp_read, :nan?
  end

  def test_a_reply_byte_by_byte
    bytes = "*4\r\n%1\r\n$3\r\nkey\r\n,1.5\r\n-ERR no\r\n$-1\r\n=7\r\nmkd:abc\r\n"
    fiber = machine.spin { @io.resp_read }
    bytes.each_char { |byte| machine.write(@writer, byte) && 2.times { machine.snooze } }
    hash, error, null, text = machine.join(fiber)
    assert_equal({ "key" => 1.5 }, hash)
    assert_instance_of UM::IO::RESPError, error
    assert_equal "ERR no", error.message
    assert_nil null
    assert_equal "abc", text
  end

  def test_errors_are_returned
    machine.write(@writer, "-ERR foo\r\n!8\r\nERR a\r\nb\r\n")
    assert_equal "ERR foo", @io.resp_read.message
    assert_equal "ERR a\r\nb", @io.resp_read.message
  end

  def test_strings_are_utf8_and_binary_data_is_whole
    machine.write(@writer, "$6\r\nשלם\r\n")
    assert_equal "שלם", @io.resp_read
    bytes = Random.bytes(300_000)
    machine.spin { machine.writev(@writer, "$300000\r\n", bytes, "\r\n") }
    assert_equal bytes, @io.resp_read.b
  end

  # Whether or not its end has come: a peer that sends a line for ever fills no memory.
  def test_a_line_that_is_too_long
    ["+#{"x" * 65_600}\r\n", "+#{"x" * 65_600}"].each do |bytes|
      reader, writer = opened(UNIXSocket.pair.map { |socket| socket.autoclose = false; socket.fileno })
      machine.writev(writer, bytes)
      error = assert_raises(UM::Error) { machine.timeout(20, Timeout::Error) { machine.io(reader).resp_read } }
      assert_match(/line is too long/, error.message)
    end
  end

  # A reply of just as many bytes is read; one with another byte is refused before what is too much is waited for.
  def test_a_reply_that_is_longer_than_its_limit
    REPLIES.each_key do |bytes|
      machine.write(@writer, bytes)
      value = @io.resp_read(bytes.bytesize)
      value.nil? ? assert_nil(REPLIES[bytes]) : assert_equal(REPLIES[bytes], value)
    end
    [*REPLIES.keys.map { |bytes| [bytes, bytes.bytesize - 1] }, ["$1000\r\n", 1000], ["*?\r\n#{":1\r\n" * 500}", 1000], ["*500000\r\n#{":1\r\n" * 500}", 1000], ["+#{"x" * 1000}", 1000]].each do |bytes, limit|
      reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
      machine.write(writer, bytes)
      error = assert_raises(UM::Error, bytes) { machine.timeout(20, Timeout::Error) { machine.io(reader).resp_read(limit) } }
      assert_match(/longer than limit/, error.message)
    end
    machine.write(@writer, "+next\r\n")
    assert_raises(ArgumentError) { @io.resp_read(-1) }
    assert_raises(TypeError) { @io.resp_read("1") }
    assert_equal "next", @io.resp_read(0)
  end

  def test_what_is_not_resp_is_an_error_that_a_peer_cannot_crash_with
    [
      "?what\r\n", "\r\n", "+foo\n", ":abc\r\n", ":-+5\r\n", "_x\r\n", "*?\r\n.x\r\n", "(\r\n", "(12x\r\n", ",abc\r\n", "#x\r\n", "$abc\r\n", "$-2\r\n", "$99999999999999999999\r\n",
      "*1000000000\r\n",
      "$3\r\nfoobar\r\n", "=3\r\nabc\r\n", "$?\r\n+x\r\n", "#{"*1\r\n" * 1000}:1\r\n", "+#{"x" * 100_000}\r\n"
    ].each do |bytes|
      reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
      machine.spin { machine.writev(writer, bytes) }
      assert_raises(UM::Error, bytes[0, 20]) { machine.io(reader).resp_read }
    end
  end

  def test_the_end_between_replies_is_nil_and_within_one_an_error
    machine.write(@writer, "+done\r\n")
    machine.close(@writer)
    assert_equal "done", @io.resp_read
    assert_nil @io.resp_read
    ["$5\r\nab", "*2\r\n:1\r\n", "+fo", "%1\r\n+a\r\n"].each do |bytes|
      reader, writer = opened(IO.pipe.map { |io| io.autoclose = false; io.fileno })
      machine.write(writer, bytes)
      machine.close(writer)
      assert_raises(EOFError, bytes) { machine.io(reader).resp_read }
    end
  end

  OBJECTS = {
    nil => "_\r\n", true => "#t\r\n", false => "#f\r\n", 42 => ":42\r\n", -1 => ":-1\r\n", 2**70 => "(1180591620717411303424\r\n", 42.1 => ",42.1\r\n",
    Float::INFINITY => ",inf\r\n", "foobar" => "$6\r\nfoobar\r\n", "" => "$0\r\n\r\n", "פובאר" => "$10\r\nפובאר\r\n", sym: "$3\r\nsym\r\n",
    %w[foo bar] => "*2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n", { "foo" => "bar", "baz" => 42 } => "%2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n$3\r\nbaz\r\n:42\r\n", [] => "*0\r\n"
  }.freeze

  def test_encode_and_write
    OBJECTS.each do |object, bytes|
      assert_equal bytes.b, UM::IO.resp_encode(+"", object).b
      assert_equal bytes.bytesize, machine.io(@writer).resp_write(object)
      assert_equal bytes.b, @io.read(bytes.bytesize)
    end
    string = +"before "
    assert_same string, UM::IO.resp_encode(string, 1)
    assert_equal "before :1\r\n", string
  end

  def test_what_cannot_be_encoded
    assert_raises(UM::Error) { UM::IO.resp_encode(+"", Object.new) }
    assert_raises(UM::Error) { UM::IO.resp_encode(+"", [1, [Object]]) }
    endless = []
    endless << endless
    assert_raises(UM::Error) { UM::IO.resp_encode(+"", endless) }
    assert_names("string", TypeError) { UM::IO.resp_encode(1, 1) }
    assert_raises(FrozenError) { UM::IO.resp_encode("frozen", 1) }
  end

  def test_a_hash_whose_to_a_gives_no_array_of_arrays
    [5, nil, "ab", [1], [nil], [[1, 2], "ab"]].each do |answer|
      hash = Class.new(Hash) { define_method(:to_a) { answer } }.new
      string = +"as it was"
      error = assert_raises(TypeError) { UM::IO.resp_encode(string, hash) }
      assert_match(/to_a/, error.message)
      assert_raises(TypeError) { machine.io(@writer).resp_write([hash]) }
      assert_equal "as it was", string
    end
    mine = Class.new(Hash) { def to_a = [["a", 1], [], ["b"]] }.new
    assert_equal "%3\r\n$1\r\na\r\n:1\r\n_\r\n_\r\n$1\r\nb\r\n_\r\n", UM::IO.resp_encode(+"", mine)
  end

  def test_what_is_written_is_read
    objects = [nil, true, -7, 2**80, 1.25, "text", ["a", [1, [nil]]], { "k" => { "v" => [1.5] } }]
    objects.each { |object| machine.io(@writer).resp_write(object) }
    assert_equal(objects, Array.new(objects.size) { @io.resp_read })
  end

  # Debian's redis-server, on a UNIX socket of its own.
  def test_a_real_redis
    Dir.mktmpdir do |folder|
      path = File.join(folder, "redis.sock")
      server = Process.spawn("redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder, out: File::NULL)
      fd = connect(path)
      io = machine.io(fd, :socket)
      io.resp_write(%w[HELLO 3])
      assert_equal "redis", io.resp_read.fetch("server")
      100.times { |number| io.resp_write(["SET", "key:#{number}", "value" * number]) }
      assert_equal(["OK"], Array.new(100) { io.resp_read }.uniq)
      io.resp_write(["MGET", *Array.new(100) { |number| "key:#{number}" }])
      assert_equal Array.new(100) { |number| "value" * number }, io.resp_read
      io.resp_write(%w[GET nothing])
      assert_nil io.resp_read
      io.resp_write(%w[NONSENSE])
      assert_instance_of UM::IO::RESPError, io.resp_read
      io.resp_write(%w[HSET hash a 1 b 2])
      io.resp_read
      io.resp_write(%w[HGETALL hash])
      assert_equal({ "a" => "1", "b" => "2" }, io.resp_read)
    ensure
      Process.kill(:TERM, server)
      Process.wait(server)
    end
  end

  def connect(path)
    fd = opened(machine.socket(UM::AF_UNIX, UM::SOCK_STREAM))
    machine.connect(fd, path)
    fd
  rescue Errno::ENOENT, Errno::ECONNREFUSED
    # It is not up yet.
    machine.sleep(0.01)
    retry
  end
end
