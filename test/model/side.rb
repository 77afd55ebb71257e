# frozen_string_literal: true

module Model
  class Stop < Exception; end # rubocop:disable Lint/InheritException -- Dir.tmpdir rescues others

  # Seconds: for time limits that are not to come, and for those that are.
  LONG = 1000
  BRIEF = 0.003

  # One of the two tasks of a conversation, a thread or a fiber: its end of the channel, what it has seen, how far it is.
  class Side
    include Writes
    include Reads
    include Waits
    include Messages
    include Episodes

    attr_accessor :io, :other, :task
    attr_reader :log, :inbox, :waiting, :got

    def initialize(name, talk)
      @name = name
      @talk = talk
      @log = []
      @inbox = Thread::Queue.new
      @position = 0
      @wrote = 0
      @number = -1
    end

    # @param episodes [Array<Array>]
    # @param role [Symbol] left or right
    def run(episodes, role)
      UM::SSL.accelerate(io) if @talk.on_ring? && Fiber.current_scheduler
      episodes.each do |name, *arguments|
        @number += 1
        __send__("#{role}_#{name}", *arguments)
      end
    rescue Exception => e # rubocop:disable Lint/RescueException
      # The other side may wait for it for ever.
      Play.end_with(fails: [@name, episodes[@number], e.class.name, e.message, e.backtrace&.first(8)])
    ensure
      @ended = true
    end

    # @return [Array] where it is, for whoever wonders why it hangs
    def where = [@name, @number, @ended ? :ended : @task&.backtrace&.first(6)]

    private

    def note(*what) = @log << [@number, *what]

    # Runs the block, which waits in vain, until the other side or a time limit ends the wait; notes by what.
    def in_vain(cancel = @cancel)
      value = limited(cancel) do
        @waiting = @number
        yield
      end
      note(:returned, value.class.name)
    rescue Stop, Timeout::Error, IO::TimeoutError, IOError, SystemCallError => e
      note(:raised, e.class.name)
    ensure
      @waiting = nil
    end

    def limited(cancel, &)
      case cancel
      when :timeout then Timeout.timeout(BRIEF, &)
      when :named_timeout then Timeout.timeout(BRIEF, Stop, &)
      when :io_timeout then with_io_timeout(BRIEF, &)
      else yield
      end
    end

    def with_io_timeout(seconds)
      io.timeout = seconds
      yield
    ensure
      io.timeout = nil unless io.closed?
    end

    # Ends the wait of the other side, if a time limit does not.
    def disturb(cancel)
      case cancel
      when :raise then once_other_waits { other.task.raise(Stop) }
      when :kill then once_other_waits { other.task.kill }
      when :close then once_other_waits { other.io.close }
      end
    end

    def once_other_waits
      give_way until other.waiting == @number && (!other.task.is_a?(Thread) || other.task.stop?)
      yield
    end

    # Lets others run, fibers and threads: those that work for other fibers need Ruby's lock, and time.
    def give_way = sleep(0.0001)

    def tell(what = nil) = other.inbox << [@number, what]

    # What the other side tells in this episode.
    def hear
      number, what = inbox.pop
      raise "episode #{number} is the other's" unless number == @number

      what
    end

    def text(size, position = @position) = TEXT.byteslice(position % PERIOD, size)

    # Notes whether what was read is what was written.
    def compare(got, expected)
      note(got == expected ? :same : :other, expected.bytesize, *([got.bytesize, got[0, 40]] unless got == expected))
    end
  end
end
