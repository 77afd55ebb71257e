# frozen_string_literal: true

require "json"
require "socket"

# The machine's own methods, each workload with its number of operations; beside them, where there is one, the floor: a
# Rust program (bench/floor) that does the same operations on io_uring and nothing else.
module MachineWorkloads
  # A workload. `floor` names the floor's own, nil if there is none.
  Workload = Struct.new(:name, :operations, :floor, :body)

  ALL = {}
  PAIRS = 48
  FLOOR = File.join(__dir__, "floor", "target", "release", "floor")

  # What a timeout raises that never fires.
  class TooLate < StandardError; end

  def self.workload(name, operations, floor: nil, &body)
    ALL["machine_#{name}"] = Workload.new("machine_#{name}", operations, floor, body)
  end

  # nil if the peer can run the workload, else why not.
  def self.missing(workload, peer)
    case peer
    when "machine" then UM.supported? ? nil : UM.unsupported_reason
    when "floor"
      return "there is none for it" unless workload.floor

      File.executable?(FLOOR) ? nil : "cargo build --release in bench/floor makes it"
    else "it has none of the machine's methods"
    end
  end

  # Runs a workload with a peer. The floor measures itself; of the machine, the caller does.
  def self.measure(workload, peer)
    return workload.body.call(UM.new, workload.operations) if peer == "machine"

    IO.popen([FLOOR, *workload.floor]) do |floor|
      Process.wait(load_http(Integer(workload.floor[2]), Integer(workload.floor[1]))) if workload.floor.first == "http" && floor.gets == "ready\n"
      JSON.parse(floor.read, symbolize_names: true)
    end
  end

  # Starts what asks: the same for both.
  def self.load_http(port, connections)
    Process.spawn("wrk", "-t1", "-c#{connections}", "-d2s", "http://127.0.0.1:#{port}/", out: File::NULL, err: File::NULL)
  end

  def self.descriptors(pair) = pair.map { |io| io.autoclose = false }.then { pair.map(&:fileno) }

  workload "spin", 200_000 do |machine, count|
    (count / 1000).times { machine.await(Array.new(1000) { machine.spin {} }) }
  end

  workload "switch", 2_000_000 do |machine, count|
    machine.await(Array.new(10) { machine.spin { (count / 10).times { machine.snooze } } })
  end

  # One operation is a message: written and read.
  workload "pipe", 480_000, floor: %w[pipe 480000] do |machine, count|
    message = "*" * 1024
    fibers = Array.new(PAIRS) { descriptors(IO.pipe) }.flat_map do |reader, writer|
      [machine.spin { (count / PAIRS).times { machine.write(writer, message) } },
       machine.spin { (buffer = +"") && (count / PAIRS).times { machine.read(reader, buffer, 1024) } }]
    end
    machine.await(fibers)
  end

  workload "socketpair", 480_000, floor: %w[socketpair 480000] do |machine, count|
    message = "*" * 64
    fibers = Array.new(PAIRS) { descriptors(UNIXSocket.pair) }.flat_map do |reader, writer|
      [machine.spin { (count / PAIRS).times { machine.send(writer, message, 64, UM::MSG_WAITALL) } },
       machine.spin { (buffer = +"") && (count / PAIRS).times { machine.recv(reader, buffer, 64, 0) } }]
    end
    machine.await(fibers)
  end

  workload "sleep", 20_000 do |machine, count|
    machine.await(Array.new(count) { machine.spin { machine.sleep(0.1) } })
  end

  workload "queue", 1_000_000 do |machine, count|
    queue = UM::Queue.new
    producer = machine.spin { count.times { |number| machine.push(queue, number) && (number % 16).zero? && machine.snooze } }
    machine.await(producer, machine.spin { count.times { machine.shift(queue) } })
  end

  workload "mutex", 2_000_000 do |machine, count|
    mutex = UM::Mutex.new
    count.times { machine.synchronize(mutex) {} }
  end

  workload "timeout", 1_000_000 do |machine, count|
    count.times { machine.timeout(10, TooLate) {} }
  end

  RESPONSE = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"

  def self.serve(machine, fd)
    served = 0
    io = machine.io(fd, :socket)
    while (line = io.read_line(0))
      next unless line.empty?

      machine.send(fd, RESPONSE, RESPONSE.bytesize, UM::MSG_WAITALL)
      served += 1
    end
    served
  rescue SystemCallError
    served
  ensure
    machine.close_async(fd)
  end

  def self.http(machine, port, connections)
    server = machine.tcp_listen("127.0.0.1", port)
    client = load_http(port, connections)
    fibers = Array.new(connections) { machine.accept(server).then { |fd| machine.spin { serve(machine, fd) } } }
    served = machine.join(fibers).sum
    Process.wait(client)
    -> { served }
  end

  if system("command -v wrk >/dev/null")
    workload("http_64", 1, floor: %w[http 64 18064]) { |machine, _| http(machine, 18_065, 64) }
    workload("http_1000", 1, floor: %w[http 1000 18066]) { |machine, _| http(machine, 18_067, 1000) }
  end
end
