# frozen_string_literal: true

require "socket"

class UringMachine
  module CoreGaps
    # Methods that succeed at once where they can, without a hook: a fiber that calls them again and again lets the ready
    # go first now and then, and raises what it is to raise. What other Rubies lack is left out. (socket.rb calls those
    # with the underscores.)
    TURNS = {
      BasicSocket => %i[send recv __sendmsg __recvmsg __recv_nonblock __read_nonblock __write_nonblock __sendmsg_nonblock __recvmsg_nonblock],
      IPSocket => %i[recvfrom],
      UDPSocket => %i[send __recvfrom_nonblock],
      UNIXSocket => %i[recvfrom send_io recv_io],
      Socket => %i[recvfrom accept sysaccept __recvfrom_nonblock __accept_nonblock],
      TCPServer => %i[accept sysaccept __accept_nonblock],
      UNIXServer => %i[accept sysaccept __accept_nonblock],
      # Those that seek write what is buffered first, by a plain write(2), as `flush` does to what is in blocking mode.
      ::IO => [:flush, :seek, :rewind, :pos=, :stat, :fcntl, :ioctl, *(:pwrite unless FiberScheduler.method_defined?(:io_pwrite))],
      File => %i[size],
      # With WNOHANG.
      ::Process.singleton_class => %i[wait wait2 waitpid waitpid2],
      ::Process::Status.singleton_class => %i[wait],
      Thread.singleton_class => %i[pass]
    }.then { |turns| Ractor.make_shareable(turns) }
    # Those that start a child, and do not wait for it.
    LONG_TURNS = {
      ::Process.singleton_class => %i[spawn fork], Kernel => %i[spawn fork], Kernel.singleton_class => %i[spawn fork],
      ::IO.singleton_class => %i[popen]
    }.then { |turns| Ractor.make_shareable(turns) }
    private_constant :TURNS, :LONG_TURNS

    # Prepends what takes turns to the methods of a class.
    def self.take_turns_in(owner, names, long: false)
      names = names.select { |name| owner.method_defined?(name, false) || owner.private_method_defined?(name, false) }
      return if names.empty?

      turns = Module.new
      names.each do |name|
        long ? define_long_turn(turns, name) : define_turn(turns, name, owner.instance_method(name).arity)
        turns.__send__(:private, name) if owner.private_method_defined?(name, false)
      end
      owner.prepend(turns)
    end

    # Has methods take turns. Called when the first scheduler is made: programs without one do not pay for it.
    def self.take_turns
      TURNS.each { |owner, names| take_turns_in(owner, names) }
      LONG_TURNS.each { |owner, names| take_turns_in(owner, names, long: true) }
      spare_hooks
      ::IO.prepend(Writing)
      spare(Timeout.singleton_class, Limits) { |file| file&.end_with?("/timeout.rb") }
    end

    # Has methods do without a hook what needs none. Called when the first scheduler is made, or the first of Async's is met.
    def self.spare_hooks
      spare(::IO, Direct, &:nil?)
      Dir.singleton_class.prepend(Listing)
    end

    # Prepends methods that do not call those they take the place of: not where a program has prepended or defined its own.
    # The block is given the file of one, and says whether it is Ruby's own.
    def self.spare(owner, methods)
      return if owner.include?(methods)

      methods.instance_methods(false).each do |name|
        method = owner.instance_method(name)
        methods.remove_method(name) unless method.owner == owner && yield(method.source_location&.first)
      end
      owner.prepend(methods)
    end

    private_class_method :define_turn, :define_long_turn, :take_turns_in, :spare
  end
end
