# frozen_string_literal: true

# Loads the extension. A platform gem has one for each version of Ruby; the gem from source, and a clone, have the one that was built.
packaged = Dir.exist?(File.join(__dir__, RUBY_VERSION[/\A\d+\.\d+/]))
begin
  packaged ? require_relative("#{RUBY_VERSION[/\A\d+\.\d+/]}/uringmachine") : require("uringmachine/uringmachine")
rescue LoadError => e
  remedy = packaged ? "the gem from source" : "gem pristine uringmachine"
  raise LoadError, "the extension for Ruby #{RUBY_VERSION} cannot be loaded (#{e.message}); #{remedy} builds one"
end
