# frozen_string_literal: true

require "minitest"
require "tmpdir"

# Where programs run: older kernels, as far as a mask makes them (src/features.rs), and what containers do to a process. Each
# is a way to start a command there.
module Places
  # What Linux has not had before some version.
  KERNELS = {
    "Linux 6.1" => %w[no_sqarray waitid read_multishot ftruncate incremental_buffers],
    "Linux 6.6" => %w[waitid read_multishot ftruncate incremental_buffers],
    "Linux 6.12" => []
  }.freeze

  # @!attribute environment
  #   @return [Hash]
  # @!attribute command
  #   @return [Array<String>] that starts another
  # @!attribute folder
  #   @return [String] for what is written there
  Place = Struct.new(:environment, :command, :folder, keyword_init: true) do
    def initialize(environment: {}, command: [], folder: Dir.tmpdir) = super
  end

  class << self
    # @return [Hash{String => Place, nil}] nil for what this machine does not let its user make
    def all
      @all ||= {
        **KERNELS.transform_values { |lacks| Place.new(environment: { "UM_MASK" => lacks.join(",") }) },
        # Fibers only: Ruby's own threads hang in there, and their reads end with EINTR.
        "M:N threads" => Place.new(environment: { "RUBY_MN_THREADS" => "1", "UM_MODEL_MODES" => "fibers,both" }),
        "one processor" => Place.new(command: ["taskset", "-c", processor]),
        "little memory to lock" => Place.new(command: %w[setpriv --bounding-set=-ipc_lock prlimit --memlock=1048576]),
        "no /proc" => mounted("mount -t tmpfs none /proc"),
        "a root that cannot be written to" => mounted("mount -o remount,ro,bind /", "/dev/shm"),
        "little memory" => limited(256 << 20)
      }
    end

    # @param size [String] as tmpfs takes it
    # @return [Place, nil] whose folder is a file system of that size
    def small_disk(folder, size) = mounted("mount -t tmpfs -o size=#{size} none #{folder}", folder)

    private

    # One that the process may run on.
    def processor = File.read("/proc/self/status")[/Cpus_allowed_list:\s*(\d+)/, 1]

    # With file systems of its own (unshare(1)).
    def mounted(change, folder = Dir.tmpdir)
      command = ["unshare", "--mount", "sh", "-c", "#{change} && exec \"$@\"", "sh"]
      Place.new(command:, folder:) if system(*command, "true", %i[out err] => File::NULL)
    end

    # In a memory cgroup, of version 1 or 2 (cgroups(7)).
    def limited(bytes)
      group, limit = [["/sys/fs/cgroup/memory", "memory.limit_in_bytes"], ["/sys/fs/cgroup", "memory.max"]].find do |parent, file|
        Dir.mkdir(group = File.join(parent, "uringmachine-#{owner = Process.pid}"))
        Minitest.after_run { Dir.rmdir(group) if Process.pid == owner }
        break [group, file] if File.exist?(File.join(group, file))
      rescue SystemCallError
        nil
      end
      return unless group

      File.write(File.join(group, limit), bytes)
      Place.new(command: ["sh", "-c", "echo $$ > #{File.join(group, "cgroup.procs")} && exec \"$@\"", "sh"])
    rescue SystemCallError
      nil
    end
  end
end
