# frozen_string_literal: true

require "json"

# docs/compatibility.md, of the figures that `script/compat` has measured: a file with a line of JSON for each program.
#
#   ruby docs/compatibility.rb FIGURES
module Compatibility
  # Why a program's longest gap is what it is, where it is long.
  REASONS = {
    /COPY|copied in and out/ => "pg hands rows to libpq, which waits only when the socket is full: a fiber computes until then",
    /GETs over TLS/ => "each handshake computes for about 2 ms, and those that are ready go in turn",
    /100 MB both ways/ => "bodies of 100 MB are put together, copied and compared at one go",
    /Open3|PTY/ => "`fork` and `spawn`, until the child has started its program",
    /CSV/ => "what has been read is parsed at one go, by each of 20 in turn",
    /Zlib/ => "1 MB is packed by a worker, without Ruby's lock; what is put together of it is copied at one go",
    /to one file|every 20 KB|Find/ => "operations that need not wait: each of those that are ready lets go after 4 ms",
    /prepared statements/ => "mysql2 prepares and executes within the C library, which holds the thread until each answer",
    /mysql2:.*(?:started again|cut short)/ => "mysql2 connects within the C library, which holds the thread meanwhile",
    /on sqlite3/ => "SQLite reads and writes its file in the thread",
    /net-ldap|ActiveRecord on pg/ => "fibers that compute in turn",
    /requests of 50|kept-alive/ => "threads, or fibers, that compute in turn"
  }.freeze
  # From here on a reason is wanted.
  LONG = 0.05

  def self.page(lines)
    <<~PAGE
      # Real libraries on real servers

      Programs of `test/compat`, in fibers under the scheduler, beside a fiber that ticks every 5 ms; the same in threads says what is right and
      what it costs. Each asserts its results: bytes, counts, order, the classes of exceptions. `script/compat` fetches the gems and servers from
      Debian, runs all, and writes this page.

      The gap is the longest time by which a tick came late, in milliseconds; CPU is that of the whole process, to the same program's in threads.
      Ruby #{lines.map { |line| line["ruby"] }.uniq.join(", ")}, on a machine of two processors that did other work too: a gap differs by some tens of milliseconds from run
      to run, with fibers as with threads.

      #{lines.group_by { |line| line["row"] }.map { |row, of_row| section(row, of_row) }.join("\n")}
    PAGE
  end

  def self.section(row, lines)
    versions = lines.map { |line| line["versions"].to_h }.reduce(:merge).map { |name, version| "#{name} #{version}" }
    <<~SECTION
      ## #{row}

      #{versions.join(", ")}

      | program | requests | longest gap | in threads | CPU to threads | what the gap is |
      |---|---|---|---|---|---|
      #{lines.sort_by { |line| line["program"] }.map { |line| table_row(line) }.join("\n")}
    SECTION
  end

  def self.table_row(line)
    fibers, threads = line.values_at("fibers", "threads")
    gaps = [fibers, threads].map { |figures| format("%.0f", figures["gap"] * 1000) }
    reason = REASONS.find { |pattern, _| pattern.match?(line["program"]) }&.last if fibers["gap"] > LONG
    "| #{[line["program"], line["requests"], *gaps, format("%.2f", fibers["cpu"] / threads["cpu"]), reason].join(" | ")} |"
  end
end

puts Compatibility.page(File.readlines(ARGV.fetch(0)).map { |line| JSON.parse(line) }) if $PROGRAM_NAME == __FILE__
