# frozen_string_literal: true

class UringMachine
  # Opens a process, to send it signals and to wait for its end. With a block, gives it to the block and closes it
  # however the block ends.
  #
  # @param pid [Integer] a child, or any other process. A number is safe while it cannot have been given to another
  #   process: that of a child that nobody has reaped is
  # @yieldparam process [UringMachine::Process]
  # @return [UringMachine::Process, Object] the process, or what the block returns
  # @raise [Errno::ESRCH] if there is no such process
  # @raise [TypeError] if pid is no Integer
  # @raise [ArgumentError] if it is not positive, or too large
  # @example
  #   machine.process_open(pid) { |process| process.kill(:TERM).wait(timeout: 5) }
  def process_open(pid, &block) = Process.open(pid, self, &block)
end
