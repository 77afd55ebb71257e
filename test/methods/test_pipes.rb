# frozen_string_literal: true

require_relative "../test_helper"

# Pipes and pairs of sockets.
class TestMachinePipes < MachineTest
  TOO_LARGE = [1 << 40, 1 << 80].freeze

  def test_pipes_and_pairs_of_sockets_are_connected_and_close_on_exec
    [UM.pipe, UM.socketpair(Socket::AF_UNIX, Socket::SOCK_STREAM, 0)].each do |reader, writer|
      opened(reader, writer)
      machine.write(writer, "foo")
      buffer = +""
      machine.read(reader, buffer, 10)
      assert_equal "foo", buffer
      [reader, writer].each { |fd| assert IO.for_fd(fd, autoclose: false).close_on_exec? }
    end
  end

  def test_bad_pairs
    assert_raises(ArgumentError) { UM.pipe(1) }
    assert_raises(Errno::EOPNOTSUPP) { UM.socketpair(Socket::AF_INET, Socket::SOCK_STREAM, 0) }
    valid = { domain: Socket::AF_UNIX, type: Socket::SOCK_STREAM, protocol: 0 }
    valid.each_key do |name|
      assert_names(name.to_s, TypeError) { UM.socketpair(*valid.merge(name => "1").values) }
      TOO_LARGE.each { |number| assert_names(name.to_s, ArgumentError) { UM.socketpair(*valid.merge(name => number).values) } }
    end
  end
end
