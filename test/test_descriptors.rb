# frozen_string_literal: true

require_relative "test_helper"
require "open3"
require "tmpdir"

# No program that is started has a descriptor of ours, whatever is under way.
class TestDescriptors < SchedulerTest
  # What a child says that it has open.
  LIST = %w[ls -l /proc/self/fd].freeze

  # Every way there is to start a program. Each returns what it writes.
  CHILDREN = {
    backticks: -> { `#{LIST.join(" ")}` },
    spawn: -> { read_of { |writer| Process.wait(spawn(*LIST, out: writer)) } },
    spawn_of_um: -> { read_of { |writer| UM::Process.spawn(*LIST, out: writer).wait } },
    system: -> { read_of { |writer| system(*LIST, out: writer) } },
    popen: -> { IO.popen(LIST, &:read) },
    popen_minus: -> { IO.popen("-") { |reader| reader ? reader.read : exec(*LIST) } },
    open3: -> { Open3.capture2(*LIST).first },
    fork_and_exec: -> { read_of { |writer| Process.wait(fork { exec(*LIST, out: writer) }) } },
    fork_of_um_and_exec: -> { read_of { |writer| UM::Process.fork { exec(*LIST, out: writer) }.wait } },
    spawn_in_thread: -> { Thread.new { read_of { |writer| Process.wait(Process.spawn(*LIST, out: writer)) } }.value }
  }.freeze

  def read_of
    reader, writer = IO.pipe
    yield writer
    writer.close
    reader.read
  end

  # What a child has beyond its standard streams, and the folder that it lists: descriptors, and what they are.
  def inherited(way)
    instance_exec(&CHILDREN.fetch(way)).scan(/(\d+) -> (.*)/).reject { |fd, target| fd.to_i < 3 || target.match?(%r{\A/proc/\d+/fd\z}) }
  end

  # Descriptors that a program would inherit, with what they are.
  def inheritable
    Dir.children("/proc/self/fd").filter_map do |fd|
      flags = File.read("/proc/self/fdinfo/#{fd}")[/flags:\s+(\d+)/, 1].to_i(8)
      [fd.to_i, File.readlink("/proc/self/fd/#{fd}")] if fd.to_i > 2 && flags.nobits?(UM::O_CLOEXEC)
    rescue Errno::ENOENT
      # That of the list itself, or another thread's.
    end
  end

  # What is open in this process, by kind.
  def open_kinds
    Dir.children("/proc/self/fd").filter_map do |fd|
      File.readlink("/proc/self/fd/#{fd}")[/\A(?:anon_inode:)?\[?\w+/]
    rescue Errno::ENOENT
      nil
    end.tally
  end

  # Runs the block while operations of every sort are under way in a scheduler and its machine. It is given the descriptors
  # that a program would have inherited before.
  def with_everything
    Dir.mktmpdir do |folder|
      before = inheritable
      process = files = nil
      scheduled do |scheduler|
        machine = scheduler.machine
        Fiber.schedule do
          fds = []
          note = ->(*new) { fds.concat(new.flatten) }
          kinds = open_kinds
          # Every call that makes one.
          note.call(UM.pipe, UM.socketpair(Socket::AF_UNIX, Socket::SOCK_STREAM, 0), machine.socket(Socket::AF_INET, Socket::SOCK_STREAM, 0, 0))
          path = File.join(folder, "file")
          note.call(machine.open(path, UM::O_RDWR | UM::O_CREAT))
          server = machine.tcp_listen("127.0.0.1", 0)
          port = Addrinfo.new(Socket.for_fd(server).tap { |socket| socket.autoclose = false }.getsockname).ip_port
          note.call(server, machine.tcp_connect("127.0.0.1", port), machine.accept(server))
          accepted = []
          spun = [machine.spin { machine.accept_each(server) { |fd| accepted << fd } }]
          note.call(machine.tcp_connect("127.0.0.1", port))
          sleep 0.001 until accepted.any?
          # A look-up that is not answered, by UDP.
          silent = UDPSocket.new.tap { |socket| socket.bind("127.0.0.1", 0) }
          resolver = UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", silent.local_address.ip_port]])
          spun << machine.spin { resolver.resolve("silent.test", :A) }
          spun << machine.spin { machine.file_watch(folder, UM::IN_CREATE) { nil } }
          # A lock that is not to be had, on a native thread with a duplicate.
          files = [File.open(path), File.open(path)]
          files[0].flock(File::LOCK_EX | File::LOCK_NB)
          locking = Fiber.schedule { files[1].flock(File::LOCK_EX) }
          # A copy from a socket to a socket, through a pipe of ours.
          sockets = [*UNIXSocket.pair, *UNIXSocket.pair]
          copying = Fiber.schedule { IO.copy_stream(sockets[1], sockets[2]) }
          sockets[0] << "moved"
          sockets[3].readpartial(10)
          # A descriptor of a process, a registered file, an open on a worker, an actor with a ring of its own.
          process = UM::Process.spawn("sleep", "30")
          machine.register_file(fds.first)
          # Writes that go on after a close, by a duplicate.
          closed, peer = UNIXSocket.pair
          sockets << peer
          machine.write_async(closed.fileno, "x" * 4_000_000)
          closed.close
          File.mkfifo(File.join(folder, "fifo"))
          opening = Fiber.schedule { File.open(File.join(folder, "fifo"), &:read) }
          actor = machine.spin_thread_actor(Module.new { def setup = nil })
          # It takes a thread to begin.
          sleep 0.001 until open_kinds.fetch("anon_inode:inotify", 0) > kinds.fetch("anon_inode:inotify", 0) && locked_twice?(path)
          yield before
        ensure
          process&.kill(:KILL)
          process&.wait
          process&.close
          actor&.stop
          spun&.each { |fiber| machine.terminate(fiber) }
          machine.join(*spun) if spun
          [locking, copying, opening].each { |fiber| fiber&.kill if fiber&.alive? }
          [*files, *sockets, silent].each { |io| io&.close }
          (fds + accepted.to_a).each { |fd| machine.close(fd) }
        end
      end
    end
  end

  # Whether the duplicate of a file that is being locked is there: one of two IOs, one of the machine's open, one.
  def locked_twice?(path)
    Dir.children("/proc/self/fd").count do |fd|
      File.readlink("/proc/self/fd/#{fd}") == path
    rescue Errno::ENOENT
      false
    end >= 4
  end

  def test_every_descriptor_is_close_on_exec
    with_everything { |before| assert_equal before, inheritable }
  end

  CHILDREN.each_key do |way|
    define_method(:"test_a_child_of_#{way}_has_no_descriptor_of_ours") do
      expected = inheritable.map { |fd, _| fd.to_s }
      with_everything { assert_empty(inherited(way).reject { |fd, _| expected.include?(fd) }) }
    end
  end
end
