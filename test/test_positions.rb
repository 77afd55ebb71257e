# frozen_string_literal: true

require_relative "test_helper"
require "zlib"

# Where a file is, and what it holds, after writes that do not fit and writes and reads that wait together: as in plain Ruby.
class TestPositions < SchedulerTest
  LIMIT = 300_000
  BYTES = Random.new(1).bytes(1_500_000).freeze
  # What is written with a limit of LIMIT bytes for files, in a process of its own.
  WRITES = {
    binwrite: "File.binwrite(path, data)", write: "File.open(path, 'wb') { |f| f.write(data) }", in_parts: "File.open(path, 'wb') { |f| 15.times { |i| f.write(data[i * 100_000, 100_000]) } }",
    buffered: "File.open(path, 'wb') { |f| data.each_byte.first(400_000).each_slice(1000) { |part| f.write(part.pack('C*')) } }",
    syswrite: "File.open(path, 'wb') { |f| 2.times { |i| log << (f.syswrite(data[i * 700_000, 700_000]) rescue $!.class) << f.sysseek(0, 1) } }",
    append: "File.binwrite(path, 'head'); File.open(path, 'ab') { |f| f.sync = true; f.write(data) }",
    at_an_offset: "File.binwrite(path, data[0, 1000], 50)", seeked: "File.open(path, 'wb') { |f| f.seek(250_000); f.sync = true; f.write(data[0, 80_000]) }",
    synchronous: "File.open(path, File::CREAT | File::WRONLY | File::SYNC) { |f| f.binmode; log << f.syswrite(data) << f.sysseek(0, 1); f.syswrite(data) }",
    buffer: "File.open(path, 'wb') { |f| IO::Buffer.for(data) { |b| log << b.write(f, 0) << f.sysseek(0, 1); b.write(f, 0) } }",
    gzip: "Zlib::GzipWriter.open(path, 0) { |z| z.mtime = 1; z.write(data) }",
    stream: "File.open(path, 'wb') { |f| IO.copy_stream(StringIO.new(data), f) }"
  }.freeze

  WRITES.each do |name, code|
    define_method(:"test_what_does_not_fit_is_an_error_and_what_did_stays_#{name}") do
      plain, under = [false, true].map { |scheduled| limited(code, scheduled) }

      assert_equal plain, under
    end
  end

  # The log, the error, and what the file holds.
  def limited(code, scheduled)
    Dir.mktmpdir do |folder|
      output, = ruby(<<~RUBY, File.join(folder, "file"))
        require "zlib"; require "stringio"; require "digest"
        Warning[:experimental] = false
        trap(:XFSZ, "IGNORE")
        Process.setrlimit(:FSIZE, #{LIMIT})
        data = Random.new(1).bytes(#{BYTES.size}).freeze
        path, log = ARGV.first, []
        work = -> { log << begin; #{code}; rescue SystemCallError, Zlib::Error => e; e.class; end }
        #{scheduled ? "Fiber.set_scheduler(UM::FiberScheduler.new); Fiber.schedule(&work); Fiber.set_scheduler(nil)" : "work.call"}
        print log.inspect, File.size(path), Digest::SHA256.file(path)
      RUBY
      output
    end
  end

  def test_a_full_device_is_an_error
    results = in_fiber do
      [->(f) { f.syswrite("x") }, ->(f) { f.write("x" * 100_000) }, ->(f) { f.write("x") && f.flush }].map do |write|
        file = File.open("/dev/full", "w")
        write.call(file)
      rescue SystemCallError => e
        e.class
      ensure
        begin
          file.close
        rescue Errno::ENOSPC
          # What the buffer still had.
        end
      end
    end

    assert_equal [Errno::ENOSPC] * 3, results
  end

  # Synchronous writes wait, so that the fibers' overlap.
  def test_writes_of_several_fibers_to_one_file_follow_each_other
    [0, File::SYNC, File::APPEND].each do |flags|
      Dir.mktmpdir do |folder|
        path = File.join(folder, "file")
        File.open(path, File::CREAT | File::RDWR | flags) do |file|
          scheduled { %w[a b c d].each { |letter| Fiber.schedule { 5.times { assert_equal 2_000_000, file.syswrite(letter * 2_000_000) } } } }
          assert_equal 40_000_000, file.sysseek(0, IO::SEEK_CUR)
        end
        written = File.binread(path)
        whole = written.size / 2_000_000
        assert_equal [20, 0], [whole, whole.times.count { |place| written[place * 2_000_000, 2_000_000].squeeze.size != 1 }], flags
      end
    end
  end

  # What is not in the page cache is waited for.
  def test_reads_of_several_fibers_from_one_file_follow_each_other
    Dir.mktmpdir(nil, "/var/tmp") do |folder|
      path = File.join(folder, "file")
      File.binwrite(path, BYTES)
      File.open(path, "rb") do |file|
        file.fsync
        file.advise(:dontneed)
        parts = []
        scheduled { 4.times { Fiber.schedule { loop { parts << file.sysread(10_000) } rescue EOFError } } }
        assert_equal BYTES.size, parts.sum(&:size)
        assert_equal BYTES.size, file.sysseek(0, IO::SEEK_CUR)
        # Each byte once: the parts follow each other without a gap.
        assert_equal BYTES, parts.sort_by { |part| BYTES.index(part) }.join
      end
    end
  end

  def test_positions_are_for_what_has_some
    reads = { pipe: -> { IO.pipe }, socket: -> { UNIXSocket.pair }, messages: -> { UNIXSocket.pair(:DGRAM) } }
    reads.each do |kind, pair|
      in_fiber do |scheduler|
        reader, writer = pair.call
        writer.syswrite("hello")
        assert_raises(Errno::ESPIPE, kind.to_s) { reader.pread(3, 0) }
        assert_equal "hello", reader.readpartial(10)
        if scheduler.respond_to?(:io_pwrite)
          assert_raises(Errno::ESPIPE, kind.to_s) { writer.pwrite("x", 0) }
          assert_equal :wait_readable, reader.read_nonblock(1, exception: false)
        end
      end
    end
  end
end
