# frozen_string_literal: true

module Model
  # A program as a Ruby script that stands alone: it plays the program in the mode it is given, or else in all of them.
  module Script
    # In the order in which they need each other.
    PARTS = %w[writes reads waits messages episodes side conversation play].freeze
    LIBRARIES = %w[fileutils io/console io/nonblock io/wait json monitor openssl pty socket stringio tempfile timeout tmpdir uringmachine].freeze
    # A method that is left out unless the program, or another method, names it; with its comment.
    METHOD = /(?:^    # .*\n)*^    def (?:put|take|wait|left|right)_(\w+)(?:.* = .*\n|[\s\S]*?^    end\n)\n?/

    TAIL = <<~'RUBY'
      if (mode = ARGV.first)
        puts JSON.pretty_generate(Model::Play.play(PROGRAM, mode.to_sym))
      else
        Model::Play::MODES.each { |mode| puts(mode) || system(RbConfig.ruby, __FILE__, mode.to_s) }
      end
    RUBY

    # @param program [Array<Array>]
    # @param head [String] what is to be said first, in comments
    # @return [String]
    def self.of(program, head)
      parts = ["../identity", *PARTS].map { |part| File.read(File.join(__dir__, "#{part}.rb")).delete_prefix("# frozen_string_literal: true\n\n") }
      ["# frozen_string_literal: true\n", head.gsub(/^/, "# "), LIBRARIES.map { |name| "require #{name.inspect}" }.join("\n"),
       "\n", needed(program, parts.join("\n")), "PROGRAM = #{literal(program)}.freeze\n", TAIL].join("\n")
    end

    # Without the methods that nobody calls.
    def self.needed(program, text)
      names = program.flatten.grep(Symbol).map(&:to_s)
      methods = text.to_enum(:scan, METHOD).map { [$1, $&] }
      called = methods.select { |name,| names.include?(name) }
      rest = text.gsub(METHOD, "")
      loop do
        seen = rest + called.map(&:last).join
        more = (methods - called).select { |name, code| seen.match?(/(?<!def )\b#{code[/def (\w+)/, 1]}\b/) && name }
        break if more.empty?

        called += more
      end
      text.gsub(METHOD) { called.include?([$1, $&]) ? $& : "" }.gsub(/\n+(?=\n  end$)/, "")
    end

    def self.literal(program)
      lines = program.map do |kind, episodes|
        "  [#{kind.inspect}, [\n#{episodes.map { |episode| "    #{episode.inspect}" }.join(",\n")}\n  ]]"
      end
      "[\n#{lines.join(",\n")}\n]"
    end
    private_class_method :needed, :literal
  end
end
