# frozen_string_literal: true

require "timeout"

class UringMachine
  module CoreGaps
    # Timeout.timeout without `timeout_after` and what Ruby makes for that. Prepended by `take_turns` in turns.rb.
    module Limits
      CoreGaps.define_timeout(self)
    end
    private_constant :Limits
  end
end
