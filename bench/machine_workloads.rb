# frozen_string_literal: true

require "json"
require "socket"
require_relative "http_load"
require_relative "peers"

# The machine's own methods, each workload with its number of operations; beside them the same methods of the C gem, and,
# where there is one, the floor: a Rust program (bench/floor) that does the same operations on io_uring and nothing else.
module MachineWorkloads
  # A workload. `wanted` is the ratio to the C gem that is wanted, `floor` names the floor's own, nil if there is none.
  Workload = Struct.new(:name, :operations, :wanted, :floor, :body) do
    # nil if a peer can run it, else why not.
    def missing(peer) = ("there is none for it" if peer == "floor" && !floor)
  end

  ALL = {}
  # Where each peer's machine is from.
  MACHINES = { "machine" => "um", "c-gem" => "c-gem" }.freeze
  PEERS = [*MACHINES.keys, "floor"].freeze
  PAIRS = 48
  FLOOR = File.join(__dir__, "floor", "target", "release", "floor")

  # What a timeout raises that never fires.
  class TooLate < StandardError; end

  def self.workload(name, operations, wanted:, floor: nil, &body)
    ALL["machine_#{name}"] = Workload.new("machine_#{name}", operations, wanted, floor, body)
  end

  # nil if the peer can run here, else why not.
  def self.missing(peer)
    return Peers.missing(MACHINES[peer]) if MACHINES.key?(peer)

    "cargo build --release in bench/floor makes it" if peer == "floor" && !File.executable?(FLOOR)
  end

  # Runs a workload with a peer. The floor measures itself; of the machine, the caller does.
  def self.measure(workload, peer)
    return measure_floor(workload) if peer == "floor"

    Peers.load(MACHINES.fetch(peer))
    workload.body.call(UM.new, workload.operations)
  end

  def self.measure_floor(workload)
    IO.popen([FLOOR, *workload.floor]) do |floor|
      load = HttpLoad.new(Integer(workload.floor[2]), Integer(workload.floor[1])) if workload.floor.first == "http" && floor.gets == "ready\n"
      [load&.result, JSON.parse(floor.read, symbolize_names: true)].compact.reduce(:merge)
    end
  end

  def self.descriptors(pair) = pair.map { |io| io.autoclose = false }.then { pair.map(&:fileno) }

  workload "spin", 200_000, wanted: 0.40 do |machine, count|
    (count / 1000).times { machine.await(Array.new(1000) { machine.spin {} }) }
  end

  workload "switch", 2_000_000, wanted: 0.90 do |machine, count|
    machine.await(Array.new(10) { machine.spin { (count / 10).times { machine.snooze } } })
  end

  # One operation is a message: written and read.
  workload "pipe", 480_000, wanted: 0.80, floor: %w[pipe 480000] do |machine, count|
    message = "*" * 1024
    fibers = Array.new(PAIRS) { descriptors(IO.pipe) }.flat_map do |reader, writer|
      [machine.spin { (count / PAIRS).times { machine.write(writer, message) } },
       machine.spin { (buffer = +"") && (count / PAIRS).times { machine.read(reader, buffer, 1024) } }]
    end
    machine.await(fibers)
  end

  workload "socketpair", 480_000, wanted: 0.90, floor: %w[socketpair 480000] do |machine, count|
    message = "*" * 64
    fibers = Array.new(PAIRS) { descriptors(UNIXSocket.pair) }.flat_map do |reader, writer|
      [machine.spin { (count / PAIRS).times { machine.send(writer, message, 64, UM::MSG_WAITALL) } },
       machine.spin { (buffer = +"") && (count / PAIRS).times { machine.recv(reader, buffer, 64, 0) } }]
    end
    machine.await(fibers)
  end

  workload "sleep", 20_000, wanted: 0.60 do |machine, count|
    machine.await(Array.new(count) { machine.spin { machine.sleep(0.1) } })
  end

  workload "queue", 1_000_000, wanted: 0.65 do |machine, count|
    queue = UM::Queue.new
    producer = machine.spin { count.times { |number| machine.push(queue, number) && (number % 16).zero? && machine.snooze } }
    machine.await(producer, machine.spin { count.times { machine.shift(queue) } })
  end

  workload "mutex", 2_000_000, wanted: 0.07 do |machine, count|
    mutex = UM::Mutex.new
    count.times { machine.synchronize(mutex) {} }
  end

  workload "timeout", 1_000_000, wanted: 0.40 do |machine, count|
    # The C gem's queue of submissions is emptied by what waits only.
    count.times { |number| machine.timeout(10, TooLate) { true } && (number % 64).zero? && machine.sleep(0) }
  end

  RESPONSE = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

  def self.serve(machine, fd)
    io = machine.io(fd, :socket)
    while (line = io.read_line(0))
      machine.send(fd, RESPONSE, RESPONSE.bytesize, UM::MSG_WAITALL) if line.empty?
    end
  rescue SystemCallError
    # The client is gone.
  ensure
    machine.close_async(fd)
  end

  def self.http(machine, port, connections)
    server = machine.tcp_listen("127.0.0.1", port)
    load = HttpLoad.new(port, connections)
    machine.await(Array.new(connections) { machine.accept(server).then { |fd| machine.spin { serve(machine, fd) } } })
    load.result.then { |found| found.merge(operations: found[:requests]) }
  end

  if HttpLoad.there?
    workload("http_64", 1, wanted: 0.92, floor: %w[http 64 18064]) { |machine, _| http(machine, 18_065, 64) }
    workload("http_1000", 1, wanted: 0.85, floor: %w[http 1000 18066]) { |machine, _| http(machine, 18_067, 1000) }
  end
end
