# frozen_string_literal: true

# Fiber::Scheduler and low-level I/O on Linux's io_uring.

require "uringmachine/uringmachine"
require_relative "uringmachine/version"
require_relative "uringmachine/fibers"
require_relative "uringmachine/schedulers"
require_relative "uringmachine/sockets"
require_relative "uringmachine/file_watch"
require_relative "uringmachine/actor"
require_relative "uringmachine/blocking_operation_thread_pool"
require_relative "uringmachine/copy_stream"
require_relative "uringmachine/core_gaps"
require_relative "uringmachine/closing"
require_relative "uringmachine/masks"
require_relative "uringmachine/tcp_socket"
require_relative "uringmachine/fork"
require_relative "uringmachine/process"
require_relative "uringmachine/tls"
require_relative "uringmachine/ssl"
