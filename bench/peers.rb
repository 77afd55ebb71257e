# frozen_string_literal: true

# What is measured beside ours: each peer runs a block in which `spawn` starts something concurrently, and returns when
# all of it has ended. A peer that cannot be had says why.
module Peers
  # A fiber scheduler: the variable that says in which folders its files are, what is required, what makes one, and whether
  # its end waits for the fibers that there are only, and not for those that they start.
  Scheduler = Struct.new(:variable, :feature, :make, :forgets)

  SCHEDULERS = {
    "um" => Scheduler.new(nil, "uringmachine", -> { UM::FiberScheduler.new }),
    "async-epoll" => Scheduler.new("UM_BENCH_IO_EVENT", "async", -> { async(:EPoll) }),
    "async-uring" => Scheduler.new("UM_BENCH_IO_EVENT", "async", -> { async(:URing) }),
    "c-gem" => Scheduler.new("UM_BENCH_C_GEM", "uringmachine", -> { UM::FiberScheduler.new }, true),
    "itsi" => Scheduler.new("UM_BENCH_ITSI", "itsi/scheduler", -> { Itsi::Scheduler.new }),
    "carbon" => Scheduler.new("UM_BENCH_CARBON", "carbon_fiber", -> { CarbonFiber::Scheduler.new })
  }.freeze

  NAMES = [*SCHEDULERS.keys, "threads", "nginx"].freeze

  # Async on a machine of ours: bench/async.rb.
  ADAPTED = { "async-um" => Scheduler.new("UM_BENCH_IO_EVENT", "uringmachine/async", -> { async(:UringMachine) }) }.freeze
  ALL = SCHEDULERS.merge(ADAPTED).freeze

  # The gems that Async is made of: its gemspec asks for io-event as a gem, and its files are all that is needed.
  ASYNC = %w[async console fiber-annotation fiber-local fiber-storage metrics traces].freeze

  module_function

  # nil if the peer can run in this process, else why not. Two that have the same names cannot both.
  def missing(name)
    return missing_nginx if name == "nginx"
    return if name == "threads"

    scheduler = ALL[name]
    return "there is no such peer; the peers are #{NAMES.join(", ")}" unless scheduler

    variable = scheduler.variable
    return "set #{variable} to the lib folder of the built gem" if variable && !ENV.key?(variable)

    load(name)
    return UM.supported? ? nil : UM.unsupported_reason if name == "um"

    scheduler.make.call if name.start_with?("async")
    nil
  rescue LoadError, NameError => e
    e.message
  end

  def missing_nginx
    "nginx is not there (apt-get install nginx-light)" unless system("command -v nginx >/dev/null")
  end

  def load(name)
    scheduler = ALL.fetch(name)
    folders = ENV.fetch(scheduler.variable, "").split(File::PATH_SEPARATOR) if scheduler.variable
    folders&.each { |folder| $LOAD_PATH.unshift(folder) unless $LOAD_PATH.include?(folder) }
    load_async_gems if scheduler.feature.end_with?("async")
    require scheduler.feature
    require "async/scheduler" if scheduler.feature.end_with?("async")
  end

  def load_async_gems
    ASYNC.each do |gem|
      found = Gem.path.flat_map { |path| Dir[File.join(path, "gems", "#{gem}-[0-9]*", "lib")] }.max
      $LOAD_PATH.push(found) if found && !$LOAD_PATH.include?(found)
    end
  end

  def async(selector)
    Async::Scheduler.new(selector: IO::Event::Selector.const_get(selector).new(Fiber.current))
  end

  # Runs the block as the peer would; `spawn` takes a block.
  def run(name, &)
    return run_threads(&) if name == "threads"

    load(name)
    run_scheduler(ALL.fetch(name), &)
  end

  def run_threads
    threads = Queue.new
    yield ->(&work) { threads << Thread.new(&work) }
    threads.pop.join until threads.empty?
  end

  def run_scheduler(kind)
    Thread.new do
      Fiber.set_scheduler(kind.make.call)
      next yield(->(&work) { Fiber.schedule(&work) }) unless kind.forgets

      running = 0
      yield(->(&work) { running += 1 and Fiber.schedule { ended(work) { running -= 1 } } })
      # The last of those that there are.
      Fiber.schedule { sleep 0.01 while running.positive? }
    end.join
  end

  def ended(work)
    work.call
  ensure
    yield
  end
end
