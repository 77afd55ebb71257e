# frozen_string_literal: true

require_relative "../test_helper"

# Names resolve as they do without a scheduler, and look-ups stall nobody.
class TestAddressResolve < SchedulerTest
  def test_results_equal_those_without_a_scheduler
    ["localhost", Socket.gethostname, "127.0.0.1", "::1", "ip6-localhost"].each do |host|
      plain = addresses(host)
      assert_equal plain, in_fiber { addresses(host) }, host
    end
  end

  def test_an_unknown_name_raises_the_resolvers_error
    in_fiber { assert_raises(Socket::ResolutionError) { Addrinfo.getaddrinfo("does-not-exist.invalid", 80) } }
  end

  def test_a_name_with_a_null_byte_is_refused
    in_fiber { |scheduler| assert_raises(ArgumentError) { scheduler.address_resolve("local\0host") } }
    in_fiber { |scheduler| assert_raises(TypeError) { scheduler.address_resolve(1) } }
  end

  # A name server that never answers, in a file system of the command's own.
  SILENT_SERVER = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"'].freeze

  def test_names_that_no_server_answers_for_hold_up_no_others
    server = UDPSocket.new.tap { |socket| socket.bind("127.0.0.53", 53) }
    Tempfile.create("resolv.conf") do |file|
      file.write("nameserver 127.0.0.53\noptions timeout:20 attempts:1\n")
      file.flush
      command = [*SILENT_SERVER, file.path]
      skip "no mounts" unless system(*command, "true", err: File::NULL)
      output, = ruby(<<~RUBY, before: command)
        require "socket"
        Fiber.set_scheduler(UM::FiberScheduler.new)
        begun = Process.clock_gettime(Process::CLOCK_MONOTONIC)
        40.times { |number| Fiber.schedule { Addrinfo.getaddrinfo("slow\#{number}.test", 80) } }
        Fiber.schedule do
          puts Addrinfo.getaddrinfo("localhost", 80).any?, Socket.getnameinfo(["AF_INET", 80, "127.0.0.1", "127.0.0.1"]).first
          # No silent one has been given up yet.
          puts Process.clock_gettime(Process::CLOCK_MONOTONIC) - begun < 20
          $stdout.flush
          exit!
        end
      RUBY
      assert_equal "true\nlocalhost\ntrue\n", output
    end
  rescue Errno::EACCES, Errno::EADDRINUSE
    skip "port 53 is not to be had"
  ensure
    server&.close
  end

  private

  def addresses(host)
    Addrinfo.getaddrinfo(host, 80, nil, :STREAM).map { |info| [info.ip_address, info.ip_port, info.afamily] }
  rescue Socket::ResolutionError => e
    e.error_code
  end
end
