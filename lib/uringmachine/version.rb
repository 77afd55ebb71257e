# frozen_string_literal: true

class UringMachine
  # The version of the gem.
  VERSION = "0.1.0"
end
