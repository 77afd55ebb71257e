# frozen_string_literal: true

# Copies files, all at a time, through the ring.
#
#   script/with-ruby ruby examples/copy_files.rb FILE… FOLDER

require "uringmachine"

CHUNK = 1 << 20

*sources, folder = ARGV
abort "usage: copy_files.rb FILE… FOLDER" if sources.empty? || !File.directory?(folder)

Fiber.set_scheduler(UM::FiberScheduler.new)

sources.each do |source|
  Fiber.schedule do
    target = File.join(folder, File.basename(source))
    bytes = 0
    File.open(source, "rb") do |input|
      File.open(target, "wb") do |output|
        while (chunk = input.read(CHUNK))
          bytes += output.write(chunk)
        end
      end
    end
    puts "#{source} -> #{target}: #{bytes} bytes"
  end
end
