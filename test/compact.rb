# frozen_string_literal: true

# Required before anything else (RUBYOPT), in the tests' children too: objects move at each major collection.
GC.auto_compact = true
