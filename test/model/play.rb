# frozen_string_literal: true

module Model
  # Plays a program in one of the modes, and looks at what is left.
  module Play
    MODES = ENV.fetch("UM_MODEL_MODES", "threads,fibers,both").split(",").map(&:to_sym).freeze
    # They hit a fiber, which must be one of the same thread.
    OF_A_THREAD = %i[raise kill_writer kill_reader].freeze

    # Seconds: nothing waits for so long but what waits for ever, on any machine.
    @patience = Integer(ENV.fetch("UM_MODEL_PATIENCE", 30))

    class << self
      attr_accessor :patience

      # @param program [Array<Array>] conversations: kinds and episodes
      # @param mode [Symbol] threads: a thread for each side; fibers: a fiber for each; both: fibers of two threads
      # @return [Hash] logs, and what is left, which is nothing
      def play(program, mode)
        warm_up
        before = descriptors
        conversations = program.each_with_index.map { |(kind, episodes), index| Conversation.new(index, kind, episodes) }
        watch(conversations)
        left = __send__(mode, conversations, program)
        left[:locked] = conversations.count(&:locked?)
        logs = conversations.flat_map { |conversation| conversation.sides.map(&:log) }
        conversations.each(&:close)
        left[:descriptors] = left_open(before)
        left[:children] = children
        { logs:, left: left.reject { |_, value| value == 0 || value == [] } }
      end

      # Ends the program at once.
      def end_with(outcome)
        $stdout << JSON.generate(outcome)
        $stdout.flush
        exit!(1)
      end

      private

      # What Ruby opens for itself at its first thread, Timeout and child.
      def warm_up
        Thread.new { Timeout.timeout(1000) { `true` } }.join
      end

      # By what they are, where that can be told.
      def descriptors
        return numbers unless Dir.exist?("/proc/self/fd")

        Dir.children("/proc/self/fd").to_h { |fd| [fd, (File.readlink("/proc/self/fd/#{fd}") rescue nil)] }.compact
      end

      def numbers
        (0...256).select { |fd| IO.for_fd(fd, autoclose: false) rescue nil }.to_h { |fd| [fd, "descriptor #{fd}"] }
      end

      # Worker threads may be about to close what nobody was given.
      def left_open(before)
        left = nil
        200.times do |count|
          GC.start if (count % 50) == 1
          left = (descriptors.to_a - before.to_a).map(&:last).grep_v(%r{/fd\z})
          break if left.empty?

          sleep 0.01
        end
        left
      end

      def children
        Process.wait2(-1, Process::WNOHANG)&.last.to_s
      rescue Errno::ECHILD
        []
      end

      # Says where a program hangs, and ends it.
      def watch(conversations)
        Thread.new do
          sleep patience
          end_with(hangs: conversations.flat_map { |conversation| conversation.sides.map(&:where) }, children: waiting_children)
        end
      end

      # What the children are, what they wait in, and by which system call (proc(5)).
      def waiting_children
        Dir.glob("/proc/[0-9]*/stat").filter_map do |path|
          stat = File.read(path)
          next unless stat[/.*\) \S (\d+)/m, 1].to_i == Process.pid

          [stat[/\(.*\) \S/m], *%w[wchan syscall].map { |name| File.read(File.join(File.dirname(path), name)).strip }]
        rescue SystemCallError
          nil
        end
      end

      def threads(conversations, _program)
        sides = conversations.flat_map { |conversation| conversation.sides.zip(conversation.tasks) }
        sides.map { |side, body| side.task = Thread.new(&body) }.each(&:join)
        {}
      end

      def fibers(conversations, _program) = under_scheduler(conversations.flat_map { |it| it.sides.zip(it.tasks) })

      def both(conversations, program)
        groups = [[], []]
        conversations.each_with_index do |conversation, index|
          together = program[index].last.flatten.intersect?(OF_A_THREAD)
          pairs = conversation.sides.zip(conversation.tasks)
          pairs.each_with_index { |pair, number| groups[(together ? index : number) % 2] << pair }
        end
        groups.map { |group| Thread.new { under_scheduler(group) } }.map(&:value).reduce { |a, b| a.merge(b) { |_, x, y| x + y } }
      end

      # What the machine has in flight, once what was cancelled has come back.
      def settled(scheduler)
        left = nil
        200.times do
          Fiber.schedule { sleep(0.001) }
          scheduler.run
          left = scheduler.machine.metrics.slice(:ops_pending, :ops_transient, :ops_unsubmitted, :ops_runqueue)
          break if left.values.sum.zero?
        end
        left
      end

      def under_scheduler(pairs)
        left = nil
        Thread.new do
          scheduler = UM::FiberScheduler.new
          Fiber.set_scheduler(scheduler)
          pairs.each { |side, body| Fiber.schedule { (side.task = Fiber.current) && body.call } }
          scheduler.run
          left = settled(scheduler)
          Fiber.set_scheduler(nil)
        end.join
        left
      end
    end
  end
end
