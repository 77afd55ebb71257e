# frozen_string_literal: true

require_relative "../test_helper"

# Memory that the kernel works on, whatever Ruby code does with its object meanwhile.
class TestMachineLifetime < MachineTest
  LARGE = 20_000

  def setup
    super
    @reader, @writer = opened(UM.pipe)
  end

  # Starts a read into a buffer, runs the block, then has the bytes come. Returns what the read returned.
  def read_while(buffer, length = nil)
    machine.spin do
      yield
    ensure
      machine.write(@writer, "hello")
    end
    machine.read(@reader, buffer, length)
  end

  def test_a_string_that_is_copied_while_it_is_read_into
    buffer = "z" * LARGE
    copies = nil
    assert_equal 5, read_while(buffer, LARGE) { copies = [buffer.dup, buffer[0, 15_000]] }
    assert_equal "hello", buffer
    assert_equal [LARGE, 15_000], copies.map(&:bytesize)
    buffer << "more"
    assert_equal "hellomore", buffer
  end

  def test_a_string_that_is_copied_while_it_is_appended_to
    buffer = "z" * LARGE
    copy = nil
    machine.spin do
      copy = buffer.dup
      machine.write(@writer, "hello")
    end
    assert_equal 5, machine.read(@reader, buffer, LARGE, -1)
    assert_equal "#{"z" * LARGE}hello", buffer
    assert_equal "z" * LARGE, copy
  end

  def test_a_slice_whose_buffer_is_freed_while_it_is_read_into
    whole = IO::Buffer.new(2 * LARGE)
    assert_raises(IO::Buffer::InvalidatedError) { read_while(whole.slice(0, LARGE)) { whole.free } }
    assert_predicate whole, :null?
  end

  def test_a_slice_is_read_into
    whole = IO::Buffer.new(2 * LARGE)
    assert_equal 5, read_while(slice = whole.slice(100, LARGE)) { assert_predicate slice, :locked? }
    assert_equal "\0hello\0", whole.get_string(99, 7)
    refute_predicate slice, :locked?
  end

  def test_a_slice_whose_buffer_is_freed_while_it_is_written
    whole = IO::Buffer.for("x" * 400_000).then { |view| IO::Buffer.new(400_000).tap { |copy| copy.copy(view) } }
    got = +""
    fiber = machine.spin { machine.writev(@writer, whole.slice(0, 300_000)) }
    machine.snooze
    whole.free
    machine.read(@reader, got, 65_536, -1) while got.bytesize < 300_000
    assert_equal 300_000, machine.join(fiber)
    assert_equal "x" * 300_000, got
  end

  def test_the_view_of_read_each_can_be_neither_freed_nor_transferred
    machine.write(@writer, "x" * LARGE)
    io = machine.io(@reader)
    io.read_each do |view|
      assert_raises(IO::Buffer::LockedError) { view.free }
      assert_raises(IO::Buffer::LockedError) { view.transfer }
      break
    end
  end

  def test_a_view_of_read_each_is_written
    machine.write(@writer, "x" * LARGE)
    machine.close(@writer)
    reader, writer = opened(UM.pipe)
    machine.io(@reader).read_each { |view| machine.write(writer, view) }
    machine.close(writer)
    assert_equal "x" * LARGE, machine.io(reader).read(LARGE)
  end

  def test_a_slice_of_a_view_that_is_written_beyond_the_block
    machine.write(@writer, "x" * 60_000)
    reader, writer = opened(UM.pipe)
    machine.write(writer, "y" * 60_000)
    fiber = nil
    machine.io(@reader).read_each do |view|
      slice = view.slice
      fiber = machine.spin { machine.writev(writer, slice) }
      machine.snooze
      break if slice.size > 20_000
    end
    got = +""
    machine.read(reader, got, 65_536, -1) while got.bytesize < 60_000
    size = machine.join(fiber)
    machine.read(reader, got, 65_536, -1) while got.bytesize < 60_000 + size
    assert_equal "x" * size, got[60_000..]
  end

  # Its program may unlock it, and change it, before the kernel is done.
  def test_what_a_program_has_locked_is_copied
    buffer = IO::Buffer.new(400_000)
    buffer.clear("x".ord)
    fiber = buffer.locked do
      machine.spin { machine.writev(@writer, buffer) }.tap { machine.snooze }
    end
    refute_predicate buffer, :locked?
    buffer.clear("y".ord)
    got = +""
    machine.read(@reader, got, 65_536, -1) while got.bytesize < 400_000
    assert_equal 400_000, machine.join(fiber)
    assert_equal "x" * 400_000, got
  end

  def test_a_lock_goes_with_its_object
    large = "x" * 400_000
    fibers = Array.new(2) { machine.spin { machine.writev(@writer, large) } }
    machine.snooze
    assert_raises(RuntimeError) { large << "more" }
    got = 0
    got += machine.read(@reader, +"", 65_536) while got < 800_000
    machine.join(fibers)
    assert_equal 400_004, (large << "more").bytesize
  end
end
