# frozen_string_literal: true

require_relative "test_helper"

# A scheduler in each Ractor, and no trace of the gem in those without one. Also threads that Ruby moves from one native
# thread to another, as those of Ractors are.
class TestRactors < PatientTest
  # What Ractors need to say what they have done.
  SETUP = <<~RUBY
    require "socket"
    require "tmpdir"
    require "zlib"
    def value(ractor) = ractor.respond_to?(:value) ? ractor.value : ractor.take
    # Does something in a fiber of a scheduler; returns what that returns, or what it fails by.
    def scheduled(scheduler = UM::FiberScheduler.new)
      result = nil
      Fiber.set_scheduler(scheduler)
      Fiber.schedule do
        result = yield scheduler.machine
      rescue Exception => e
        result = [e.class, e.message, e.backtrace.first]
      end
      Fiber.set_scheduler(nil)
      result
    end
  RUBY

  # Ruby 3.4's own thread of a Ractor uses the Ractor after a program's end has freed it (thread_pthread_mn.c, co_start),
  # which overwriting what is freed brings to light.
  OF_RUBY = RUBY_VERSION < "4" ? { "MALLOC_PERTURB_" => nil } : {}

  # Runs code in a Ractor of a process of its own; asserts what it returns.
  def assert_in_ractor(expected, code, before: "", env: {}, **)
    output, status = ruby(<<~RUBY, env: OF_RUBY.merge(env), **)
      #{SETUP}
      #{before}
      p value(Ractor.new { #{code} })
    RUBY
    assert_equal ["#{expected.inspect}\n", true], [output, status.success?]
  end

  def test_a_ractor_without_a_scheduler
    assert_in_ractor ["read", "x\n", true, 3, "text", "localhost"], <<~'RUBY'
      reader, writer = IO.pipe
      writer << "read"
      writer.close
      read = reader.read
      reader.close
      server = TCPServer.new("127.0.0.1", 0)
      TCPSocket.new("localhost", server.local_address.ip_port).close
      server.close
      status = Process.wait2(spawn("exit 3"))[1].exitstatus
      Dir.mktmpdir do |folder|
        file = File.open(File.join(folder, "file"), "w+")
        file.flock(File::LOCK_EX)
        file << "text"
        file.fsync
        file.truncate(4)
        a, b = UNIXSocket.pair
        file.rewind
        IO.copy_stream(file, a)
        a.close
        [read, `echo x`, system("true"), status, b.read, Socket.getnameinfo(["AF_INET", 80, "127.0.0.1", "127.0.0.1"]).first]
      end
    RUBY
  end

  def test_sockets
    assert_in_ractor ["hello there", true, IOError], <<~'RUBY'
      scheduled do |machine|
        server = TCPServer.new("127.0.0.1", 0)
        Fiber.schedule { server.accept.then { |peer| peer.write("hello #{peer.gets}") && peer.close } }
        socket = TCPSocket.new("localhost", server.local_address.ip_port)
        socket << "there\n"
        told = socket.read.chomp
        reader, = IO.pipe
        closed = nil
        Fiber.schedule { reader.read rescue closed = $!.class }
        reader.close
        sleep 0.001 until closed
        [told, machine.resolve("localhost").any?, closed]
      end
    RUBY
  end

  def test_names_of_addresses
    assert_in_ractor ["localhost", ["1.2.3.4"]], <<~'RUBY'
      scheduled do |machine|
        server = UDPSocket.new.tap { |socket| socket.bind("127.0.0.1", 0) }
        Fiber.schedule do
          question, peer = server.recvfrom(512)
          question.setbyte(2, question.getbyte(2) | 0x80)
          question.setbyte(7, 1)
          server.send(question + "\xC0\x0C\0\1\0\1\0\0\0\x3C\0\4\1\2\3\4".b, 0, peer[3], peer[1])
        end
        resolver = UM::DNSResolver.new(machine, nameservers: [["127.0.0.1", server.local_address.ip_port]])
        [Socket.getnameinfo(["AF_INET", 80, "127.0.0.1", "127.0.0.1"]).first, resolver.resolve("a.test", :A)]
      end
    RUBY
  end

  def test_files
    assert_in_ractor ["a", 1, "text", true, "fifo", 100_000], <<~'RUBY'
      scheduled do |machine|
        Dir.mktmpdir do |folder|
          path = File.join(folder, "file")
          file = File.open(path, "w+")
          file.flock(File::LOCK_EX)
          file << "abc"
          file.fsync
          file.fdatasync
          file.truncate(1)
          file.close
          a, b = UNIXSocket.pair
          File.write("#{path}.2", "text")
          IO.copy_stream(path, a)
          a.close
          seen = nil
          watching = machine.spin { machine.file_watch(folder, UM::IN_CREATE) { |event| break seen = event } }
          machine.snooze
          File.mkfifo("#{path}.fifo")
          machine.join(watching)
          read = nil
          Fiber.schedule { read = File.read("#{path}.fifo") }
          File.write("#{path}.fifo", "fifo")
          sleep 0.001 until read
          [b.read, File.stat(path).size, File.read("#{path}.2"), seen[:fn] == "#{path}.fifo", read, Zlib.inflate(Zlib.deflate("a" * 100_000)).size]
        end
      end
    RUBY
  end

  def test_processes
    assert_in_ractor ["x\n", "y\n", 3, 4, true], <<~'RUBY'
      scheduled do
        ended = false
        process = UM::Process.spawn("exit 4").on_exit { ended = true }
        status = process.wait.exitstatus
        sleep 0.001 until ended
        [`echo x`, IO.popen("echo y", &:read), Process.wait2(spawn("exit 3"))[1].exitstatus, status, ended]
      end
    RUBY
  end

  def test_fork
    skip "Ruby lets only the main Ractor fork" if RUBY_VERSION >= "4"
    assert_in_ractor 3, <<~'RUBY'
      scheduled do
        UM.after_fork { exit!(3) }
        Process.wait2(fork { exit!(0) })[1].exitstatus
      end
    RUBY
  end

  def test_fibers_and_threads
    assert_in_ractor [:late, 1, 5, 5, 7, true], <<~'RUBY'
      require "timeout"
      scheduled do |machine|
        late = begin
          Timeout.timeout(0.01) { sleep }
        rescue Timeout::Error
          :late
        end
        queue = Thread::Queue.new
        Fiber.schedule { queue << 1 }
        answering = Module.new do
          def setup = nil
          def get = 5
        end
        actors = [machine.spin_actor(answering), machine.spin_thread_actor(answering)]
        answers = actors.map { |actor| actor.call(UM::Queue.new, :get) }
        actors.each(&:stop)
        ended = machine.spin { machine.sleep }
        machine.snooze
        machine.schedule(ended, UM::TERMINATE_EXCEPTION)
        machine.join(ended)
        [late, queue.pop, *answers, UM::BlockingOperationThreadPool.new(1).process(machine, -> { 7 }), ended.done?]
      end
    RUBY
  end

  def test_tls
    before = <<~RUBY
      require "openssl"
      def pem
        key = OpenSSL::PKey::RSA.new(2048)
        certificate = OpenSSL::X509::Certificate.new
        certificate.subject = certificate.issuer = OpenSSL::X509::Name.parse("/CN=localhost")
        certificate.public_key = key.public_key
        certificate.not_before = Time.now - 60
        certificate.not_after = Time.now + 3600
        certificate.sign(key, "SHA256")
        [key.to_pem, certificate.to_pem]
      end
      PEM = Ractor.make_shareable(pem)
      UM::SSL.accelerate_all
    RUBY
    assert_in_ractor ["encrypted", true], <<~'RUBY', before:
      scheduled do
        context = OpenSSL::SSL::SSLContext.new
        context.key = OpenSSL::PKey::RSA.new(PEM[0])
        context.cert = OpenSSL::X509::Certificate.new(PEM[1])
        a, b = UNIXSocket.pair
        server = OpenSSL::SSL::SSLSocket.new(a, context)
        client = OpenSSL::SSL::SSLSocket.new(b, OpenSSL::SSL::SSLContext.new)
        Fiber.schedule { server.accept && server.write("encrypted") && server.close }
        client.connect
        [client.read, UM::SSL.accelerated?(client)]
      end
    RUBY
  end

  # Many short waits: a thread that may continue anywhere does.
  SLEEPS = <<~'RUBY'
    def sleeps
      count = 0
      Fiber.set_scheduler(UM::FiberScheduler.new)
      5.times do
        Fiber.schedule do
          reader, writer = IO.pipe
          20.times do
            sleep 0.001
            writer << "x"
            reader.readpartial(1)
            Thread.pass
            count += 1
          end
        end
      end
      Fiber.set_scheduler(nil)
      count
    end
  RUBY

  # One after the other on Ruby 3.4, whose pool of fiber stacks is not made for several Ractors at a time: a plain program
  # of fibers that end in four of them crashes most of the time (cont.c, fiber_pool_stack_release).
  def test_several_ractors
    output, status = ruby(<<~RUBY, env: OF_RUBY)
      #{SETUP}
      #{SLEEPS}
      ractors = Array.new(4) { Ractor.new { sleeps }.then { |ractor| RUBY_VERSION < "4" ? value(ractor) : ractor } }
      p ractors.map { |ractor| ractor.is_a?(Ractor) ? value(ractor) : ractor }
    RUBY
    assert_equal ["[100, 100, 100, 100]\n", true], [output, status.success?]
  end

  # Each write tries to lock what the program has locked, which may have to make an object, and so wait until the other
  # Ractors let the collector run.
  def test_ractors_that_lock_buffers_do_not_wait_for_each_other
    skip "Ruby's own Ractors are not fit for it" if RUBY_VERSION < "4"
    output, status = ruby(<<~RUBY)
      #{SETUP}
      ractors = Array.new(3) do
        Ractor.new do
          machine = UM.new
          sink = File.open("/dev/null", "w")
          buffer = IO::Buffer.new(10_000)
          buffer.locked { 5000.times.sum { machine.write(sink.fileno, buffer) } }
        end
      end
      p ractors.map { |ractor| value(ractor) }
    RUBY
    assert_equal ["[50000000, 50000000, 50000000]\n", true], [output, status.success?]
  end

  def test_threads_that_move_between_native_threads
    output, status = ruby(<<~RUBY, env: { **OF_RUBY, "RUBY_MN_THREADS" => "1" })
      #{SLEEPS}
      p Array.new(6) { Thread.new { sleeps } }.map(&:value)
      # A machine of one's own, taken into use late.
      threads = Array.new(6) do
        Thread.new do
          5.times { sleep 0.001 }
          machine = UM.new
          20.times { machine.sleep(0.001) && Thread.pass }
          Thread.new { machine.wakeup }.join
          machine.sleep(0.001)
          :slept
        end
      end
      p threads.map(&:value).uniq
    RUBY
    assert_equal ["[100, 100, 100, 100, 100, 100]\n[:slept]\n", true], [output, status.success?]
  end
end
