# frozen_string_literal: true

require_relative "test_helper"

# Whatever a method is given, Ruby goes on: an exception is right, and so is an answer, and a crash is never.
class TestRandomCalls < PatientTest
  # The program of a round: calls methods of the gem's classes with objects that are anything, whose conversions answer
  # what they shouldn't, raise, or change things.
  ROUND = <<~'RUBY'
    require "openssl"
    require "socket"
    require "timeout"
    require "tmpdir"
    random = Random.new(Integer(ARGV[0]))
    pick = ->(list) { list[random.rand(list.size)] }
    $stderr.reopen("/dev/null") unless ENV["FUZZ_ERR"]
    Dir.chdir(ARGV[1])
    CONVERSIONS = %i[to_a to_ary to_s to_str to_io to_int to_i to_f to_hash to_h to_path to_proc to_sym fileno hash].freeze
    # Ends processes, makes them, or fills the disk.
    LEFT_OUT = %i[pidfd_send_signal kill signal adopt fork process_fork forked daemon fallocate forsake].freeze
    machine = UM.new
    $files = []
    file = -> { [UM.pipe, UM.socketpair(UM::AF_UNIX, pick.([UM::SOCK_STREAM, UM::SOCK_DGRAM]), 0)].each { |pair| $files.concat(pair) } }
    4.times { file.call }
    odd = lambda do |answer|
      kind = pick.([Object, Array, Hash, String, Integer.class, Struct.new(:a), IO])
      made = Class.new(kind == Class ? Object : kind) do
        CONVERSIONS.each { |name| define_method(name) { |*| answer.call } }
        define_method(:respond_to_missing?) { |*| true }
        define_method(:each) { |&block| block&.call(answer.call) }
      end
      object = kind == IO ? made.allocate : made.new
      object[1] = 2 if kind == Hash
      object.push(1, 2) if kind == Array
      object
    end
    makers = [
      -> { nil }, -> { true }, -> { false }, -> { pick.($files) }, -> { pick.($files) }, -> { pick.($files) },
      -> { pick.([-1, 10_000, 0, 1, 100, 5000, 2**31, -2**31, 2**33, 2**62, 2**64, -2**70]) }, -> { pick.([0.5, -1.0, Float::NAN, Float::INFINITY, 1r, 2i]) },
      -> { +"" }, -> { "x" * pick.([1, 100, 5000, 100_000]) }, -> { ("y" * 10_000).freeze }, -> { "\xff\0".b }, -> { "a".encode("UTF-16LE") }, -> { String.new(capacity: 10_000) },
      -> { pick.(%i[fd socket ssl timeout]) }, -> { [] }, -> { [1, "x", nil] }, -> { [pick.($files)] }, -> { list = []; list << list }, -> { {} }, -> { { size: 1, count: 2, timeout: 0.001 } },
      -> { table = {}; table[table] = table }, -> { proc { |*| 1 } }, -> { pick.([String, UM, UM::IO, Class, Kernel]) }, -> { $stdout }, -> { IO.allocate }, -> { File.open("f", "w+") }, -> { File.open("f", "w+").tap(&:close) },
      -> { IO.pipe.first }, -> { IO::Buffer.new(100) }, -> { IO::Buffer.new(10_000).slice(10, 100) }, -> { IO::Buffer.for("abc") }, -> { IO::Buffer.new(10).tap(&:free) }, -> { IO::Buffer.new(5000).locked { it } },
      -> { Fiber.new { 1 } }, -> { Fiber.current }, -> { Thread.new {}.join }, -> { Thread.current }, -> { Object.new }, -> { BasicObject.new }, -> { StandardError.new }, -> { Struct.new(:a).new(1) }, -> { 1..2 }, -> { Time.now },
      -> { machine }, -> { UM::Queue.new }, -> { UM::Mutex.new }, -> { machine.prep_timeout(0.001) }, -> { machine.io(pick.($files), :socket) }, -> { machine.register_buffers(count: 2, size: 4096) }, -> { UM::FiberScheduler.new },
      -> { pick.([UM, UM::IO, UM::Queue, UM::Mutex, UM::AsyncOp, UM::BufferPool, UM::FiberScheduler, UM::Process]).allocate }, -> { OpenSSL::SSL::SSLSocket.allocate }, -> { OpenSSL::SSL::SSLSocket.new(UNIXSocket.pair.first) },
      -> { odd.(-> { pick.([5, nil, "z", [1], {}, :a, Object.new, -1]) }) }, -> { odd.(-> { raise ArgumentError }) }, -> { odd.(-> { throw :odd, 1 }) },
      -> { odd.(-> { GC.start; machine.snooze; $files.each { |fd| machine.close_async(fd) if fd.is_a?(Integer) }; $files.clear; file.call; [1] }) },
      -> { text = +"m" * 5000; odd.(-> { text.clear; text << "n" * 9000; text }) }, -> { list = [1, 2, 3]; odd.(-> { list.clear; list }) }
    ]
    anything = -> { pick.(makers).call }
    receivers = {
      UM => -> { pick.([machine, machine, machine, UM.new, UM.allocate]) }, UM::IO => -> { pick.([machine.io(pick.($files), pick.(%i[fd socket])), UM::IO.allocate]) }, UM::Queue => -> { pick.([UM::Queue.new, UM::Queue.allocate]) },
      UM::Mutex => -> { UM::Mutex.new }, UM::AsyncOp => -> { pick.([machine.prep_timeout(0.001), UM::AsyncOp.allocate]) }, UM::BufferPool => -> { pick.([machine.register_buffers(count: 2, size: 4096), UM::BufferPool.allocate]) },
      UM::FiberScheduler => -> { pick.([UM::FiberScheduler.new, UM::FiberScheduler.allocate]) }, UM::Process => -> { pick.([UM::Process.allocate, UM::Process.spawn(machine, "true")]) }, UM::BlockingOperationThreadPool => -> { UM::BlockingOperationThreadPool.new(1) }
    }
    calls = receivers.flat_map do |owner, make|
      (owner.instance_methods(false) + owner.private_instance_methods(false) - LEFT_OUT).map { |name| [make, name] }
    end
    [*receivers.keys, UM::SSL].each do |owner|
      (owner.singleton_methods(false) + owner.singleton_class.private_instance_methods(false) - LEFT_OUT).each { |name| calls << [-> { owner }, name] }
      calls << [-> { owner }, :new] if owner.is_a?(Class)
    end
    calls.sort_by! { |_, name| [name, random.rand] }
    Integer(ARGV[2]).times do |count|
      file.call if $files.size < 8
      make, name = pick.(calls)
      begin
        receiver = make.call
        arguments = Array.new(random.rand(6)) { anything.call }
        arguments << { timeout: anything.call, size: anything.call, count: anything.call }.slice(*pick.([[:timeout], %i[size count], [:size]])) if random.rand(8).zero?
        block = pick.([nil, proc { |*| pick.([1, nil, "b"]) }, proc { |*| raise KeyError }])
        catch(:odd) { Timeout.timeout(0.02) { receiver.__send__(name, *arguments, &block) } }
      rescue Exception => e
        panic = e.class == RuntimeError && e.message.to_s[/\Auringmachine panicked.*/]
        (File.write("panic", "#{name}: #{panic}") && exit!(43)) if panic
      end
      GC.start if (count % 50).zero?
      (count % 200).zero? && (machine = (UM.new rescue machine))
    end
    exit!(42)
  RUBY

  CALLS = 300

  # A round in a process of its own, which is ended if it takes long: a call may wait for ever.
  def round(seed)
    Dir.mktmpdir do |folder|
      command = [RbConfig.ruby, "-W0", *$LOAD_PATH.flat_map { |path| ["-I", path] }, "-ruringmachine", "-e", ROUND, seed.to_s, folder, CALLS.to_s]
      pid = Process.spawn(*command, in: "/dev/null", %i[out err] => "/dev/null", pgroup: true)
      ended = Process.detach(pid)
      ended.join(20) || (waits = true) && Process.kill(:KILL, -pid)
      [ended.value, waits]
    end
  end

  Integer(ENV.fetch("UM_TEST_ROUNDS", 8)).times do |seed|
    define_method("test_no_call_ends_ruby_#{seed}") do
      status, waits = round(seed)
      assert_equal [nil, 42], [status.termsig, status.exitstatus], "seed #{seed}" unless waits
    end
  end
end
