# frozen_string_literal: true

require "socket"
require "tempfile"

# Everything that waits: what test_cancellation.rb ends in every way, at every moment. A hook or a method that is in none of
# these tables, nor in those of what never waits, fails that test.
module Waits
  # One wait: the IO that it is for, if any; what waits; what has it end well; and whether nothing is lost, given what it
  # returned (nil if it has not), once that has been done. The rest is for those of a machine: the descriptor that it is for;
  # the buffer that is read into, and who writes what is read; whether the machine itself holds some of what is waited for, so
  # that it goes with it; whether a part may be done that nobody is told of; whether it does not end by itself.
  Wait = Struct.new(:io, :wait, :complete, :check, :fd, :buffer, :peer, :held, :partly, :endless, keyword_init: true)

  # What never waits, or has tests of its own beside what it needs: a name server, TLS.
  NEVER = {
    scheduler: %i[abort_on_exception abort_on_exception= close closed? fiber fiber_interrupt fiber_map io_close io_pread io_pwrite join machine
                  metrics process_fork process_open report run scheduler_close timeout_after transfer unblock uring_scheduler waiting warn_of_stalls yield address_resolve]
  }

  ALL = { scheduler: {}, machine: {} }

  def self.wait(kind, *covers, named: covers.first, &prepare) = ALL[kind][named] = [covers, prepare]

  # @return [Array<Symbol>] the hooks, or methods, that the table has
  def self.covered(kind) = ALL[kind].values.flat_map(&:first)

  # Keeps IOs until they are closed, together.
  def self.keep(*ios) = (@kept ||= []).concat(ios).then { ios.size == 1 ? ios.first : ios }

  def self.close_all
    @kept&.each { |io| io.close unless io.closed? }
    @kept = []
    Process.wait(@child) if @child
  rescue Errno::ECHILD
    # Somebody has.
  ensure
    @child = nil
  end

  # A full stream; what it holds.
  def self.fill(writer)
    held = +""
    held << ("f" * writer.write_nonblock("f" * 4096)) while true
  rescue IO::WaitWritable
    held
  end

  # All that is there.
  def self.drain(reader, into = +"")
    into << reader.read_nonblock(1 << 20) while true
  rescue IO::WaitReadable, EOFError
    into
  end

  BYTES = Random.new(1).bytes(300_000).freeze

  # A wait for something to read. The block gives both ends.
  def self.reading(read)
    reader, writer = keep(*yield)
    Wait.new(io: reader, wait: -> { read.call(reader) }, complete: -> { writer << "bytes\n" },
             check: ->(value) { drain(reader, +(value || "")) == "bytes\n" })
  end

  # A wait for room. What has arrived is what was there, then the first of the bytes, all of them if it returned, then what is
  # written next.
  def self.writing(write)
    reader, writer = keep(*yield)
    held = fill(writer)
    received = +"".b
    complete = lambda do
      @draining = Thread.new do
        received << reader.readpartial(1 << 16) until received.end_with?("END")
      rescue IOError
        # Nobody asks what has come.
      end
    end
    check = lambda do |value|
      writer.write("END")
      @draining.join
      sent = received.delete_prefix(held).delete_suffix("END")
      BYTES.start_with?(sent) && (value.nil? || sent.bytesize == value)
    end
    Wait.new(io: writer, wait: -> { write.call(writer) }, complete:, check:)
  end

  PAIRS = { "pipe" => -> { IO.pipe }, "socket" => -> { UNIXSocket.pair } }.freeze

  PAIRS.each do |name, pair|
    wait(:scheduler, :io_read, named: "readpartial of a #{name}") { reading(->(io) { io.readpartial(100) }, &pair) }
    wait(:scheduler, :io_read, named: "gets of a #{name}") { reading(->(io) { io.gets }, &pair) }
    wait(:scheduler, :io_read, named: "read of a #{name}") { reading(->(io) { io.read(6) }, &pair) }
    wait(:scheduler, :io_read, named: "eof? of a #{name}") { reading(->(io) { io.eof? && nil }, &pair) }
    wait(:scheduler, :io_wait, named: "wait_readable of a #{name}") { reading(->(io) { io.wait_readable && nil }, &pair) }
    wait(:scheduler, :io_select, named: "select of a #{name}") { reading(->(io) { IO.select([io]) && nil }, &pair) }
    wait(:scheduler, :io_write, named: "write to a #{name}") { writing(->(io) { io.write(BYTES) }, &pair) }
    wait(:scheduler, :io_read, named: "IO::Buffer#read of a #{name}") do
      buffer = IO::Buffer.new(64)
      buffer.set_string("#" * 64)
      wait = reading(->(io) { buffer.get_string(0, buffer.read(io, 0)) }, &pair)
      kept = wait.check
      # Nothing but what was read has been written to it, and nobody holds it.
      wait.check = ->(value) { kept.call(value) && !buffer.locked? && buffer.get_string(value ? value.bytesize : 0).squeeze == "#" }
      wait
    end
  end
  wait(:scheduler, :io_wait, named: "recv") { reading(->(io) { io.recv(100) }) { UNIXSocket.pair } }
  wait(:scheduler, :kernel_sleep) { Wait.new(wait: -> { sleep(0.01) && true }, complete: -> {}, check: ->(_) { true }) }
  wait(:scheduler, :block, named: "Queue#pop") do
    queue = Thread::Queue.new
    Wait.new(wait: -> { queue.pop }, complete: -> { queue << 1 }, check: ->(value) { [value, *([queue.pop] unless queue.empty?)].compact == [1] })
  end
  wait(:scheduler, :block, named: "SizedQueue#push") do
    queue = Thread::SizedQueue.new(1)
    queue << 0
    # What was pushed is there, if the push returned.
    Wait.new(wait: -> { queue.push(1) && 1 }, complete: -> { queue.pop }, check: ->(value) { value.nil? || queue.pop == 1 })
  end
  wait(:scheduler, :block, named: "Mutex#lock") do
    mutex = Mutex.new
    told = Thread::Queue.new
    Fiber.schedule { mutex.synchronize { told.pop } }
    # The fiber that was given up does not have it.
    Wait.new(wait: -> { mutex.synchronize { 1 } }, complete: -> { told << 1 }, check: ->(_) { mutex.synchronize { 1 } && !mutex.locked? })
  end
  wait(:scheduler, :block, named: "Thread#join") do
    told = Thread::Queue.new
    thread = Thread.new { told.pop }
    Wait.new(wait: -> { thread.join && 1 }, complete: -> { told << 1 }, check: ->(_) { thread.value == 1 })
  end
  wait(:scheduler, :process_wait) do
    reader, writer = keep(*IO.pipe)
    pid = @child = Process.spawn("cat", in: reader, out: File::NULL)
    reader.close
    Wait.new(wait: -> { Process.wait(pid) }, complete: -> { writer.close }, check: ->(value) { (value || Process.wait(pid)) == pid })
  end
  wait(:scheduler, :io_splice) do
    reader, writer = keep(*IO.pipe)
    file = keep(Tempfile.create)
    complete = -> { writer.write("bytes") && writer.close }
    Wait.new(io: reader, wait: -> { IO.copy_stream(reader, file) }, complete:, check: ->(_) { File.binread(file) + drain(reader) == "bytes" })
  end
  wait(:scheduler, :blocking_operation_wait) do
    file = keep(Tempfile.create)
    other = keep(File.open(file.path))
    other.flock(File::LOCK_EX)
    Wait.new(io: file, wait: -> { file.flock(File::LOCK_EX) && 1 }, complete: -> { other.close }, check: ->(_) { file.flock(File::LOCK_EX) == 0 })
  end
  wait(:scheduler, :io_wait, named: "accept") do
    server = keep(TCPServer.new("127.0.0.1", 0))
    Wait.new(io: server, wait: -> { keep(server.accept) }, check: ->(value) { (value || server.accept).close.nil? },
             complete: -> { keep(TCPSocket.new("127.0.0.1", server.local_address.ip_port)) })
  end
end
