# frozen_string_literal: true

# Measures workloads with peers and prints CPU time per operation, user and system apart, and its ratio to the best other
# gem in the same run. Each measurement is a process of its own, and the peers take turns.
#
#   script/bench [--rounds N] [--peers a,b] [--markdown FILE] [--picture FILE.svg] [--json FILE] [WORKLOAD…]

require "json"
require "optparse"
require_relative "peers"
require_relative "workloads"
require_relative "machine_workloads"
require_relative "report"
require_relative "sample"

WORKLOADS = Workloads::ALL.merge(MachineWorkloads::ALL).freeze

options = { rounds: 5, peers: Peers::NAMES }
OptionParser.new do |parser|
  parser.banner = "Usage: script/bench [options] [workload…]\nWorkloads: #{WORKLOADS.keys.join(", ")}"
  parser.on("--rounds N", Integer, "measurements of each (5)") { |rounds| options[:rounds] = rounds }
  parser.on("--peers LIST", Array, "of #{Peers::NAMES.join(", ")}; ours is always measured") { |peers| options[:peers] = peers }
  parser.on("--markdown FILE", "write the tables there too") { |file| options[:markdown] = file }
  parser.on("--picture FILE", "draw the ratios as SVG") { |file| options[:picture] = file }
  parser.on("--json FILE", "write all samples there") { |file| options[:json] = file }
end.parse!
unknown = ARGV - WORKLOADS.keys
abort "no such workload: #{unknown.join(", ")}" unless unknown.empty?

# Those that can run here. Each is asked in a process of its own: two have the same names.
def available(peers)
  peers.select do |peer|
    reason = Sample.take("--missing", peer)
    warn "#{peer} is skipped: #{reason}" if reason
    reason.nil?
  end
end

scheduler_peers = available(["um", *options[:peers]].uniq)
machine_peers = available(MachineWorkloads::PEERS.select { |peer| peer == "machine" || peer == "floor" || scheduler_peers.include?(peer) })
names = ARGV.empty? ? WORKLOADS.keys : ARGV
rows = names.map do |name|
  workload = WORKLOADS.fetch(name)
  peers = MachineWorkloads::ALL.key?(name) ? machine_peers : scheduler_peers
  samples = peers.reject { |peer| workload.missing(peer) }.to_h { |peer| [peer, []] }
  Sample.rounds(options[:rounds], name, samples)
  row = Report::Row.new(name, workload.wanted, samples.reject { |_, found| found.empty? })
  puts row.line
  $stdout.flush
  row
end

report = Report.new(rows)
File.write(options[:markdown], report.markdown) if options[:markdown]
File.write(options[:picture], report.picture) if options[:picture]
File.write(options[:json], JSON.pretty_generate(rows.to_h { |row| [row.name, row.samples] })) if options[:json]
