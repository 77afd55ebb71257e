# frozen_string_literal: true

# Fiber::Scheduler and low-level I/O on Linux's io_uring.

require_relative "uringmachine/extension"
require_relative "uringmachine/version"

# What Ruby adds to the classes that the extension defines.
require_relative "uringmachine/machine/fibers"
require_relative "uringmachine/machine/io"
require_relative "uringmachine/machine/sockets"
require_relative "uringmachine/machine/file_watch"
require_relative "uringmachine/machine/actors"
require_relative "uringmachine/machine/processes"
require_relative "uringmachine/machine/fork"
require_relative "uringmachine/machine/reports"
require_relative "uringmachine/fiber_scheduler/current"
require_relative "uringmachine/fiber_scheduler/fibers"
require_relative "uringmachine/fiber_scheduler/processes"
require_relative "uringmachine/fiber_scheduler/reports"

# A class a file.
require_relative "uringmachine/actor"
require_relative "uringmachine/blocking_operation_thread_pool"
require_relative "uringmachine/connection_race"
require_relative "uringmachine/copy"
require_relative "uringmachine/process"
require_relative "uringmachine/report"
require_relative "uringmachine/selector"
require_relative "uringmachine/stall_watch"
require_relative "uringmachine/trace"
require_relative "uringmachine/watched_tree"
require_relative "uringmachine/tls"
require_relative "uringmachine/ssl"

# What is prepended to Ruby's own classes; what those files share comes first.
require_relative "uringmachine/core_ext/core_gaps"
require_relative "uringmachine/core_ext/turns"
require_relative "uringmachine/core_ext/ssl_socket"
require_relative "uringmachine/core_ext/addrinfo"
require_relative "uringmachine/core_ext/dir"
require_relative "uringmachine/core_ext/fiber"
require_relative "uringmachine/core_ext/file"
require_relative "uringmachine/core_ext/io"
require_relative "uringmachine/core_ext/io_close"
require_relative "uringmachine/core_ext/io_copy_stream"
require_relative "uringmachine/core_ext/ip_socket"
require_relative "uringmachine/core_ext/process"
require_relative "uringmachine/core_ext/socket"
require_relative "uringmachine/core_ext/tcp_socket"
require_relative "uringmachine/core_ext/thread"
require_relative "uringmachine/core_ext/timeout"

UringMachine.listen_for_reports if ENV["UM_REPORTS"] == "1"
