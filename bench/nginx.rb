# frozen_string_literal: true

require "fileutils"
require "socket"
require "tmpdir"

# nginx, which gives one answer, on loopback, from a folder of its own.
class Nginx
  attr_reader :port

  # Starts it and waits until it answers.
  def initialize(workers: 1)
    @folder = Dir.mktmpdir("um")
    @port = TCPServer.open("127.0.0.1", 0) { |server| server.addr[1] }
    File.write(File.join(@folder, "nginx.conf"), configuration(workers))
    @process = Process.spawn("nginx", "-p", @folder, "-c", "nginx.conf", "-e", "error.log", in: File::NULL, out: File::NULL)
    answers?
  end

  # User and system seconds of its workers.
  def times
    ticks = Etc.sysconf(Etc::SC_CLK_TCK).to_f
    children.map { |pid| File.read("/proc/#{pid}/stat")[/\) (.*)/, 1].split.values_at(11, 12).map { |time| time.to_i / ticks } }.transpose.map(&:sum)
  end

  def stop
    Process.kill(:QUIT, @process)
    Process.wait(@process)
    FileUtils.rm_rf(@folder)
  end

  private

  def configuration(workers)
    <<~CONF
      daemon off;
      worker_processes #{workers};
      pid nginx.pid;
      events { worker_connections 16384; }
      http {
        access_log off;
        keepalive_requests 1000000000;
        #{%w[client_body proxy fastcgi uwsgi scgi].map { |kind| "#{kind}_temp_path #{kind};" }.join(" ")}
        server {
          listen 127.0.0.1:#{@port} backlog=4096 reuseport;
          location / { default_type text/plain; return 200 "Hello, world!"; }
        }
      }
    CONF
  end

  # The workers' numbers.
  def children = File.read("/proc/#{@process}/task/#{@process}/children").split

  def answers?
    TCPSocket.open("127.0.0.1", @port, &:close)
  rescue Errno::ECONNREFUSED
    raise "nginx: #{File.read(File.join(@folder, "error.log"))}" if Process.wait(@process, Process::WNOHANG)

    sleep 0.01
    retry
  end
end
