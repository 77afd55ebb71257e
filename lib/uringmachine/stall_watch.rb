# frozen_string_literal: true

class UringMachine
  # A thread that looks every so often whether a machine's fibers take turns, and tells of whoever keeps the thread from the
  # others: see UringMachine#warn_of_stalls.
  class StallWatch
    # How many stalls there were, and the seconds that the longest has lasted at the least.
    attr_reader :count, :longest

    def initialize(limit, tell, &pulse)
      @limit = limit
      @tell = tell || method(:warn)
      @pulse = pulse
      @count = 0
      @longest = 0.0
      @told = Set.new
      @watching = Thread.new { watch }
    end

    # Looks no more.
    def stop
      @watching.kill.join
    end

    private

    # Places beyond which none is told of any more: code that is made anew all the time has many.
    MOST_PLACES = 1000
    private_constant :MOST_PLACES

    def watch
      Thread.current.name = "um-stalls"
      progress = since = told = nil
      loop do
        seen, is_idle, thread = @pulse.call
        now = ::Process.clock_gettime(::Process::CLOCK_MONOTONIC)
        if is_idle || seen != progress
          progress, since, told = seen, now, false
        elsif now - since >= @limit
          note(now - since, thread, told)
          told = true
        end
        sleep(@limit / 2.0)
        break if thread && !thread.alive?
      end
    end

    def note(seconds, thread, told)
      @longest = [@longest, seconds].max
      return if told

      @count += 1
      backtrace = thread.backtrace or return
      place = backtrace.find { |frame| !frame.start_with?("<internal:") }
      return if @told.size >= MOST_PLACES || !@told.add?(place)

      @tell.call(seconds, backtrace)
    end

    def warn(seconds, backtrace)
      $stderr.write("uringmachine: a fiber has kept its thread from all others for #{format("%.3f", seconds)} s, and still does:\n",
                    *backtrace.map { |frame| "    #{frame}\n" })
    end
  end
  private_constant :StallWatch
end
