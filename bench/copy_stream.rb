# frozen_string_literal: true

# IO.copy_stream of a file to a socket and from a socket to a socket: plain Ruby, the scheduler and Async.
#
#   script/with-ruby ruby bench/copy_stream.rb [MEGABYTES]

require "socket"
require "tempfile"
require_relative "comparison"

MEGABYTES = Integer(ARGV.fetch(0, 512))
FILE = Tempfile.new.tap { |file| file.write("c" * (1 << 20) * 16) && file.flush }

# What takes the bytes, or sends them, is a process of its own, the same for all.
def sink
  there, here = UNIXSocket.pair
  child = fork do
    here.close
    buffer = +""
    nil while there.read(1 << 20, buffer)
    exit!(0)
  end
  there.close
  yield here
  here.close
  Process.wait(child)
end

def source
  there, here = UNIXSocket.pair
  child = fork do
    here.close
    bytes = "s" * (1 << 20)
    MEGABYTES.times { there.write(bytes) }
    exit!(0)
  end
  there.close
  yield here
  Process.wait(child)
end

def file_to_socket
  sink { |target| (MEGABYTES / 16).times { FILE.rewind && IO.copy_stream(FILE, target) } }
end

def socket_to_socket
  sink { |target| source { |from| IO.copy_stream(from, target) } }
end

%i[file_to_socket socket_to_socket].each do |work|
  comparison = Comparison.new("#{MEGABYTES} MB, #{work.to_s.tr("_", " ")}", operations: MEGABYTES, unit: "MB")
  comparison.way("plain Ruby") { send(work) }
  comparison.peers { |spawn| spawn.call { send(work) } }
  comparison.run
end
