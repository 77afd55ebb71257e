# frozen_string_literal: true

require_relative "test_helper"
require "json"

# The seccomp profile of docs/guides/containers.md, as a container's runtime applies it.
class TestContainers < PatientTest
  PROFILE = File.expand_path("../docs/guides/seccomp.json", __dir__)

  # A profile as a program of the kernel's filter (seccomp(2); struct seccomp_data; OCI's runtime-spec, config-linux.md).
  class Filter
    LOAD, AND, RETURN = 0x20, 0x54, 0x06
    EQUAL, GREATER, AT_LEAST = 0x15, 0x25, 0x35
    ALLOW = 0x7fff0000
    ERRNO = 0x50000
    NUMBER, ARGUMENTS = 0, 16

    def initialize(profile, numbers)
      @profile = profile
      @numbers = numbers
    end

    # The rules of one call are tried in their order.
    def to_a
      rules = @profile.fetch("syscalls").flat_map { |rule| rule.fetch("names").filter_map { |name| @numbers[name]&.then { |number| [number, rule] } } }
      steps = rules.flat_map { |number, rule| only_for(number, [*conditions(rule), answer(rule)]) }
      [*steps, [RETURN, 0, 0, ERRNO | @profile.fetch("defaultErrnoRet")]]
    end

    private

    def only_for(number, steps) = [[LOAD, 0, 0, NUMBER], [EQUAL, 0, steps.size, number], *steps]

    def answer(rule) = [RETURN, 0, 0, rule.fetch("action") == "SCMP_ACT_ALLOW" ? ALLOW : ERRNO | rule.fetch("errnoRet")]

    # What jumps over the answer if an argument is another. A profile of ours has one condition a rule, of 32 bits.
    def conditions(rule)
      argument = rule["args"]&.first or return []
      value = argument.fetch("value")
      [[LOAD, 0, 0, ARGUMENTS + 8 * argument.fetch("index")], *{
        "SCMP_CMP_EQ" => [[EQUAL, 0, 1, value]], "SCMP_CMP_GT" => [[GREATER, 0, 1, value]], "SCMP_CMP_LT" => [[AT_LEAST, 1, 0, value]],
        "SCMP_CMP_MASKED_EQ" => [[AND, 0, 0, value], [EQUAL, 0, 1, argument["valueTwo"]]]
      }.fetch(argument.fetch("op"))]
    end
  end

  # The system calls of this processor by name.
  NUMBERS = `echo '#include <sys/syscall.h>' | cc -E -dM -`.scan(/^#define __NR_(\w+) (\d+)$/).to_h { |name, number| [name, Integer(number)] }.freeze

  # Applies a filter, and runs Ruby under it.
  APPLY = <<~RUBY
    prctl, seccomp = Integer(ARGV.shift), Integer(ARGV.shift)
    steps = ARGV.shift.unpack1("m")
    program = [steps.size / 8, steps].pack("Sx6p")
    syscall(prctl, 38, 1, 0, 0, 0)
    syscall(seccomp, 1, 0, [program].pack("p").unpack1("J"))
    exec(*ARGV)
  RUBY

  def under(profile, code)
    steps = Filter.new(profile, NUMBERS).to_a.map { |step| step.pack("SCCL") }.join
    ruby(APPLY, *NUMBERS.values_at("prctl", "seccomp").map(&:to_s), [steps].pack("m0"), *ruby_command(code))
  end

  def profile = JSON.parse(File.read(PROFILE))

  WORK = <<~'RUBY'
    require "socket"
    require "tempfile"
    Fiber.set_scheduler(UM::FiberScheduler.new)
    Fiber.schedule do
      server = TCPServer.new("127.0.0.1", 0)
      Fiber.schedule { server.accept.then { |socket| socket.write("by a socket") && socket.close } }
      puts TCPSocket.new("127.0.0.1", server.local_address.ip_port).read
      puts `echo by a child`
      Tempfile.create { |file| file.write("by a file") && file.rewind && puts(file.read) }
      Thread.new { puts "by a thread" }.join
      UM::Process.fork { puts "by a fork" }.wait
    end
    Fiber.scheduler.run
    puts UM::Doctor.new.works?
  RUBY

  def test_the_scheduler_works_under_it
    output, status = under(profile, WORK)
    assert_equal ["by a socket", "by a child", "by a file", "by a thread", "by a fork", "true"], output.lines(chomp: true)
    assert_predicate status, :success?
  end

  def test_it_refuses_what_a_container_is_to_be_refused
    refused = %w[mount umount2 pivot_root unshare setns bpf ptrace init_module kexec_load keyctl reboot clock_settime perf_event_open]
    calls = NUMBERS.slice(*refused).merge("vsock" => [NUMBERS["socket"], 40, 1], "cryptography" => [NUMBERS["socket"], 38, 5],
                                          "internet" => [NUMBERS["socket"], 2, 1], "namespace" => [NUMBERS["clone"], 0x10000000, 0])
    output, = under(profile, <<~RUBY)
      #{calls}.each do |name, call|
        syscall(*call, 0, 0, 0)
      rescue Errno::EPERM
        puts name
      end
    RUBY
    assert_equal [*refused, "namespace", "vsock", "cryptography"].sort, output.lines(chomp: true).sort
  end

  # As the profiles of Docker and others are.
  def test_without_the_three_calls_the_doctor_names_the_cause
    theirs = profile
    theirs["syscalls"].first["names"].reject! { |name| name.start_with?("io_uring_") }
    output, = under(theirs, "puts UM.supported?, UM::Doctor.new")
    assert_match(/\Afalse$.*FAILURE.*seccomp/m, output)
  end
end
