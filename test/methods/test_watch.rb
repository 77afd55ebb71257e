# frozen_string_literal: true

require_relative "../test_helper"
require "fileutils"
require "pathname"
require "tmpdir"

# inotify_* and file_watch.
class TestMachineWatch < MachineTest
  class TooLate < StandardError; end

  # sys/inotify.h
  IN_CLOSE_WRITE = 0x8
  IN_MOVED_FROM = 0x40
  IN_MOVED_TO = 0x80
  IN_CREATE = 0x100
  IN_DELETE = 0x200
  IN_DELETE_SELF = 0x400
  IN_Q_OVERFLOW = 0x4000
  IN_IGNORED = 0x8000
  IN_ISDIR = 0x40000000
  TOO_LARGE = [1 << 40, 1 << 80].freeze

  def setup
    super
    @root = File.join(Dir.mktmpdir, "root")
    Dir.mkdir(@root)
    @events = UM::Queue.new
  end

  def teardown
    super
    FileUtils.rm_rf(File.dirname(@root))
  end

  def path(*names)
    File.join(@root, *names)
  end

  # Starts to watch the root; returns the fiber. Events go to a queue, without the root's path.
  def watch(mask, root = @root)
    fiber = machine.spin do
      machine.file_watch(root, mask) do |event|
        machine.push(@events, [event[:mask], event[:fn].delete_prefix(@root)])
        yield event if block_given?
      end
    end
    machine.snooze
    fiber
  end

  # Waits for a last event; returns all since the previous time.
  def events_until(*last)
    events = []
    events << machine.shift(@events) until events.last == last
    events
  end

  # How many inotify descriptors the process has.
  def inotify_descriptors
    Dir.children("/proc/self/fd").count do |fd|
      File.readlink("/proc/self/fd/#{fd}").include?("inotify")
    rescue Errno::ENOENT
      false
    end
  end

  def stop(fiber)
    machine.terminate(fiber)
    machine.join(fiber)
    assert_equal 0, inotify_descriptors
  end

  def test_events_have_their_watch_what_happened_and_a_name
    fd = opened(UM.inotify_init)
    assert IO.for_fd(fd, autoclose: false).close_on_exec?
    wd = UM.inotify_add_watch(fd, Pathname(@root), IN_CREATE | IN_CLOSE_WRITE | IN_DELETE_SELF)
    fiber = machine.spin { machine.inotify_get_events(fd) }
    machine.snooze
    refute fiber.done?
    File.write(path("file"), "foo")
    assert_equal({ wd:, mask: IN_CREATE, name: "file" }, machine.join(fiber).first)
    assert_equal 0, UM.inotify_rm_watch(fd, wd)
    events = [machine.inotify_get_events(fd)].flatten
    assert_equal({ wd:, mask: IN_IGNORED, name: nil }, events.last)
    assert_raises(Errno::EINVAL) { UM.inotify_rm_watch(fd, wd) }
  end

  def test_names_of_any_length_and_bytes
    fd = opened(UM.inotify_init)
    UM.inotify_add_watch(fd, @root, IN_CREATE)
    names = ["x", "y" * 15, "z" * 16, "n" * 255, "name with spaces", "näme"]
    names.each { |name| File.write(path(name), "") }
    told = []
    told.concat(machine.inotify_get_events(fd)) until told.size == names.size
    assert_equal(names.map(&:b), told.map { |event| event[:name].b })
    assert_equal [Encoding.find("filesystem")], told.map { |event| event[:name].encoding }.uniq
  end

  def test_a_wait_for_events_can_be_ended_while_others_run_and_loses_none
    fd = opened(UM.inotify_init)
    UM.inotify_add_watch(fd, @root, IN_CREATE)
    turns = 0
    ticker = machine.spin { loop { machine.sleep(0.001) && turns += 1 } }
    assert_raises(TooLate) { machine.timeout(0.02, TooLate) { machine.inotify_get_events(fd) } }
    assert_operator turns, :>, 0
    machine.terminate(ticker)
    machine.join(ticker)
    File.write(path("file"), "")
    assert_equal(["file"], machine.inotify_get_events(fd).map { |event| event[:name] })
  end

  def test_two_fibers_may_wait_for_events_of_one_descriptor
    fd = opened(UM.inotify_init)
    UM.inotify_add_watch(fd, @root, IN_CREATE)
    fibers = Array.new(2) { machine.spin { machine.inotify_get_events(fd) } }
    machine.snooze
    File.write(path("first"), "")
    eventually { fibers.any?(&:done?) }
    File.write(path("second"), "")
    assert_equal %w[first second], machine.join(fibers).flatten.map { |event| event[:name] }.sort
  end

  def test_bytes_that_are_no_events_are_no_crash
    reader, writer = opened(*UM.pipe)
    machine.write(writer, "\xff" * 100)
    assert_equal [], machine.inotify_get_events(reader)
  end

  def test_a_tree_is_watched
    FileUtils.mkdir_p(path("a", "b"))
    fiber = watch(IN_CREATE | IN_DELETE | IN_CLOSE_WRITE)
    File.write(path("file"), "foo")
    File.write(path("a", "b", "file"), "foo")
    File.unlink(path("a", "b", "file"))
    assert_equal [
      [IN_CREATE, "/file"], [IN_CLOSE_WRITE, "/file"], [IN_CREATE, "/a/b/file"], [IN_CLOSE_WRITE, "/a/b/file"], [IN_DELETE, "/a/b/file"]
    ], events_until(IN_DELETE, "/a/b/file")
    stop(fiber)
  end

  def test_hidden_directories_are_watched
    Dir.mkdir(path(".hidden"))
    fiber = watch(IN_CREATE)
    File.write(path(".hidden", ".file"), "")
    assert_equal [[IN_CREATE, "/.hidden/.file"]], events_until(IN_CREATE, "/.hidden/.file")
    stop(fiber)
  end

  def test_directories_that_are_made_later_are_watched
    fiber = watch(IN_CREATE | IN_DELETE)
    Dir.mkdir(path("new"))
    assert_equal [[IN_CREATE | IN_ISDIR, "/new"]], events_until(IN_CREATE | IN_ISDIR, "/new")
    File.write(path("new", "file"), "")
    assert_equal [[IN_CREATE, "/new/file"]], events_until(IN_CREATE, "/new/file")
    FileUtils.rm_rf(path("new"))
    assert_equal [[IN_DELETE, "/new/file"], [IN_DELETE | IN_ISDIR, "/new"]], events_until(IN_DELETE | IN_ISDIR, "/new")
    Dir.mkdir(path("new"))
    events_until(IN_CREATE | IN_ISDIR, "/new")
    File.write(path("new", "file"), "")
    assert_equal [[IN_CREATE, "/new/file"]], events_until(IN_CREATE, "/new/file")
    stop(fiber)
  end

  def test_a_directory_may_be_filled_or_gone_before_it_is_watched
    fiber = watch(IN_CREATE)
    FileUtils.mkdir_p(path("filled", "deep"))
    File.write(path("filled", "deep", "early"), "")
    Dir.mkdir(path("gone"))
    Dir.rmdir(path("gone"))
    Dir.mkdir(path("replaced"))
    Dir.rmdir(path("replaced"))
    File.symlink("/", path("replaced"))
    events_until(IN_CREATE, "/replaced")
    File.write(path("filled", "deep", "late"), "")
    assert_equal [[IN_CREATE, "/filled/deep/late"]], events_until(IN_CREATE, "/filled/deep/late")
    stop(fiber)
  end

  def test_what_the_block_does_in_a_new_directory_is_seen
    fiber = watch(IN_CREATE) { |event| File.write(File.join(event[:fn], "by the block"), "") if event[:mask].anybits?(IN_ISDIR) }
    Dir.mkdir(path("new"))
    events_until(IN_CREATE, "/new/by the block")
    stop(fiber)
  end

  def test_new_directories_are_watched_although_nobody_asked_for_their_making
    fiber = watch(IN_CLOSE_WRITE)
    Dir.mkdir(path("new"))
    Dir.mkdir(path("new", "newer"))
    # The root's own event comes after those of the directories.
    File.write(path("file"), "")
    events_until(IN_CLOSE_WRITE, "/file")
    File.write(path("new", "newer", "file"), "")
    File.rename(path("file"), path("moved"))
    File.write(path("last"), "")
    assert_equal [[IN_CLOSE_WRITE, "/new/newer/file"], [IN_CLOSE_WRITE, "/last"]], events_until(IN_CLOSE_WRITE, "/last")
    stop(fiber)
  end

  def test_symbolic_links_are_not_followed
    outside = File.join(File.dirname(@root), "outside")
    Dir.mkdir(outside)
    File.symlink(@root, path("loop"))
    File.symlink(outside, path("before"))
    fiber = watch(IN_CREATE)
    File.symlink(outside, path("after"))
    events_until(IN_CREATE, "/after")
    File.write(File.join(outside, "file"), "")
    File.write(path("file"), "")
    assert_equal [[IN_CREATE, "/file"]], events_until(IN_CREATE, "/file")
    stop(fiber)
  end

  def test_the_root_may_be_a_symbolic_link_or_a_pathname
    link = File.join(File.dirname(@root), "link")
    File.symlink(@root, link)
    fiber = watch(IN_CREATE, Pathname(link))
    File.write(path("file"), "")
    events_until(IN_CREATE, "#{link}/file")
    stop(fiber)
  end

  def test_the_root_may_be_a_file
    File.write(path("file"), "")
    fiber = watch(IN_CLOSE_WRITE, path("file"))
    File.write(path("file"), "foo")
    assert_equal [[IN_CLOSE_WRITE, "/file"]], events_until(IN_CLOSE_WRITE, "/file")
    stop(fiber)
  end

  def test_directories_that_are_moved_are_watched_where_they_are
    outside = File.join(File.dirname(@root), "outside")
    FileUtils.mkdir_p([path("a", "b"), File.join(outside, "x", "y")])
    fiber = watch(IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO)
    File.rename(path("a"), path("c"))
    assert_equal [[IN_MOVED_FROM | IN_ISDIR, "/a"], [IN_MOVED_TO | IN_ISDIR, "/c"]], events_until(IN_MOVED_TO | IN_ISDIR, "/c")
    File.write(path("c", "b", "file"), "")
    assert_equal [[IN_CREATE, "/c/b/file"]], events_until(IN_CREATE, "/c/b/file")
    File.rename(File.join(outside, "x"), path("x"))
    events_until(IN_MOVED_TO | IN_ISDIR, "/x")
    File.write(path("x", "y", "file"), "")
    assert_equal [[IN_CREATE, "/x/y/file"]], events_until(IN_CREATE, "/x/y/file")
    File.rename(path("x"), File.join(outside, "x"))
    events_until(IN_MOVED_FROM | IN_ISDIR, "/x")
    File.write(File.join(outside, "x", "y", "unseen"), "")
    File.write(path("seen"), "")
    assert_equal [[IN_CREATE, "/seen"]], events_until(IN_CREATE, "/seen")
    stop(fiber)
  end

  def test_an_overflow_is_told_and_what_was_missed_is_watched
    queue = File.read("/proc/sys/fs/inotify/max_queued_events").to_i
    skip "the queue takes #{queue} events" if queue > 100_000
    Dir.mkdir(path("gone"))
    fiber = watch(IN_CREATE | IN_DELETE)
    ((queue / 2) + 10).times do
      File.write(path("file"), "")
      File.unlink(path("file"))
    end
    Dir.rmdir(path("gone"))
    FileUtils.mkdir_p(path("missed", "deep"))
    events_until(IN_Q_OVERFLOW, "")
    File.write(path("missed", "deep", "file"), "")
    assert_equal [[IN_CREATE, "/missed/deep/file"]], events_until(IN_CREATE, "/missed/deep/file")
    stop(fiber)
  end

  def test_a_root_that_is_removed_ends_it
    Dir.mkdir(path("a"))
    fiber = watch(IN_DELETE_SELF)
    FileUtils.rm_rf(@root)
    assert_nil machine.join(fiber)
    assert_equal [[IN_DELETE_SELF, "/a"], [IN_DELETE_SELF, ""]], events_until(IN_DELETE_SELF, "")
    assert_equal 0, inotify_descriptors
  end

  def test_its_descriptor_is_closed_however_it_ends
    { break: ->(_) { :stop }, raise: ->(_) { raise TooLate } }.each_value do |block|
      fiber = machine.spin { machine.file_watch(@root, IN_CREATE) { |event| break block.call(event) } }
      machine.snooze
      File.write(path("file"), "")
      assert_includes([:stop, TooLate], machine.join(fiber).then { |result| result.is_a?(TooLate) ? TooLate : result })
      assert_equal 0, inotify_descriptors
      File.unlink(path("file"))
    end
    assert_raises(TooLate) { machine.timeout(0.01, TooLate) { machine.file_watch(@root, IN_CREATE) { flunk } } }
    assert_equal 0, inotify_descriptors
    fiber = watch(IN_CREATE)
    machine.schedule(fiber, :value)
    assert_equal :value, machine.join(fiber)
    assert_raises(Errno::ENOENT) { machine.file_watch(path("missing"), IN_CREATE) { flunk } }
    thread = Thread.new { assert_raises(UM::Error) { machine.file_watch(@root, IN_CREATE) { flunk } } }
    thread.join
    assert_equal 0, inotify_descriptors
  end

  def test_bad_arguments
    fd = opened(UM.inotify_init)
    assert_raises(ArgumentError) { UM.inotify_init(1) }
    assert_raises(Errno::EBADF) { machine.inotify_get_events(9999) }
    assert_raises(Errno::EBADF) { UM.inotify_add_watch(-1, @root, IN_CREATE) }
    assert_raises(Errno::EINVAL) { UM.inotify_add_watch(fd, @root, 0) }
    assert_raises(Errno::ENOENT) { UM.inotify_add_watch(fd, path("missing"), IN_CREATE) }
    assert_raises(Errno::EBADF) { UM.inotify_rm_watch(9999, 1) }
    assert_names("path", TypeError) { UM.inotify_add_watch(fd, 1, IN_CREATE) }
    assert_names("path", ArgumentError) { UM.inotify_add_watch(fd, "x\0y", IN_CREATE) }
    assert_names("mask", TypeError) { UM.inotify_add_watch(fd, @root, nil) }
    assert_names("mask", ArgumentError) { UM.inotify_add_watch(fd, @root, -1) }
    assert_names("wd", TypeError) { UM.inotify_rm_watch(fd, "1") }
    assert_names("fd", TypeError) { machine.inotify_get_events("1") }
    assert_names("root", TypeError) { machine.file_watch(1, IN_CREATE) {} }
    assert_names("root", ArgumentError) { machine.file_watch("x\0y", IN_CREATE) {} }
    assert_names("mask", TypeError) { machine.file_watch(@root, "1") {} }
    assert_names("mask", ArgumentError) { machine.file_watch(@root, 0) {} }
    assert_names("mask", ArgumentError) { machine.file_watch(@root, -1) {} }
    assert_raises(ArgumentError) { machine.file_watch(@root, IN_CREATE) }
    TOO_LARGE.each do |number|
      assert_names("fd", ArgumentError) { machine.inotify_get_events(number) }
      assert_names("fd", ArgumentError) { UM.inotify_add_watch(number, @root, IN_CREATE) }
      assert_names("mask", ArgumentError) { UM.inotify_add_watch(fd, @root, number) }
      assert_names("fd", ArgumentError) { UM.inotify_rm_watch(number, 1) }
      assert_names("wd", ArgumentError) { UM.inotify_rm_watch(fd, number) }
      assert_names("mask", ArgumentError) { machine.file_watch(@root, number) {} }
    end
  end
end
