# frozen_string_literal: true

# What is measured: each peer runs a block in which `spawn` starts something concurrently, and returns when all of it
# has ended. A peer that cannot be had says why.
module Peers
  NAMES = %w[um async-epoll async-uring threads].freeze

  module_function

  # nil if the peer can run here, else why not.
  def missing(name)
    case name
    when "um" then UM.supported? ? nil : UM.unsupported_reason
    when "async-epoll", "async-uring" then missing_async(name)
    when "threads" then nil
    else "there is no such peer; the peers are #{NAMES.join(", ")}"
    end
  rescue LoadError => e
    e.message
  end

  def missing_async(name)
    folder = ENV.fetch("UM_BENCH_IO_EVENT", nil)
    return "set UM_BENCH_IO_EVENT to the lib folder of a built io-event (with IO_Event.so in it)" unless folder

    load_async
    "io-event was built without it" unless IO::Event::Selector.const_defined?(selector(name))
  end

  def load_async
    folder = ENV.fetch("UM_BENCH_IO_EVENT")
    $LOAD_PATH.unshift(folder) unless $LOAD_PATH.include?(folder)
    # Async's gemspec asks for io-event as a gem; its files are all that is needed.
    %w[async console fiber-annotation fiber-local fiber-storage metrics traces].each do |gem|
      found = Gem.path.flat_map { |path| Dir[File.join(path, "gems", "#{gem}-[0-9]*", "lib")] }.max
      $LOAD_PATH.push(found) if found && !$LOAD_PATH.include?(found)
    end
    require "async"
    require "async/scheduler"
  end

  def selector(name) = name == "async-epoll" ? :EPoll : :URing

  # Runs the block as the peer would; `spawn` takes a block.
  def run(name, &block)
    case name
    when "threads" then run_threads(&block)
    when "um" then run_scheduler(-> { UM::FiberScheduler.new }, &block)
    else
      load_async
      selector = IO::Event::Selector.const_get(selector(name))
      run_scheduler(-> { Async::Scheduler.new(selector: selector.new(Fiber.current)) }, &block)
    end
  end

  def run_threads
    threads = Queue.new
    yield ->(&work) { threads << Thread.new(&work) }
    threads.pop.join until threads.empty?
  end

  def run_scheduler(make)
    Thread.new do
      Fiber.set_scheduler(make.call)
      yield ->(&work) { Fiber.schedule(&work) }
    end.join
  end
end
