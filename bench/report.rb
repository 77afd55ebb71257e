# frozen_string_literal: true

# What a run has found, as lines, tables and a picture.
class Report
  OURS = %w[um machine].freeze
  # Which no gem is.
  NO_GEMS = %w[threads nginx floor].freeze
  # What is wanted was set beside these (carbon_fiber was not among them), and beside plain threads for what only looks at files
  # or computes.
  MEASURED_BY = %w[async-epoll async-uring c-gem itsi].freeze
  BESIDE_THREADS = %w[file_stat glob inflate].freeze

  def self.median(values) = values.sort[values.size / 2]

  # A workload, the ratio wanted, and the samples of each peer.
  Row = Struct.new(:name, :wanted, :samples) do
    # The median of one figure of each peer.
    def medians(figure)
      samples.transform_values { |found| found.filter_map { |sample| sample[figure] } }
             .reject { |_, values| values.empty? }
             .transform_values { |values| Report.median(values) }
    end

    def cpu = medians(:cpu)

    def ours = cpu.values_at(*OURS).compact.first

    # The name of the best other gem, and its time.
    def best = cpu.except(*OURS, *NO_GEMS).min_by(&:last)

    def ratio = (ours / best.last if ours && best)

    # Beside what is wanted.
    def measure
      time = cpu.slice(*(BESIDE_THREADS.include?(name) ? ["threads"] : MEASURED_BY)).values.min
      ours / time if ours && time
    end

    # To nginx, or the floor.
    def bound = cpu.slice("nginx", "floor").values.first.then { |time| ours / time if time && ours }

    def line
      spreads = samples.transform_values { |found| found.map { |sample| sample[:cpu] }.minmax }
      parts = cpu.map do |peer, time|
        shares = medians(:user).slice(peer).map { |_, user| format("%.2f user, ", user) }.join
        format("%s %.2f (%s%.2f-%.2f)", peer, time, shares, *spreads[peer])
      end
      format("%-12s %s%s", name, parts.join("  "), ratio ? format("  ratio %.2f, measure %.2f, wanted %.2f", ratio, measure || ratio, wanted) : "")
    end
  end

  def initialize(rows)
    @rows = rows
  end

  # Tables of the scheduler and of the machine, and one of latencies.
  def markdown
    machine, scheduler = @rows.partition { |row| row.samples.key?("machine") }
    tables = [scheduler, machine].reject(&:empty?).map { |rows| costs(rows) }
    timed = @rows.select { |row| row.medians(:p50).any? }
    tables << latencies(timed) unless timed.empty?
    "#{tables.join("\n\n")}\n"
  end

  # Bars: ours to the best other gem.
  def picture
    rows = @rows.select(&:ratio)
    height = 26
    width = 360
    bars = rows.each_with_index.map do |row, index|
      y = 40 + (index * height)
      long = (row.ratio * width).clamp(1, 520).round
      <<~SVG
        <text x="150" y="#{y + 15}" text-anchor="end">#{row.name}</text>
        <rect x="160" y="#{y + 2}" width="#{long}" height="#{height - 8}" fill="#{row.ratio < 1 ? "#3a7d44" : "#b23a48"}"/>
        <line x1="#{160 + (row.wanted * width)}" x2="#{160 + (row.wanted * width)}" y1="#{y}" y2="#{y + height - 4}" stroke="#222"/>
        <text x="#{166 + long}" y="#{y + 15}">#{format("%.2f", row.ratio)} #{row.best.first}</text>
      SVG
    end
    <<~SVG
      <svg xmlns="http://www.w3.org/2000/svg" width="840" height="#{60 + (rows.size * height)}" font-family="sans-serif" font-size="13">
      <rect width="100%" height="100%" fill="white"/>
      <text x="160" y="22">CPU time per operation to the best other gem, in one run (lower is better; the mark is what is wanted)</text>
      <line x1="#{160 + width}" x2="#{160 + width}" y1="32" y2="#{45 + (rows.size * height)}" stroke="#999"/>
      #{bars.join}</svg>
    SVG
  end

  private

  def costs(rows)
    peers = rows.flat_map { |row| row.samples.keys }.uniq
    lines = rows.map do |row|
      cells = peers.map { |peer| cell(row, peer) }
      "| #{row.name} | #{cells.join(" | ")} | #{row.best&.first} | #{number(row.ratio)} | #{number(row.measure)} | #{number(row.wanted)} | #{met(row)} | #{number(row.bound)} |"
    end
    head = "| workload | #{peers.join(" | ")} | best gem | to it | measure | wanted | met | to nginx, or the floor |"
    [head, "|---#{"|---" * (peers.size + 6)}|", *lines].join("\n")
  end

  # CPU time, and how much of it was the program's own.
  def cell(row, peer)
    time = row.cpu[peer]
    user = row.medians(:user)[peer]
    return number(time).to_s unless time && user

    "#{number(time)} (#{number(user)})"
  end

  def met(row)
    return unless row.measure

    row.measure <= row.wanted ? "yes" : "no"
  end

  def number(value) = value && format("%.2f", value)

  def latencies(rows)
    peers = rows.flat_map { |row| row.samples.keys }.uniq
    lines = rows.map do |row|
      cells = peers.map { |peer| %i[p50 p99 p999].map { |figure| row.medians(figure)[peer] }.compact.join(" / ") }
      "| #{row.name} | #{cells.join(" | ")} |"
    end
    ["| p50 / p99 / p99.9 in us | #{peers.join(" | ")} |", "|---#{"|---" * peers.size}|", *lines].join("\n")
  end
end
