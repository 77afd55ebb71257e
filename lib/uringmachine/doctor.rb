# frozen_string_literal: true

class UringMachine
  # Finds out whether io_uring can be had in this process, and how well: the kernel, the limits, the features. Each finding says
  # what it means and what can be done. `uringmachine doctor` prints them.
  class Doctor
    # One finding: its name; `:ok`, `:no` (something is done another way), `:warning` (a limit that a large program meets) or
    # `:failure` (nothing works); what was found; and what can be done about it, if anything.
    Finding = Struct.new(:name, :status, :found, :advice)
    private_constant :Finding

    # The features of newer kernels, each with the first that has it (nil: all that are supported) and what is done without.
    FEATURES = {
      defer_taskrun: ["6.1", "completions interrupt the thread"],
      no_sqarray: ["6.6", "entries are submitted through an index"],
      registered_ring: ["5.18", "each call of the kernel looks the ring up"],
      waitid: ["6.7", "a thread waits for each child"],
      read_multishot: ["6.7", "loops of reads of pipes and terminals ask for each read"],
      incremental_buffers: ["6.12", "a provided buffer is for one receive, however short"],
      ftruncate: ["6.9", "files are truncated on a native thread"],
      send_zc: ["6.0", "send_zc copies what it sends"],
      nowait: [nil, "reads of what is in the page cache go through the ring"],
      dontwait: [nil, "receives and sends are not tried before they are submitted"]
    }.freeze

    # @return [Array<Struct>] what was found, looked up at the first call: each has a name, a status, what was found, and an advice
    # @example
    #   UM::Doctor.new.findings.map(&:name)
    def findings
      @findings ||= [kernel, ruby, sysctl, seccomp, ring, *work, *features, files, locked_memory, mappings].compact
    end

    # @return [Boolean] whether io_uring can be had
    # @example
    #   UM::Doctor.new.works? #=> true
    def works? = findings.none? { |finding| finding.status == :failure }

    # @return [Hash{Symbol => Object}] whether it works, the version, and the findings
    # @example
    #   UM::Doctor.new.to_h[:works] #=> true
    def to_h = { works: works?, version: VERSION, findings: findings.map(&:to_h) }

    # @return [String] the same as JSON
    # @example
    #   puts UM::Doctor.new.to_json
    def to_json(*)
      require "json"
      JSON.generate(to_h, *)
    end

    # @return [String] the same for people
    # @example
    #   puts UM::Doctor.new
    def to_s
      width = findings.map { |finding| finding.name.size }.max
      lines = findings.flat_map do |finding|
        head = format("%-8s %-#{width}s  %s", SAID.fetch(finding.status), finding.name, finding.found)
        [head, *finding.advice&.then { |advice| "#{" " * (width + 11)}#{advice}" }]
      end
      [*lines, works? ? "uringmachine #{VERSION} works here." : "uringmachine #{VERSION} does not work here."].join("\n")
    end

    private

    SAID = { ok: "ok", no: "no", warning: "warning", failure: "FAILURE" }.freeze
    # The first kernel that is supported.
    OLDEST = [6, 1].freeze
    # Descriptors, mappings and bytes below which a program of many connections meets its limit.
    FEW_FILES = 4096
    FEW_MAPPINGS = 65_530
    LITTLE_MEMORY = 1 << 20
    # The number of CAP_IPC_LOCK among the capabilities (capabilities(7)).
    IPC_LOCK = 14
    private_constant :SAID, :OLDEST, :FEW_FILES, :FEW_MAPPINGS, :LITTLE_MEMORY, :IPC_LOCK

    def kernel
      release = read("/proc/sys/kernel/osrelease") || "unknown"
      return Finding.new("kernel", :ok, "Linux #{release}") if since?(*OLDEST)

      Finding.new("kernel", :failure, "Linux #{release}", "run on Linux #{OLDEST.join(".")} or newer")
    end

    def ruby = Finding.new("Ruby", :ok, "#{RUBY_DESCRIPTION}, scheduler interface #{FiberScheduler.interface_version}")

    def sysctl
      case value = read("/proc/sys/kernel/io_uring_disabled")
      when nil then Finding.new("kernel.io_uring_disabled", :ok, "not known to this kernel: io_uring is allowed")
      when "0" then Finding.new("kernel.io_uring_disabled", :ok, "0: io_uring is allowed")
      else
        meaning = value == "1" ? "allowed to CAP_SYS_ADMIN and the group kernel.io_uring_group" : "allowed to nobody"
        Finding.new("kernel.io_uring_disabled", UringMachine.supported? ? :ok : :warning, "#{value}: #{meaning}", "sysctl -w kernel.io_uring_disabled=0")
      end
    end

    # proc(5): Seccomp.
    def seccomp
      mode = status("Seccomp")
      found = { "0" => "none", "1" => "strict", "2" => "#{status("Seccomp_filters") || "some"} filters" }.fetch(mode, "unknown")
      return Finding.new("seccomp", :ok, found) if mode == "0" || UringMachine.supported?

      Finding.new("seccomp", :warning, found, "a filter may refuse io_uring_setup, io_uring_enter and io_uring_register: allow them in its profile")
    end

    # Docker's profile, say, refuses the first; others let that pass and refuse what comes after.
    def ring
      reason = UringMachine.unsupported_reason
      return Finding.new("io_uring", :failure, "refused", reason) if reason

      Finding.new("io_uring", :ok, "a ring can be made")
    end

    # Both ways to use it, each with one message through a pipe.
    def work
      return [] unless UringMachine.supported?

      [attempt("the machine") { through_machine }, attempt("the scheduler") { through_scheduler }]
    end

    def attempt(name)
      result = Thread.new do
        Thread.current.report_on_exception = false
        yield
      end.value
      return Finding.new(name, :ok, "moves bytes through a pipe") if result == "x"

      Finding.new(name, :failure, "got #{result.inspect} from a pipe, not \"x\"", "please report this")
    rescue StandardError => e
      Finding.new(name, :failure, "#{e.class}: #{e.message}", "see seccomp above, and strace")
    end

    def through_machine
      machine = UringMachine.new(size: 16)
      reader, writer = UringMachine.pipe
      fiber = machine.spin { machine.read(reader, buffer = +"", 1) && buffer }
      machine.snooze
      machine.write(writer, "x")
      machine.join(fiber)
    ensure
      [reader, writer].compact.each { |fd| machine.close(fd) }
    end

    def through_scheduler
      got = nil
      Fiber.set_scheduler(FiberScheduler.new(UringMachine.new(size: 16)))
      ::IO.pipe do |reader, writer|
        Fiber.schedule { got = reader.readpartial(1) }
        Fiber.schedule { writer.write("x") }
        Fiber.scheduler.run
      end
      got
    end

    def features
      return [] unless UringMachine.supported?

      hidden = ENV.fetch("UM_MASK", "").split(",").map(&:strip)
      UringMachine.new(size: 16).features.map { |name, usable| feature(name, usable, hidden.include?(name.to_s)) }
    end

    def feature(name, usable, hidden)
      since, without = FEATURES.fetch(name)
      return Finding.new(name.to_s, :ok, "yes") if usable
      return Finding.new(name.to_s, :no, "hidden by UM_MASK: #{without}", "take it out of UM_MASK") if hidden

      if since && !since?(*since.split(".").map(&:to_i))
        return Finding.new(name.to_s, :no, "not on this kernel: #{without}", "Linux #{since} has it; nothing is wrong without")
      end

      Finding.new(name.to_s, :no, "the kernel refuses it: #{without}", "nothing is wrong without; a sandbox may hide it")
    end

    def files
      soft, hard = ::Process.getrlimit(:NOFILE)
      found = "RLIMIT_NOFILE #{limit(soft)}, at most #{limit(hard)}"
      return Finding.new("descriptors", :ok, found) if soft >= FEW_FILES

      Finding.new("descriptors", :warning, found, "each connection takes one: ulimit -n, LimitNOFILE= of systemd, or Process.setrlimit(:NOFILE, n)")
    end

    # Rings count for it before Linux 5.12, and registered buffers do.
    def locked_memory
      soft, = ::Process.getrlimit(:MEMLOCK)
      exempt = (status("CapEff") || "0").hex[IPC_LOCK] == 1
      found = "RLIMIT_MEMLOCK #{limit(soft)}#{", which CAP_IPC_LOCK exempts from" if exempt}"
      return Finding.new("locked memory", :ok, found) if exempt || soft >= LITTLE_MEMORY

      Finding.new("locked memory", :warning, found, "registered buffers count for it: ulimit -l, LimitMEMLOCK= of systemd, or CAP_IPC_LOCK")
    end

    # A fiber's stack and its guard page are a mapping each.
    def mappings
      most = read("/proc/sys/vm/max_map_count")&.to_i
      return unless most

      found = "vm.max_map_count #{most}: about #{most / 2} fibers at once"
      return Finding.new("mappings", :ok, found) if most > FEW_MAPPINGS

      Finding.new("mappings", :warning, found, "for more: sysctl -w vm.max_map_count=1000000")
    end

    def limit(number) = number == ::Process::RLIM_INFINITY ? "unlimited" : number.to_s

    def since?(major, minor) = UringMachine.kernel_version >= (major * 100) + minor

    def status(name) = read("/proc/self/status")&.slice(/^#{name}:\s*(\S+)/, 1)

    def read(path)
      File.read(path).strip
    rescue SystemCallError
      nil
    end
  end
end
