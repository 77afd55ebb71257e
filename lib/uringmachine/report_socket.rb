# frozen_string_literal: true

require "fileutils"
require "json"
require "socket"
require "tmpdir"

class UringMachine
  # A UNIX socket on which a process tells of its machines, to `uringmachine report` and `uringmachine top`: see
  # UringMachine.listen_for_reports. Whoever connects asks by a line, the lines of backtrace that are wanted, and is answered
  # by JSON until the end.
  module ReportSocket
    # Seconds between looks at the machines, so that it is known how long fibers have waited; also those that a peer has to
    # ask and to read.
    INTERVAL = 1
    private_constant :INTERVAL

    class << self
      # Where the socket of a process is: in the folder of the user's session, or in /tmp.
      def path(pid) = File.join(ENV.fetch("XDG_RUNTIME_DIR", "/tmp"), "uringmachine-#{pid}.sock")

      # Opens it, once for a process; returns its path.
      def open
        return @path if @pid == ::Process.pid

        server = listen(path(::Process.pid))
        @pid, @path = ::Process.pid, path(::Process.pid)
        at_exit { close }
        UringMachine.after_fork { server.close unless server.closed? }
        Thread.new { serve(server) }
        @path
      end

      # What another process answers: the Hashes of its reports.
      def ask(pid, frames)
        UNIXSocket.open(path(pid)) do |socket|
          socket.puts(frames)
          JSON.parse(socket.read, symbolize_names: true)
        end
      end

      private

      # It has its name when it has its mode: nobody else can connect at any time.
      def listen(path)
        Dir.mktmpdir("uringmachine", File.dirname(path)) do |folder|
          hidden = File.join(folder, "socket")
          server = UNIXServer.new(hidden)
          File.chmod(0o600, hidden)
          File.rename(hidden, path)
          server
        end
      end

      # A child that exits leaves it to its parent.
      def close
        FileUtils.rm_f(@path) if @pid == ::Process.pid
      end

      def serve(server)
        Thread.current.name = "um-reports"
        loop do
          if server.wait_readable(INTERVAL)
            answer(server)
          else
            UringMachine.machines.each(&:metrics)
          end
        end
      end

      def answer(server)
        socket = server.accept
        socket.timeout = INTERVAL
        frames = socket.gets.to_s.to_i.clamp(0, 1000)
        socket.write(JSON.generate(Report.all(frames:).map(&:to_h)))
      rescue SystemCallError, ::IO::TimeoutError
        # It is gone, or says nothing.
      ensure
        socket&.close
      end
    end
  end
end
