# frozen_string_literal: true

require_relative "../test_helper"
require "fileutils"
require "pathname"
require "tmpdir"

# open, splice, fsync, flock and their kin.
class TestMachineFiles < MachineTest
  include InFolder

  class TooLate < StandardError; end

  # linux/fcntl.h, linux/stat.h, linux/falloc.h, linux/fadvise.h, poll.h
  AT_FDCWD = -100
  AT_EMPTY_PATH = 0x1000
  STATX_ALL = 0xfff
  FALLOC_FL_KEEP_SIZE = 1
  FADV_DONTNEED = 4
  POLLIN = 1
  TOO_LARGE = [1 << 40, 1 << 80].freeze

  def fifo
    @fifo ||= File.join(@folder, "fifo").tap { |path| File.mkfifo(path) }
  end

  # How many of the process's descriptors are of a file.
  def descriptors_of(path)
    Dir.children("/proc/self/fd").count do |fd|
      File.readlink("/proc/self/fd/#{fd}") == path
    rescue Errno::ENOENT
      false
    end
  end

  def close_on_exec?(fd)
    IO.for_fd(fd, autoclose: false).close_on_exec?
  end

  # Runs a call that waits, with a deadline; asserts that other fibers have run meanwhile.
  def assert_ends_by_timeout(&)
    turns = 0
    ticker = machine.spin { loop { machine.sleep(0.001) && turns += 1 } }
    assert_raises(TooLate) { machine.timeout(0.02, TooLate, &) }
    assert_operator turns, :>, 0
    machine.terminate(ticker)
    machine.join(ticker)
  end

  def test_open_makes_a_file_with_a_mode
    umask = File.umask(0o027)
    fd = opened(machine.open(@path, File::CREAT | File::WRONLY))
    assert_equal 0o640, File.stat(@path).mode & 0o7777
    machine.write(fd, "foo")
    assert_equal "foo", File.read(@path)
    opened(machine.open("#{@path}2", File::CREAT | File::WRONLY, 0o4757))
    assert_equal 0o4750, File.stat("#{@path}2").mode & 0o7777
  ensure
    File.umask(umask)
  end

  def test_open_takes_a_pathname
    File.write(@path, "foo")
    opened(machine.open(Pathname(@path), File::RDONLY))
  end

  def test_open_with_a_block_closes_however_the_block_ends
    fd = nil
    assert_equal :value, machine.open(@path, File::CREAT | File::RDWR) { |opened| fd = opened; :value }
    assert_raises(Errno::EBADF) { machine.read(fd, +"", 1) }
    assert_raises(TooLate) { machine.open(@path, File::RDWR) { raise TooLate } }
    assert_equal(:out, catch(:out) { machine.open(@path, File::RDWR) { throw :out, :out } })
    assert_equal(:broken, machine.open(@path, File::RDWR) { break :broken })
    fiber = machine.spin { machine.open(@path, File::RDWR) { machine.sleep } }
    eventually { descriptors_of(@path).positive? }
    machine.terminate(fiber)
    machine.join(fiber)
    assert_equal 0, descriptors_of(@path)
  end

  def test_the_descriptor_of_a_block_is_closed_although_an_exception_is_pending
    fiber = machine.spin do
      machine.open(@path, File::CREAT | File::RDWR) { machine.schedule(Fiber.current, TooLate.new) }
      descriptors_of(@path)
    end
    assert_equal 0, machine.join(fiber)
  end

  def test_what_is_opened_is_close_on_exec
    assert close_on_exec?(opened(machine.open(@path, File::CREAT | File::RDWR)))
    machine.open(@path, File::RDWR) { |fd| assert close_on_exec?(fd) }
  end

  def test_the_ends_of_a_fifo_wait_for_each_other
    [File::RDONLY, File::WRONLY].permutation do |first, second|
      fiber = machine.spin { machine.open(fifo, first) }
      10.times { machine.sleep(0.001) }
      refute fiber.done?
      [machine.open(fifo, second), machine.join(fiber)].each { |fd| machine.close(fd) }
    end
    assert_raises(Errno::ENXIO) { machine.open("#{fifo}2".tap { |path| File.mkfifo(path) }, File::WRONLY | File::NONBLOCK) }
  end

  def test_any_number_of_opens_may_wait_while_other_files_are_worked_on
    paths = Array.new(40) { |number| File.join(@folder, "fifo#{number}").tap { |path| File.mkfifo(path) } }
    readers = paths.map { |path| machine.spin { opened(machine.open(path, File::RDONLY)) } }
    3.times { machine.submit && machine.snooze }
    machine.timeout(20, TooLate) do
      assert_equal 0, machine.statx(AT_FDCWD, @folder, 0, STATX_ALL)[:mode] & 0o100000
      fd = opened(machine.open(@path, File::CREAT | File::RDWR | File::TRUNC))
      machine.write(fd, "worked on")
      machine.fsync(fd)
      assert_equal "worked on", File.read(@path)
      writers = paths.map { |path| opened(machine.open(path, File::WRONLY)) }
      readers = machine.join(*readers)
      writers.zip(readers).each_with_index do |(writer, reader), number|
        machine.write(writer, number.to_s)
        machine.read(reader, buffer = +"", 10)
        assert_equal number.to_s, buffer
      end
    end
  end

  def test_the_opens_that_wait_can_be_ended_and_leak_nothing
    path = fifo
    GC.start
    before = settled_descriptors
    [UM::O_RDONLY, UM::O_WRONLY].each do |flags|
      20.times { assert_raises(TooLate) { machine.timeout(0.001, TooLate) { machine.open(path, flags) } } }
    end
    fibers = Array.new(20) { machine.spin { machine.open(path, File::RDONLY) } }
    machine.snooze
    fibers.each(&:kill)
    machine.await(fibers)
    assert_operator open_descriptors, :<=, before
    assert_raises(Errno::ENOTDIR) { machine.open("#{path}/none", File::RDONLY) }
    assert_raises(Errno::EEXIST) { machine.open(path, File::RDONLY | File::CREAT | File::EXCL) }
  end

  def test_an_open_that_waits_can_be_ended
    assert_ends_by_timeout { machine.open(fifo, File::RDONLY) }
    assert_ends_by_timeout { machine.open(fifo, File::WRONLY) }
  end

  def test_an_open_that_succeeded_while_it_was_being_ended_leaks_no_descriptor
    100.times do |turn|
      fiber = machine.spin do
        fd = machine.open(fifo, File::RDONLY)
        machine.close_async(fd)
        machine.yield
      rescue TooLate
        :ended
      end
      machine.snooze
      writer = begin
        File.open(fifo, File::WRONLY | File::NONBLOCK)
      rescue Errno::ENXIO
        machine.submit
        retry
      end
      machine.submit if turn.odd?
      machine.schedule(fiber, TooLate.new)
      assert_equal :ended, machine.join(fiber)
      writer.close
    end
    machine.submit
    assert_equal 0, descriptors_of(fifo)
  end

  def test_splice_moves_what_there_is
    from, into = opened(*UM.pipe)
    out, to = opened(*UM.pipe)
    fiber = machine.spin { machine.splice(from, to, 1000) }
    machine.snooze
    machine.write(into, "foobar")
    assert_equal 6, machine.join(fiber)
    buffer = +""
    machine.read(out, buffer, 100)
    assert_equal "foobar", buffer
    machine.close(into)
    assert_equal 0, machine.splice(from, to, 1 << 40)
  end

  def test_splice_at_offsets_beyond_four_gigabytes
    fd = file
    from, into = opened(*UM.pipe)
    far = (5 << 30) + 3
    machine.write(into, "foobar")
    assert_equal 6, machine.splice(from, fd, 100, nil, far)
    assert_equal far + 6, File.size(@path)
    assert_equal 3, machine.splice(fd, into, 100, far + 3)
    buffer = +""
    machine.read(from, buffer, 100)
    assert_equal "bar", buffer
  end

  def test_a_splice_that_waits_can_be_ended
    from, = opened(*UM.pipe)
    _, to = opened(*UM.pipe)
    assert_ends_by_timeout { machine.splice(from, to, 100) }
    assert_ends_by_timeout { machine.tee(from, to, 100) }
  end

  def test_tee_leaves_the_bytes
    from, into = opened(*UM.pipe)
    out, to = opened(*UM.pipe)
    machine.write(into, "foobar")
    assert_equal 6, machine.tee(from, to, 1000)
    [from, out].each do |fd|
      buffer = +""
      machine.read(fd, buffer, 100)
      assert_equal "foobar", buffer
    end
  end

  def test_fsync_and_fdatasync
    fd = file("foo")
    assert_equal 0, machine.fsync(fd)
    assert_equal 0, machine.fdatasync(fd)
    assert_raises(Errno::EINVAL) { machine.fsync(opened(*UM.pipe).last) }
  end

  def test_ftruncate_by_the_ring_and_by_a_thread
    ftruncate = lambda do |machine, fd|
      assert_equal 0, machine.ftruncate(fd, 3)
      assert_equal "foo", File.read(@path)
      assert_equal 0, machine.ftruncate(fd, 5 << 30)
      assert_equal 5 << 30, File.size(@path)
      assert_raises(Errno::EINVAL) { machine.ftruncate(opened(*UM.pipe).last, 0) }
    end
    ftruncate.call(machine, file("foobar"))
    masked("ftruncate") { |machine| ftruncate.call(machine, file("foobar")) }
  end

  # Yields a machine without a feature of the kernel.
  def masked(feature)
    ENV["UM_MASK"] = feature
    yield UM.new
  ensure
    ENV.delete("UM_MASK")
  end

  def test_fallocate_gives_room
    fd = file
    assert_equal 0, machine.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1 << 16)
    assert_equal 0, File.size(@path)
    assert_operator File.stat(@path).blocks * 512, :>=, 1 << 16
    assert_equal 0, machine.fallocate(fd, 0, 5 << 30, 10)
    assert_equal (5 << 30) + 10, File.size(@path)
    assert_raises(Errno::EINVAL) { machine.fallocate(fd, 0, 0, 0) }
  rescue Errno::EOPNOTSUPP
    skip "the file system has no fallocate"
  end

  def test_fadvise_takes_any_length
    fd = file("foobar")
    [0, 6, 1 << 33].each { |length| assert_equal 0, machine.fadvise(fd, 0, length, FADV_DONTNEED) }
    [6, 1 << 33].each { |length| assert_raises(Errno::EINVAL) { machine.fadvise(fd, 0, length, 99) } }
    assert_raises(Errno::ESPIPE) { machine.fadvise(opened(*UM.pipe).first, 0, 1 << 33, 0) }
  end

  def test_flock_waits_for_the_lock_alone
    first = file
    second = opened(machine.open(@path, File::RDWR))
    assert_equal 0, machine.flock(first, File::LOCK_EX)
    assert_raises(Errno::EWOULDBLOCK) { machine.flock(second, File::LOCK_EX | File::LOCK_NB) }
    order = []
    fiber = machine.spin do
      order << :waits
      machine.flock(second, File::LOCK_EX)
      order << :has
    end
    5.times { machine.sleep(0.001) }
    order << :unlocks
    machine.flock(first, File::LOCK_UN)
    machine.join(fiber)
    assert_equal %i[waits unlocks has], order
    assert_raises(Errno::EWOULDBLOCK) { machine.flock(first, File::LOCK_SH | File::LOCK_NB) }
  end

  def test_a_flock_that_was_ended_leaves_no_lock_and_no_descriptor
    first = file
    second = opened(machine.open(@path, File::RDWR))
    20.times do
      machine.flock(first, File::LOCK_EX)
      assert_ends_by_timeout { machine.flock(second, File::LOCK_EX) }
      machine.flock(first, File::LOCK_UN)
      # Whoever locks after it has the lock, and keeps it.
      machine.flock(first, File::LOCK_EX | File::LOCK_NB)
      assert_raises(Errno::EWOULDBLOCK) { machine.flock(second, File::LOCK_SH | File::LOCK_NB) }
      machine.flock(first, File::LOCK_UN)
    end
    assert_equal 2, descriptors_of(@path)
  end

  def test_a_flock_that_was_ended_while_it_got_the_lock_has_it_or_raises
    first = file
    second = opened(machine.open(@path, File::RDWR))
    50.times do
      machine.flock(first, File::LOCK_EX)
      fiber = machine.spin do
        machine.flock(second, File::LOCK_EX)
        :locked
      rescue TooLate
        :ended
      end
      machine.snooze
      machine.flock(first, File::LOCK_UN)
      machine.schedule(fiber, TooLate.new)
      case machine.join(fiber)
      when :locked
        assert_raises(Errno::EWOULDBLOCK) { machine.flock(first, File::LOCK_EX | File::LOCK_NB) }
        machine.flock(second, File::LOCK_UN)
      when :ended
        assert_equal 0, machine.flock(first, File::LOCK_EX | File::LOCK_NB)
        machine.flock(first, File::LOCK_UN)
      else
        flunk
      end
    end
  end

  def test_a_flock_that_waits_is_ended_by_an_exception_from_outside
    first = file
    second = opened(machine.open(@path, File::RDWR))
    machine.flock(first, File::LOCK_EX)
    thread = Thread.new do
      Thread.current.report_on_exception = false
      UM.new.flock(second, File::LOCK_EX)
    end
    Thread.pass until thread.status == "sleep"
    thread.raise(TooLate)
    assert_raises(TooLate) { thread.value }
    machine.flock(first, File::LOCK_UN)
    assert_equal 0, machine.flock(first, File::LOCK_EX | File::LOCK_NB)
  end

  def test_any_number_of_flocks_may_wait
    first = file
    machine.flock(first, File::LOCK_EX)
    fibers = Array.new(30) do
      fd = opened(machine.open(@path, File::RDWR))
      machine.spin { machine.flock(fd, File::LOCK_SH) }
    end
    machine.snooze
    machine.flock(first, File::LOCK_UN)
    assert_equal [0], machine.join(fibers).uniq
  end

  def test_a_wait_that_is_scheduled_returns_the_value
    reader, = opened(*UM.pipe)
    waits = [-> { machine.poll(reader, POLLIN) }, -> { machine.select([reader], [], []) }, -> { machine.open(fifo, File::RDONLY) { flunk } }]
    waits.each do |wait|
      fiber = machine.spin { wait.call }
      machine.snooze
      machine.schedule(fiber, :value)
      assert_equal :value, machine.join(fiber)
    end
  end

  def test_bad_descriptors
    reader, writer = opened(*UM.pipe)
    calls = {
      statx: ->(fd) { machine.statx(fd, nil, AT_EMPTY_PATH, STATX_ALL) },
      fsync: ->(fd) { machine.fsync(fd) },
      fdatasync: ->(fd) { machine.fdatasync(fd) },
      ftruncate: ->(fd) { machine.ftruncate(fd, 0) },
      fallocate: ->(fd) { machine.fallocate(fd, 0, 0, 1) },
      fadvise: ->(fd) { machine.fadvise(fd, 0, 0, 0) },
      long_fadvise: ->(fd) { machine.fadvise(fd, 0, 1 << 33, 0) },
      flock: ->(fd) { machine.flock(fd, File::LOCK_EX) },
      poll: ->(fd) { machine.poll(fd, POLLIN) },
      splice_from: ->(fd) { machine.splice(fd, writer, 10) },
      splice_to: ->(fd) { machine.splice(reader, fd, 10) },
      tee_from: ->(fd) { machine.tee(fd, writer, 10) },
      tee_to: ->(fd) { machine.tee(reader, fd, 10) },
      select_read: ->(fd) { machine.select([reader, fd], [], []) },
      select_write: ->(fd) { machine.select([], [fd], []) },
      select_except: ->(fd) { machine.select([], [], [fd]) }
    }
    calls.each do |name, call|
      [9999, -1].each { |fd| assert_raises(Errno::EBADF, "#{name} #{fd}") { call.call(fd) } }
    end
    eventually { machine.metrics[:ops_pending].zero? }
    masked("ftruncate") { |machine| assert_raises(Errno::EBADF) { machine.ftruncate(9999, 0) } }
  end

  def test_descriptors_and_numbers_of_a_wrong_type_or_out_of_range
    valid = {
      statx: { dirfd: 0, path: "x", flags: 0, mask: 0 },
      splice: { in_fd: 0, out_fd: 0, len: 1, in_offset: -1, out_offset: -1, flags: 0 },
      tee: { in_fd: 0, out_fd: 0, len: 1, flags: 0 },
      fsync: { fd: 0 }, fdatasync: { fd: 0 },
      ftruncate: { fd: 0, length: 0 },
      fallocate: { fd: 0, mode: 0, offset: 0, len: 1 },
      fadvise: { fd: 0, offset: 0, len: 0, advice: 0 },
      flock: { fd: 0, operation: 0 },
      poll: { fd: 0, mask: 1 },
      open: { path: "x", flags: 0, mode: 0 },
      mkdir: { path: "x", mode: 0 }
    }
    sixty_four_bits = %i[len in_offset out_offset length offset]
    valid.each do |method, arguments|
      arguments.each_key do |name|
        next if name == :path

        assert_names(name.to_s, TypeError) { machine.public_send(method, *arguments.merge(name => "1").values) }
        numbers = sixty_four_bits.include?(name) ? [1 << 80, -2] : TOO_LARGE
        numbers.each { |number| assert_names(name.to_s, ArgumentError) { machine.public_send(method, *arguments.merge(name => number).values) } }
      end
      assert_raises(ArgumentError) { machine.public_send(method) }
      assert_raises(ArgumentError) { machine.public_send(method, *arguments.values, 1, 2, 3) }
    end
    assert_names("mode", ArgumentError) { machine.open(@path, File::CREAT, -1) }
    assert_names("mode", ArgumentError) { machine.mkdir(@path, 0o10000) }
  end
end
