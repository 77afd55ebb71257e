# frozen_string_literal: true

# A machine beneath Async, and whatever else runs on io-event: IO_EVENT_SELECTOR=UringMachine, or
# `Async::Scheduler.new(selector: UM::Selector.new(Fiber.current))`. See docs/async.md.

require "io/event"
require "uringmachine"

IO::Event::Selector::UringMachine = UringMachine::Selector
