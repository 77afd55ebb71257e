# frozen_string_literal: true

# For programs that were written for uringmachine 1.0, where the scheduler is required by itself.
require "uringmachine"
