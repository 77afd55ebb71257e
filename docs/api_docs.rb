# frozen_string_literal: true

# Makes docs/api.md of the doc comments in ext/ and lib/. `script/docs` runs it; test/test_docs.rb checks what it makes
# against the built gem.
class ApiDocs
  ROOT = File.expand_path("..", __dir__)
  # The classes, in the order of the page, with what a receiver is called in it.
  SECTIONS = {
    "UringMachine" => "machine", "Fiber" => "fiber", "Thread" => "thread", "UringMachine::Queue" => "queue", "UringMachine::Mutex" => "mutex",
    "UringMachine::AsyncOp" => "operation", "UringMachine::IO" => "io", "UringMachine::BufferPool" => "pool",
    "UringMachine::Actor" => "actor", "UringMachine::Process" => "process", "UringMachine::DNSResolver" => "resolver",
    "UringMachine::BlockingOperationThreadPool" => "pool", "UringMachine::SSL" => "UM::SSL",
    "UringMachine::FiberScheduler" => "scheduler", "UringMachine::Report" => "report", "UringMachine::Doctor" => "doctor"
  }.freeze
  # Modules whose methods are documented as the class's that includes them.
  INCLUDED = { "UringMachine::FiberExtensions" => "Fiber", "UringMachine::ThreadExtensions" => "Thread" }.freeze

  # A documented method. `kind` is "#" or ".".
  Entry = Struct.new(:owner, :kind, :name, :arguments, :text, :tags, :source) do
    def path = "#{owner}#{kind}#{name}"

    def of(tag) = tags.select { |name, _| name == tag }.map(&:last)
  end

  def entries
    @entries ||= (rust_comments + ruby_comments).flat_map { |lines, source| parse(lines, source) }.sort_by { |entry| [entry.owner, entry.name] }
  end

  def markdown
    sections = SECTIONS.filter_map do |owner, receiver|
      found = entries.select { |entry| entry.owner == owner }
      next if found.empty?

      singleton, instance = found.partition { |entry| entry.kind == "." }
      ["## #{owner.sub("UringMachine", "UM")}\n", *(singleton + instance).map { |entry| section(entry, receiver) }].join("\n")
    end
    "#{<<~INTRODUCTION}\n#{sections.join("\n")}"
      # API

      Made from the doc comments by `script/docs`. `UM` is `UringMachine`; a machine is made by `UM.new`.
      Failures of the kernel are raised as `Errno::*`, misuse as `UM::Error`, `ArgumentError` or `TypeError`. Durations are in seconds, sizes and
      offsets in bytes. Where a kernel version is given, older ones lack the operation (6.1 is the oldest that is supported).
    INTRODUCTION
  end

  private

  def rust_comments
    Dir[File.join(ROOT, "ext/**/*.rs")].flat_map do |file|
      comments(file, %r{\A\s*///( ?)(.*)\z}).filter_map { |lines, _, number| [lines, "#{file}:#{number}"] if lines.any?(/\A@method /) }
    end
  end

  # Ruby's comments name no method: the `def` that follows does.
  def ruby_comments
    Dir[File.join(ROOT, "lib/**/*.rb")].flat_map do |file|
      text = File.readlines(file, chomp: true)
      comments(file, /\A\s*#( ?)(.*)\z/).filter_map do |lines, following, number|
        next if lines.any?("@api private") || private?(text, number)

        method = following[/\A\s*def ([^\s(]+(?:\(.*?\))?)(?: = .*)?\z/, 1] || following[/\A\s*attr_reader :(\w+)/, 1]
        next unless method && lines.any?(/\A@(return|raise|param)/)

        owner = owner(text, number)
        method = method.sub("initialize", "new") if method.start_with?("initialize")
        kind = method.start_with?("new", "self.") ? "." : "#"
        path = "#{INCLUDED.fetch(owner, owner)}#{kind}#{method.delete_prefix("self.")}"
        path = path.gsub("(*, **)", "(mod, *arguments, **options)")
        lines = ["@method #{path}", *lines] unless lines.any?(/\A@method /)
        [lines, "#{file}:#{number}"]
      end
    end
  end

  # Runs of comment lines, the line that follows each, and its number.
  def comments(file, pattern)
    runs = []
    lines = []
    File.readlines(file, chomp: true).each_with_index do |line, number|
      if (match = pattern.match(line))
        lines << match[2]
      else
        runs << [lines, line, number] unless lines.empty?
        lines = []
      end
    end
    runs
  end

  def owner(text, number)
    indent = text[number][/\A */].size
    text[0...number].reverse.filter_map do |line|
      next unless (match = /\A( *)(?:class|module) ([\w:]+)/.match(line)) && match[1].size < indent

      indent = match[1].size
      match[2]
    end.reverse.join("::")
  end

  def private?(text, number)
    indent = text[number][/\A */]
    text[0...number].reverse.each do |line|
      return true if line == "#{indent}private"
      return false if line.match?(/\A *(class|module) /) && line[/\A */].size < indent.size
    end
    false
  end

  def parse(lines, source)
    tags = []
    text = []
    lines.each do |line|
      if (match = /\A@(\w+) ?(.*)\z/.match(line))
        tags << [match[1], +match[2]]
      elsif tags.empty? || tags.last[0] == "method"
        text << line
      else
        tags.last[1] << (tags.last[0] == "example" ? "\n#{line.delete_prefix("  ")}" : " #{line.strip}")
      end
    end
    methods = tags.select { |name, _| %w[method alias].include?(name) }.map(&:last)
    rest = tags.reject { |name, _| %w[method alias].include?(name) }
    methods.map do |method|
      match = /\A([\w:]+?)([#.])([^\s(]+)(.*)\z/.match(method) or raise "#{source}: cannot read #{method.inspect}"
      Entry.new(match[1], match[2], match[3], match[4].strip, text.join("\n").strip, rest, source)
    end
  end

  def section(entry, receiver)
    receiver = entry.owner.sub("UringMachine", "UM") if entry.kind == "."
    returns = entry.of("return").map { |text| "- returns #{typed(text)}" }
    <<~MARKDOWN
      ### `#{receiver}.#{entry.name}#{entry.arguments}`

      #{entry.text}

      #{[*parameters(entry), *returns, *entry.of("raise").map { |text| "- raises #{typed(text)}" }, *entry.of("kernel").map { |text| "- Linux #{text}" }].join("\n")}

      ```ruby
      #{entry.of("example").map(&:strip).join("\n")}
      ```
    MARKDOWN
      .gsub(/\n{3,}/, "\n\n")
  end

  def parameters(entry)
    entry.of("param").map { |text| "- #{text.sub(/\A(\S+) \[(.*?)\](?= |\z)/) { "`#{$1}` (#{$2})" }}" } +
      entry.of("yieldparam").map { |text| "- the block is given #{text.sub(/\A(\S+) \[(.*?)\](?= |\z)/) { "`#{$1}` (#{$2})" }}" }
  end

  def typed(text) = text.sub(/\A\[(.*?)\](?= |\z)/) { "`#{$1}`" }.sub(/\A(`[^`]*`) /, "\\1: ")
end

File.write(File.join(__dir__, "api.md"), ApiDocs.new.markdown) if $PROGRAM_NAME == __FILE__
