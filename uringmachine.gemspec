# frozen_string_literal: true

require_relative "lib/uringmachine/version"

Gem::Specification.new do |spec|
  spec.name = "uringmachine"
  spec.version = UringMachine::VERSION
  spec.summary = "Fiber::Scheduler and low-level I/O on Linux's io_uring"
  spec.description = "Ordinary Ruby code (IO, Socket, Process, Mutex, Queue, Timeout, Net::HTTP) runs concurrently on io_uring under Fiber.set_scheduler(UM::FiberScheduler.new)."
  spec.authors = ["The uringmachine authors"]
  spec.license = "MIT"
  spec.required_ruby_version = ">= 3.4"
  spec.platform = Gem::Platform::RUBY
  spec.files = Dir["Cargo.{toml,lock}", "src/**/*.rs", "ext/**/*.{rs,toml}", "lib/**/*.rb", "sig/*", "exe/*", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "docs/*.md"]
  spec.bindir = "exe"
  spec.executables = ["uringmachine"]
  spec.extensions = ["ext/uringmachine/Cargo.toml"]
  spec.metadata["rubygems_mfa_required"] = "true"
end
