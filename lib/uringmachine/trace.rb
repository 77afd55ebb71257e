# frozen_string_literal: true

require "json"

class UringMachine
  # Has what the machines of this Ractor do while a block runs written as a trace, in the format that Perfetto
  # (https://ui.perfetto.dev) and Chrome (about:tracing) open, and docs/trace_viewer.html: when each fiber ran, what it waited for, how
  # that ended and who woke it, and when the thread slept in the kernel. Machines that are made meanwhile are in it too.
  #
  # It is written when the block has ended, whatever it ends by: to a file, which is made before the block runs, or to an IO, which
  # stays open. A child of fork writes nothing. There is one trace at a time.
  #
  # @method UringMachine.trace(path_or_io, limit: 1_000_000, &block)
  # @param path_or_io [String, Pathname, IO] a path, or anything with `write`
  # @param limit [Integer] the events that are kept, the first ones: 32 bytes of memory each. Of more, the trace says how many there
  #   were, and so does a warning
  # @return [Object] what the block returns
  # @raise [UringMachine::Error] if a trace is being taken already
  # @raise [ArgumentError] without a block, or if limit is not positive
  # @raise [TypeError] if path_or_io is neither, or limit is no Integer
  # @raise [SystemCallError] if the file cannot be written
  # @example
  #   UM.trace("trace.json") { Fiber.schedule { sleep 0.1 }.then { sleep 0.2 } }
  def self.trace(path_or_io, limit: Trace::LIMIT, &block)
    raise ArgumentError, "no block given (trace)" unless block
    raise TypeError, "limit must be an Integer, not #{limit.class}" unless limit.is_a?(Integer)
    raise ArgumentError, "limit must be positive" unless limit.positive?
    raise Error, "a trace is being taken already" if traced?

    Trace.into(path_or_io) { |io| taken(io, limit, &block) }
  end

  # Takes a trace while a block runs, and writes it to an IO.
  def self.taken(io, limit)
    pid = ::Process.pid
    begin_trace(limit)
    begin
      yield
    ensure
      Trace.new(end_trace).write(io) if ::Process.pid == pid
    end
  end
  private_class_method :taken

  # What a trace has noted, and how it is written: JSON, an event a line.
  # https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
  class Trace
    # Events that are kept, unless asked otherwise.
    LIMIT = 1_000_000

    # Gives a block the IO to write to.
    def self.into(path_or_io, &)
      return yield(path_or_io) if path_or_io.respond_to?(:write) && !path_or_io.respond_to?(:to_path)
      return yield(path_or_io) if path_or_io.is_a?(::IO)
      raise TypeError, "path_or_io must be a path or an IO, not #{path_or_io.class}" unless path_or_io.is_a?(String) || path_or_io.respond_to?(:to_path)

      File.open(path_or_io, "w", &)
    end

    # @api private
    # @param machines [Array<Hash>] what `UM.end_trace` tells of each
    def initialize(machines)
      @machines = machines
      @pid = ::Process.pid
      @dropped = machines.sum { |machine| machine[:dropped] }
      # Numbers of flow arrows.
      @flows = 0
    end

    # Writes it, piece by piece.
    def write(io)
      io.write(%({"displayTimeUnit":"ns","otherData":#{JSON.generate(about)},"traceEvents":[\n))
      io.write(metadata("process_name", 0, name: "#{File.basename(::Process.argv0)} (uringmachine)"))
      @machines.each { |machine| write_machine(io, machine) }
      io.write("\n]}\n")
      warn("uringmachine: the trace lacks #{@dropped} events beyond its limit") if @dropped.positive?
    end

    private

    # Bytes of a record; Record of ext/uringmachine/src/machine/trace/records.rs.
    SIZE = 32
    LAYOUT = "Q<Q<L<CCS<l<l<"
    # How a wait ends that is not over by itself.
    ENDS = [nil, "timeout", "interrupted", "not over"].freeze
    # What is not known.
    UNKNOWN = -(2**31)
    # Names of errors by their numbers.
    ERRORS = Errno.constants.to_h { |name| [Errno.const_get(name)::Errno, name.name] }.freeze
    private_constant :SIZE, :LAYOUT, :ENDS, :UNKNOWN, :ERRORS

    def about = { program: ::Process.argv0, ruby: RUBY_VERSION, uringmachine: VERSION, time: Time.now.to_s, dropped_events: @dropped }

    def write_machine(io, machine)
      @names = machine[:names].map { |name| name.to_s.scrub }
      @quoted = @names.map { |name| JSON.generate(name) }
      track = machine[:track]
      io.write(metadata("thread_name", track, name: "kernel sleeps, #{machine[:thread]}"))
      io.write(metadata("thread_sort_index", track, sort_index: track))
      machine[:chunks].each do |chunk|
        lines = +""
        0.step(chunk.bytesize - SIZE, SIZE) { |place| append(lines, *chunk.unpack(LAYOUT, offset: place)) }
        io.write(lines)
      end
    end

    # Kinds are numbered as there.
    def append(lines, start, length, track, kind, ended, name, other, result)
      case kind
      when 0 then slice(lines, track, "run", %("running"), start, length)
      when 1 then slice(lines, track, "wait", @quoted[name], start, length, wait(ended, other, result))
      when 2 then slice(lines, track, "sleep", %("kernel sleep"), start, length)
      when 3 then multishot(lines, start, length, track, @quoted[name], other)
      when 4 then meet(lines, track, start, name, result, other)
      when 5 then instant(lines, track, "fiber", "ended", start)
      when 6 then instant(lines, track, "interrupt", "raised: #{@names[name]}", start)
      when 7 then arrow(lines, other, track, start, start + length)
      end
    end

    def event(type, track, time) = %(,\n{"ph":"#{type}","pid":#{@pid},"tid":#{track},"ts":#{microseconds(time)})

    def slice(lines, track, category, name, start, length, arguments = nil)
      lines << event("X", track, start) << %(,"dur":#{microseconds(length)},"cat":"#{category}","name":#{name})
      lines << %(,"args":{#{arguments}}) if arguments
      lines << "}"
    end

    # What a wait was on, and how it ended.
    def wait(ended, fd, result)
      arguments = []
      arguments << %("fd":#{fd}) if fd >= 0
      arguments << %("result":#{result}) if result >= 0
      arguments << %("error":"#{ERRORS.fetch(-result, result)}") if result.negative? && result != UNKNOWN
      arguments << %("ended":"#{ENDS[ended]}") if ENDS[ended]
      arguments.join(",")
    end

    # They overlap, so they are no slices of a track.
    def multishot(lines, start, length, track, name, fd)
      id = @flows += 1
      lines << event("b", track, start) << %(,"cat":"multishot","id":#{id},"name":#{name},"args":{"fd":#{fd}}})
      lines << event("e", track, start + length) << %(,"cat":"multishot","id":#{id},"name":#{name}})
    end

    # The first that is known of a fiber.
    def meet(lines, track, time, file, line, parent)
      place = [@names[file], (line if line.positive?)].compact.join(":") unless line == UNKNOWN
      lines << metadata("thread_name", track, name: ["fiber #{track}", place && File.basename(place)].compact.join(" ")) << metadata("thread_sort_index", track, sort_index: track)
      return if parent == UNKNOWN

      instant(lines, track, "fiber", "started", time, block: place)
      arrow(lines, parent, track, time, time)
    end

    def instant(lines, track, category, name, time, **arguments)
      lines << event("i", track, time) << %(,"s":"t","cat":"#{category}","name":#{JSON.generate(name)},"args":#{JSON.generate(arguments)}})
    end

    # From a fiber to another one, which it has started or woken.
    def arrow(lines, from, to, start, finish)
      id = @flows += 1
      lines << event("s", from, start) << %(,"cat":"wake","name":"wake","id":#{id}})
      lines << event("f", to, finish) << %(,"bp":"e","cat":"wake","name":"wake","id":#{id}})
    end

    def metadata(name, track, **arguments)
      comma = ",\n" unless name == "process_name"
      %(#{comma}{"ph":"M","pid":#{@pid},"tid":#{track},"name":"#{name}","args":#{JSON.generate(arguments)}})
    end

    # Of nanoseconds.
    def microseconds(time) = format("%d.%03d", time / 1000, time % 1000)
  end
  private_constant :Trace
end
