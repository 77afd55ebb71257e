# frozen_string_literal: true

# Async on a machine of ours, beside Async on io-event's own selectors: CPU time an operation.
#
#   UM_BENCH_IO_EVENT=FOLDERS script/with-ruby ruby bench/async.rb [ROUNDS [WORKLOAD…]]

require_relative "peers"
require_relative "report"
require_relative "sample"
require_relative "workloads"

PEERS = %w[async-um async-epoll async-uring].freeze
ROWS = %w[spawn pipe ping_pong sleep sleep_zero mutex queue timeout pread small_files file_write processes tcp_echo http_64 http_1000].freeze

rounds = Integer(ARGV.shift || 3)
PEERS.each { |peer| (reason = Sample.take("--missing", peer)) && abort("#{peer}: #{reason}") }
puts "| workload | #{PEERS.join(" | ")} | to the better |", "|---#{"|---" * (PEERS.size + 1)}|"
(ARGV.empty? ? ROWS : ARGV).each do |name|
  Workloads::ALL.fetch(name)
  samples = PEERS.to_h { |peer| [peer, []] }
  Sample.rounds(rounds, name, samples)
  times = samples.reject { |_, found| found.empty? }.transform_values { |found| Report.median(found.map { |sample| sample.fetch(:cpu) }) }
  others = times.except(PEERS.first).values.min
  ratio = format("%.2f", times[PEERS.first] / others) if times[PEERS.first] && others
  puts "| #{name} | #{PEERS.map { |peer| times[peer] && format("%.2f", times[peer]) }.join(" | ")} | #{ratio} |"
  $stdout.flush
end
