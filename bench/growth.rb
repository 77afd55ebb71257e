# frozen_string_literal: true

# How the cost of an operation grows with the connections, and with the fibers that wait, and what memory a fiber needs
# that waits for a line; beside the peers that there are. Draws pictures.
#
#   script/with-ruby ruby bench/growth.rb [ROUNDS [FOLDER]]
#
# 100,000 fibers need more mappings than Linux gives a process at first: sysctl vm.max_map_count=1000000.

require_relative "peers"
require_relative "report"
require_relative "sample"
require_relative "workloads"

rounds = Integer(ARGV[0] || 3)
folder = ARGV[1] || "."
TITLES = {
  "echo" => ["CPU time an echo, in us, by connections", :cpu],
  "beside" => ["CPU time of two fibers that talk, in us there and back, by the fibers that wait", :cpu],
  "memory" => ["bytes of memory a fiber that waits in gets, by fibers", :bytes]
}.freeze
COLORS = { "um" => "#3a7d44", "c-gem" => "#b23a48", "carbon" => "#555", "itsi" => "#c77d0a", "async-epoll" => "#3d5a98", "async-uring" => "#7a5c9e" }.freeze

# Lines by peer; both scales are logarithmic, base 10.
def picture(title, numbers, medians)
  values = medians.values.flat_map(&:values)
  floor, roof = Math.log10(values.min).floor, Math.log10(values.max).ceil
  across = ->(number) { 70 + (Math.log10(number.fdiv(numbers.first)) / Math.log10(numbers.last.fdiv(numbers.first)) * 480) }
  up = ->(value) { 330 - ((Math.log10(value) - floor) / (roof - floor) * 280) }
  marks = numbers.map { |number| %(<text x="#{across.call(number).round}" y="350" text-anchor="middle">#{number}</text>) }
  (floor..roof).each do |power|
    y = up.call(10.0**power).round
    marks << %(<line x1="70" x2="550" y1="#{y}" y2="#{y}" stroke="#ddd"/><text x="62" y="#{y + 4}" text-anchor="end">#{(10.0**power).then { |value| value >= 1 ? value.to_i : value }}</text>)
  end
  lines = medians.map do |peer, found|
    points = found.map { |number, value| "#{across.call(number).round},#{up.call(value).round}" }
    last = points.last.split(",").map(&:to_i)
    %(<polyline points="#{points.join(" ")}" fill="none" stroke="#{COLORS.fetch(peer, "#000")}" stroke-width="2"/><text x="#{last[0] + 6}" y="#{last[1] + 4}" fill="#{COLORS.fetch(peer, "#000")}">#{peer}</text>)
  end
  <<~SVG
    <svg xmlns="http://www.w3.org/2000/svg" width="660" height="370" font-family="sans-serif" font-size="12">
    <rect width="100%" height="100%" fill="white"/><text x="70" y="24" font-size="14">#{title}</text>
    #{marks.join("\n")}
    #{lines.join("\n")}
    </svg>
  SVG
end

peers = (Peers::SCHEDULERS.keys).select { |peer| Sample.take("--missing", peer).nil? }
TITLES.each do |name, (title, figure)|
  numbers = Workloads::GROWTH.fetch(name).first
  medians = Hash.new { |hash, peer| hash[peer] = {} }
  numbers.each do |number|
    samples = peers.to_h { |peer| [peer, []] }
    Sample.rounds(rounds, "#{name}:#{number}", samples)
    samples.reject { |_, found| found.empty? }.each { |peer, found| medians[peer][number] = Report.median(found.map { |sample| sample.fetch(figure) }) }
  end
  puts "| #{title} | #{numbers.join(" | ")} |", "|---#{"|---" * numbers.size}|"
  medians.each { |peer, found| puts "| #{peer} | #{numbers.map { |number| found[number] ? format("%.2f", found[number]) : "" }.join(" | ")} |" }
  puts
  $stdout.flush
  File.write(File.join(folder, "growth_#{name}.svg"), picture(title, numbers, medians))
end
