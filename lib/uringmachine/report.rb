# frozen_string_literal: true

class UringMachine
  # A machine as it stood at one moment: every live fiber, what it waits for, and what the kernel has. It is made of what
  # the machine knows anyway; running fibers note nothing for it. It keeps no fiber alive.
  class Report
    # Lines of each backtrace, unless asked otherwise.
    FRAMES = 20

    # A report on each machine that the threads of this Ractor use.
    #
    # @param frames [Integer] as for `UringMachine#report`
    # @return [Array<UringMachine::Report>]
    # @example
    #   UM::Report.all.each { |report| puts report }
    def self.all(frames: FRAMES) = UringMachine.machines.map { |machine| machine.report(frames:) }

    # The reports of another process, which has to listen: see `UM.listen_for_reports`.
    #
    # @param pid [Integer]
    # @param frames [Integer] as for `UringMachine#report`
    # @return [Array<UringMachine::Report>]
    # @raise [SystemCallError] if it does not listen, or not to this user
    # @example
    #   puts UM::Report.of(pid)
    def self.of(pid, frames: FRAMES) = ReportSocket.ask(pid, frames).map { |told| new(told, told.delete(:pid), told.delete(:time)) }

    # @api private
    # @param told [Hash] what the machine told
    def initialize(told, pid = ::Process.pid, time = Time.now.to_f)
      @pid = pid
      @time = time
      @thread, @asleep, @numbers, @others = told.values_at(:thread, :asleep, :numbers, :others)
      @fibers = told.fetch(:fibers).map { |fiber| read(fiber) }
    end

    # When it was made.
    #
    # @return [Time]
    # @example
    #   machine.report.time
    def time = Time.at(@time)

    # The live fibers, each a Hash: its `:fiber`, as `inspect` says it; `:state`, one of new, ready, running, waiting,
    # draining (a cancelled operation is about to end), interrupted, timed out, suspended (by the program itself);
    # `:waits_for`, in words; the `:operations` that the kernel has for it, with name, descriptor and what that is; the scheduler's `:hook`, if it is
    # in one; the `:call` of the program that waits; `:blocker`, the class of a Mutex, Queue or the like; the seconds it
    # has `:waited` at the least, and that are `:left` of its time; the `:backtrace`.
    #
    # @return [Array<Hash{Symbol => Object}>]
    # @example
    #   machine.report.fibers.map { |fiber| fiber[:waits_for] }
    attr_reader :fibers

    # @return [Hash{Symbol => Object}] all of it: Strings, numbers, Arrays and Hashes
    # @example
    #   machine.report.to_h[:numbers][:run_queue] #=> 0
    def to_h
      { pid: @pid, time: @time, thread: @thread, asleep: @asleep, numbers: @numbers, others: @others, fibers: @fibers }
    end

    # @return [String] the same as JSON
    # @example
    #   File.write("report.json", machine.report.to_json)
    def to_json(*)
      require "json"
      JSON.generate(to_h, *)
    end

    # @return [String] the same for people: fibers that wait in one place, for one kind of thing, are told of together
    # @example
    #   puts machine.report
    def to_s
      places = @fibers.group_by { |fiber| [fiber[:state], kind(fiber), fiber[:backtrace]] }
      [headline, *others, *places.values.sort_by { |alike| -alike.size }.flat_map { |alike| paragraph(alike) }].join("\n")
    end

    # @return [String] the numbers of the machine in a line
    # @example
    #   machine.report.headline
    def headline
      numbers = @numbers.map { |name, number| "#{name.to_s.tr("_", " ")} #{number}" }
      "machine of #{@thread || "no thread yet"}, pid #{@pid}, #{@asleep ? "asleep" : "awake"}: #{numbers.join(", ")}"
    end

    private

    # What the hooks are called in backtraces.
    HOOK = /'UringMachine::FiberScheduler#(\w+)'\z/
    # What IO's methods are called there that do a hook's work themselves.
    DIRECT = /'UringMachine::CoreGaps::Direct#(\w+\??)'\z/
    # More than so many of one kind are counted.
    MOST_TOLD = 10
    private_constant :HOOK, :DIRECT, :MOST_TOLD

    def read(fiber)
      lines = fiber[:backtrace]&.map { |line| line.sub(DIRECT, "'IO#\\1'") }
      hook = hook(fiber[:backtrace]&.first) || fiber[:hook]
      call = lines&.find { |line| !line.match?(HOOK) }
      fiber.merge(backtrace: lines, hook:, call:, waits_for: waits_for(fiber, hook))
    end

    def hook(line)
      case line
      when HOOK then $1
      when DIRECT then $1 == "write" ? "io_write" : "io_read"
      end
    end

    def waits_for(fiber, hook)
      return unless %w[waiting draining].include?(fiber[:state])

      words = fiber[:operations].map { |operation| on_descriptor(operation) }
      words << fiber[:blocker] if fiber[:blocker]
      words << (fiber[:left] ? "its time" : hook) if words.empty?
      words.compact.join(", ") unless words.compact.empty?
    end

    def on_descriptor(operation)
      words = [operation[:name] || "its turn"]
      words << "on fd #{operation[:fd]}" if operation[:fd]
      words << "(#{operation[:descriptor]})" if operation[:descriptor]
      words.join(" ")
    end

    # What fibers have in common that wait for different descriptors.
    def kind(fiber) = [fiber[:operations].map { |operation| operation[:name] }, fiber[:blocker], fiber[:left].nil?]

    def others = @others.map { |operation| "nobody waits for #{on_descriptor(operation)}" }

    def paragraph(alike)
      told = alike.first(MOST_TOLD).map { |fiber| line(fiber) }
      told << "… and #{alike.size - MOST_TOLD} more in the same place" if alike.size > MOST_TOLD
      [*told, *(alike.first[:backtrace] || []).map { |frame| "    #{frame}" }]
    end

    def line(fiber)
      words = ["#{fiber[:fiber]} is #{fiber[:state]}"]
      words << "for #{fiber[:waits_for]}" if fiber[:waits_for]
      words << "for at least #{seconds(fiber[:waited])}" if fiber[:waited]
      words << "#{seconds(fiber[:left])} left" if fiber[:left]
      words.join(", ").sub(", for", " for")
    end

    def seconds(number) = format("%.3f s", number)
  end
end
