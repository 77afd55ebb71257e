# frozen_string_literal: true

require_relative "../test_helper"
require "fileutils"
require "pathname"
require "tmpdir"

# statx, and names: made, changed and removed.
class TestMachinePaths < MachineTest
  include InFolder

  # linux/fcntl.h, linux/stat.h
  AT_FDCWD = -100
  AT_SYMLINK_NOFOLLOW = 0x100
  AT_EMPTY_PATH = 0x1000
  STATX_SIZE = 0x200
  STATX_ALL = 0xfff

  def test_statx_tells_what_file_stat_tells
    fd = file("foobar")
    stat = File.stat(@path)
    [machine.statx(fd, nil, AT_EMPTY_PATH, STATX_ALL), machine.statx(AT_FDCWD, @path, 0, STATX_ALL)].each do |told|
      %i[dev ino mode nlink uid gid rdev size blksize blocks].each { |name| assert_equal stat.public_send(name), told[name], name }
      %i[atime ctime mtime].each do |name|
        assert_kind_of Float, told[name]
        assert_in_delta stat.public_send(name).to_f, told[name], 0.000_01, name
      end
      assert_kind_of Float, told[:btime]
      assert_kind_of Integer, told[:attributes]
    end
    assert_equal File.stat("/dev/null").rdev, machine.statx(AT_FDCWD, "/dev/null", 0, STATX_ALL)[:rdev]
    File.symlink(@path, "#{@path}2")
    assert_equal File.lstat("#{@path}2").ino, machine.statx(AT_FDCWD, "#{@path}2", AT_SYMLINK_NOFOLLOW, STATX_ALL)[:ino]
  end

  def test_statx_starts_at_a_directory
    file("foobar")
    folder = opened(machine.open(@folder, File::RDONLY))
    assert_equal 6, machine.statx(folder, "file", 0, STATX_SIZE)[:size]
  end

  def test_statx_of_a_file_beyond_four_gigabytes
    fd = file
    machine.ftruncate(fd, (4 << 30) + 7)
    assert_equal (4 << 30) + 7, machine.statx(fd, nil, AT_EMPTY_PATH, STATX_SIZE)[:size]
    assert_equal (4 << 30) + 7, machine.statx(AT_FDCWD, @path, 0, STATX_ALL)[:size]
  end

  def test_statx_of_no_path_needs_its_flag
    error = assert_raises(ArgumentError) { machine.statx(file, nil, 0, STATX_ALL) }
    assert_match(/path.*AT_EMPTY_PATH/, error.message)
  end

  def test_names_are_made_changed_and_removed
    File.write(@path, "foo")
    other = File.join(@folder, "other")
    folder = File.join(@folder, "folder")
    assert_equal 0, machine.link(@path, other)
    assert_equal 2, File.stat(@path).nlink
    assert_equal 0, machine.unlink(other)
    assert_equal 0, machine.rename(@path, other)
    assert_equal "foo", File.read(other)
    assert_equal 0, machine.symlink("other", Pathname(@path))
    assert_equal "other", File.readlink(@path)
    assert_equal 0, machine.mkdir(folder)
    assert_equal 0o777 & ~File.umask, File.stat(folder).mode & 0o7777
    assert_raises(Errno::EISDIR) { machine.unlink(folder) }
    assert_equal 0, machine.rmdir(folder)
    assert_equal 0, machine.mkdir(folder, 0o700)
    assert_equal 0o700, File.stat(folder).mode & 0o7777
    assert_raises(Errno::EEXIST) { machine.mkdir(folder) }
    assert_raises(Errno::EEXIST) { machine.symlink("x", other) }
    assert_raises(Errno::ENOTDIR) { machine.rmdir(other) }
  end

  def test_names_that_are_not_there
    missing = File.join(@folder, "missing")
    %i[unlink rmdir].each { |name| assert_raises(Errno::ENOENT, name) { machine.public_send(name, missing) } }
    %i[rename link].each { |name| assert_raises(Errno::ENOENT, name) { machine.public_send(name, missing, @path) } }
    assert_raises(Errno::ENOENT) { machine.mkdir("#{missing}/x") }
    assert_raises(Errno::ENOENT) { machine.symlink("x", "#{missing}/x") }
    assert_raises(Errno::ENOENT) { machine.open(missing, File::RDONLY) }
    assert_raises(Errno::ENOENT) { machine.open(missing, File::RDONLY) { flunk } }
    assert_raises(Errno::ENOENT) { machine.statx(AT_FDCWD, missing, 0, STATX_ALL) }
  end

  def test_paths_of_a_wrong_type_or_with_a_zero_byte
    calls = {
      path: [->(path) { machine.open(path, 0) }, ->(path) { machine.statx(AT_FDCWD, path, 0, 0) }, ->(path) { machine.unlink(path) },
             ->(path) { machine.rmdir(path) }, ->(path) { machine.mkdir(path) }, ->(path) { machine.symlink("x", path) }],
      old: [->(path) { machine.rename(path, "x") }, ->(path) { machine.link(path, "x") }],
      new: [->(path) { machine.rename("x", path) }, ->(path) { machine.link("x", path) }],
      target: [->(path) { machine.symlink(path, "x") }]
    }
    broken = Object.new
    def broken.to_path = 1
    calls.each do |name, list|
      list.each do |call|
        [1, :path, broken].each { |path| assert_names(name.to_s, TypeError) { call.call(path) } }
        assert_names(name.to_s, ArgumentError) { call.call("x\0y") }
      end
    end
    assert_names("path", TypeError) { machine.open(nil, 0) }
    # In Ruby's words, as File.open.
    mistaken = Object.new
    def mistaken.to_str = 1
    error = assert_raises(TypeError) { machine.open(mistaken, 0) }
    assert_equal assert_raises(TypeError) { File.open(mistaken) }.message, error.message
  end
end
