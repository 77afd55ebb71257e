# frozen_string_literal: true

require_relative "test_helper"
require_relative "places"
require "json"

# Random programs (test/model) do in fibers what they do in threads wherever they run.
class TestPlaces < PatientTest
  SECONDS = Float(ENV.fetch("UM_PLACE_SECONDS", 3))
  SEED = Integer(ENV.fetch("UM_MODEL_SEED", Random.rand(1_000_000)))
  FOLDERS = $LOAD_PATH.flat_map { |folder| ["-I", folder] }.freeze

  # Starts Ruby in a place; returns what it says, and its status. Gives its process to a block meanwhile.
  def run_in(place, *arguments)
    reader, writer = IO.pipe
    environment = { "TMPDIR" => place.folder, **place.environment }
    pid = spawn(environment, *place.command, RbConfig.ruby, "-W:no-experimental", *FOLDERS, *arguments, %i[out err] => writer)
    writer.close
    ended = Process.detach(pid)
    yield ended if block_given?
    [reader.read, ended.value]
  ensure
    reader.close
  end

  def play(place, &)
    said, status = run_in(place, File.join(__dir__, "model/fuzz.rb"), (SECONDS / 60).to_s, SEED.to_s, &)
    assert_predicate status, :success?, "SEED=#{SEED}: #{said}"
    assert_match(/^[1-9]\d* programs$/, said)
  end

  Places.all.each do |name, place|
    define_method("test_#{name.gsub(/\W+/, "_")}") do
      skip "this user may not make it" unless place
      play(place)
    end
  end

  # The programs and their children, at any moment. Not in threads, where Ruby takes the signal for an answer (io.c,
  # rb_io_sysread).
  def test_stopped_and_continued
    random = Random.new(SEED)
    play(Places::Place.new(environment: { "UM_MODEL_MODES" => "fibers,both" })) do |ended|
      while ended.alive?
        pids = family(ended.pid)
        signal(:STOP, pids)
        sleep(random.rand * 0.01)
        signal(:CONT, pids)
        sleep(random.rand * 0.03)
      end
    end
  end

  def signal(name, pids)
    pids.each do |pid|
      Process.kill(name, pid)
    rescue Errno::ESRCH
      # It has ended.
    end
  end

  def family(pid)
    children = File.read("/proc/#{pid}/task/#{pid}/children").split.map(&:to_i)
    [pid, *children.flat_map { |child| family(child) }]
  rescue Errno::ENOENT, Errno::ESRCH
    []
  end

  # What writes to a full disk: what it is told, and what is there.
  FULL = <<~RUBY
    %w[json stringio tempfile uringmachine].each { |name| require name }
    BYTES = Random.new(1).bytes(400_000).freeze
    WAYS = {
      write: ->(file) { (file.sync = true) && file.write(BYTES) },
      pieces: ->(file) { (file.sync = true) && file.write(*BYTES.scan(/.{1,1000}/mn)) },
      buffered: ->(file) { BYTES.scan(/.{1,1000}/mn) { |piece| file.print(piece) } && file.flush },
      closed: ->(file) { file.print(BYTES[0, 262_144]) && file.flush && file.print(BYTES[262_144, 1000]) && file.close },
      syswrite: ->(file) { rest = BYTES.dup; rest.slice!(0, file.syswrite(rest)) until rest.empty? },
      pwrite: ->(file) { at = 0; at += file.pwrite(BYTES.byteslice(at..), at) while at < BYTES.size },
      copied: ->(file) { IO.copy_stream(StringIO.new(BYTES), file) },
      from_a_pipe: ->(file) { IO.popen(["cat", ARGV[2]]) { |cat| IO.copy_stream(cat, file) } },
      from_a_file: ->(file) { IO.copy_stream(ARGV[2], file) }
    }.freeze
    play = lambda do |way|
      path = File.join(ARGV[0], "file")
      raised = begin
        file = File.open(path, "wb")
        WAYS.fetch(way).call(file)
        "nothing"
      rescue SystemCallError => e
        e.class.name
      end
      file.close rescue raised += ", and at the end"
      held = File.binread(path)
      File.unlink(path)
      File.binwrite(path, "room again")
      [way, raised, held.bytesize, BYTES.start_with?(held), File.read(path)]
    ensure
      File.unlink(path)
    end
    seen = []
    body = -> { WAYS.each_key { |way| seen << play.call(way) } }
    if ARGV[1] == "fibers"
      Fiber.set_scheduler(UM::FiberScheduler.new)
      ticks = 0
      Fiber.schedule(&body)
      Fiber.scheduler.run
    else
      body.call
    end
    puts JSON.generate(seen)
  RUBY

  def test_a_full_disk
    Dir.mktmpdir do |folder|
      skip "this user may not mount one" unless (disk = Places.small_disk(folder, "256k"))
      Tempfile.create do |source|
        source.binmode
        source.write(Random.new(1).bytes(400_000))
        source.flush
        threads, fibers = %w[threads fibers].map { |mode| run_in(disk, "-e", FULL, folder, mode, source.path).first }
        expected = JSON.parse(threads)
        assert_equal expected, JSON.parse(fibers)
        assert_equal [[262_144, true, "room again"]], expected.map { |seen| seen.last(3) }.uniq
        # Whose buffer is written at the close is told of it there, or not at all (io.c, rb_io_close).
        assert_equal %w[closed], expected.filter_map { |way, raised,| way unless raised.start_with?("Errno::ENOSPC") }
      end
    end
  end
end
