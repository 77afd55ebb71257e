# frozen_string_literal: true

# The floors of ext/, and how much of it lies in `unsafe`.
#
#   ruby docs/house.rb    prints the table
module House
  ROOT = File.expand_path("../ext/uringmachine/src", __dir__)
  # From the ground up: a floor uses those below it. lib.rs is the roof.
  FLOORS = %w[ruby os lending machine off_thread tls classes methods hooks adapters].freeze

  def self.sources
    Dir.glob("**/*.rs", base: ROOT).sort.to_h { |file| [file, File.read(File.join(ROOT, file))] }
  end

  # Imports of a higher floor: file, line, floor.
  def self.upward_imports(sources = self.sources)
    sources.flat_map do |file, text|
      floor = FLOORS.index(file[%r{\A\w+(?=/)}]) or next []
      text.each_line.with_index(1).flat_map do |line, number|
        above = line.sub(%r{//.*}, "").scan(/\bcrate::(\w+)/).flatten.select { |name| (FLOORS.index(name) || FLOORS.size) > floor }
        above.map { |name| [file, number, name] }
      end
    end
  end

  # A file's text with comments, strings, and tests taken out, line by line.
  def self.code(text)
    text = text.sub(/^#\[cfg\(test\)\]\nmod \w+ \{.*\z/m, "")
    text.gsub(%r{//[^\n]*|/\*.*?\*/|b?"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'}m) { |taken| taken.gsub(/[^\n]/, " ") }
  end

  # Lines in `unsafe` blocks and functions of a text.
  def self.unsafe_lines(code)
    marked = {}
    code.to_enum(:scan, /\bunsafe\b/).each do
      start = $~.begin(0)
      opened = code.index(/[{;]/, start) or next
      next if code[opened] == ";"

      depth = 0
      ended = (opened...code.size).find do |place|
        depth += { "{" => 1, "}" => -1 }.fetch(code[place], 0)
        depth.zero?
      end
      (code[0...start].count("\n")..code[0..ended || -1].count("\n")).each { |line| marked[line] = true }
    end
    code.lines.each_index.count { |line| marked[line] && !code.lines[line].strip.empty? }
  end

  # By floor: files, lines of code, functions, unsafe functions, unsafe lines, files of more than 500 lines.
  def self.table(sources = self.sources)
    sources.group_by { |file, _| file[%r{\A\w+(?=/)}] || "lib.rs" }.transform_values do |files|
      codes = files.map { |_, text| code(text) }
      {
        files: files.size, lines: codes.sum { |code| code.lines.count { |line| !line.strip.empty? } },
        functions: codes.sum { |code| code.scan(/\bfn \w/).size }, unsafe_functions: codes.sum { |code| code.scan(/\bunsafe (?:extern\s+fn|extern\s+\S*\s*fn|fn) \w/).size },
        unsafe_lines: codes.sum { |code| unsafe_lines(code) }, long: files.count { |_, text| text.lines.size > 500 }
      }
    end
  end

  def self.print_table
    rows = table
    rows["all of ext/"] = rows.values.reduce { |sum, row| sum.merge(row) { |_, a, b| a + b } }
    puts "| floor | files | lines of code | functions | unsafe functions | lines in unsafe | files over 500 lines |", "|---|---|---|---|---|---|---|"
    [*FLOORS, *(rows.keys - FLOORS)].each do |floor|
      row = rows.fetch(floor, nil) or next
      puts "| #{floor} | #{row[:files]} | #{row[:lines]} | #{row[:functions]} | #{row[:unsafe_functions]} | #{row[:unsafe_lines]} (#{(100.0 * row[:unsafe_lines] / row[:lines]).round(1)} %) | #{row[:long]} |"
    end
  end
end

House.print_table if $PROGRAM_NAME == __FILE__
