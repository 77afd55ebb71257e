# frozen_string_literal: true

require "strscan"
require "uringmachine"
require "uringmachine/command"
require_relative "api_docs"

# Makes sig/uringmachine.rbs: the signatures of the doc comments, with the classes and constants of the built gem.
# `script/docs` runs it; test/test_rbs.rb checks what it makes against the built gem.
class Rbs
  FILE = File.join(ApiDocs::ROOT, "sig", "uringmachine.rbs")
  HEADER = "# Made from the doc comments by `script/docs`.\n\nclass UM = UringMachine\n"
  # YARD's words for what is no class of Ruby's.
  WORDS = { "Object" => "untyped", "Boolean" => "bool", "nil" => "nil", "true" => "true", "false" => "false", "void" => "void",
            # RBS 3 has none.
            "ObjectSpace::WeakMap" => "untyped" }.freeze
  # Classes of so many parameters that the comments leave out.
  GENERIC = { "Array" => 1, "Set" => 1, "Struct" => 1, "Hash" => 2 }.freeze

  # What may be asked for by what it answers to.
  INTERFACES = { "#to_path" => "::_ToPath", "#call" => "::UringMachine::_Call", "#raise" => "::UringMachine::_Raise", "#alive?" => "::UringMachine::_Alive" }.freeze
  INTERFACE_BODIES = <<~RBS.gsub(/^(?=.)/, "  ")
    interface _Call
      def call: () -> untyped
    end

    interface _Raise
      def raise: (*untyped arguments) -> untyped
    end

    interface _Alive
      def alive?: () -> boolish
    end
  RBS

  # Reads a list of YARD's types.
  class Types
    def self.rbs(text) = new(StringScanner.new(text)).all

    def initialize(scanner)
      @scanner = scanner
    end

    def all = union.tap { expect(/\z/) }

    private

    def union
      types = list.uniq
      return "untyped" if types.include?("untyped")

      types.push("nil") if (optional = types.delete("nil"))
      optional && types.size == 2 && !types.first.start_with?(/:\w/) ? "#{types.first}?" : types.join(" | ")
    end

    def one
      return INTERFACES.fetch("##{@scanner[1]}") if @scanner.skip(/#(\w+\??)/)

      name = @scanner.scan(/:?[\w:]+/) or raise ArgumentError, "cannot read the type #{@scanner.string}"
      return name if name.start_with?(/:\w/)
      return WORDS.fetch(name) if WORDS.key?(name)

      generic(name)
    end

    def list
      types = [one]
      types << one while @scanner.skip(/, /)
      types
    end

    def generic(name)
      if @scanner.skip(/</)
        "::#{name}[#{union}]".tap { expect(/>/) }
      elsif @scanner.skip(/\(/)
        "[#{list.join(", ")}]".tap { expect(/\)/) }
      elsif @scanner.skip(/\{/)
        key = one
        expect(/ => /)
        "::#{name}[#{key}, #{union}]".tap { expect(/\}/) }
      else
        GENERIC.key?(name) ? "::#{name}[#{(["untyped"] * GENERIC[name]).join(", ")}]" : "::#{name}"
      end
    end

    def expect(mark)
      @scanner.skip(mark) or raise ArgumentError, "cannot read the type #{@scanner.string}"
    end
  end

  # One method's line, of its entry in the documentation.
  class Signature
    def initialize(entry)
      @entry = entry
    end

    def rbs
      return "  def initialize: (#{parameters(@entry.arguments)}) -> void" if @entry.path.end_with?(".new")

      "  def #{"self." if @entry.kind == "."}#{@entry.name}: #{forms.flat_map { |arguments| overloads(parameters(arguments)) }.join(" | ")}"
    end

    # As Method#parameters has them.
    def self.parameters(arguments)
      Module.new.tap { |mod| mod.module_eval("def example#{arguments} = nil", __FILE__, __LINE__) }.instance_method(:example).parameters
    end

    private

    # Neither Ruby nor RBS knows an optional argument behind those of any number: it is there or not.
    def forms
      optional = /(\*\w+), (\w+) = [^,)]+/
      @entry.arguments.match?(optional) ? ["\\1", "\\1, \\2"].map { |form| @entry.arguments.sub(optional, form) } : [@entry.arguments]
    end

    # With a block and without, where what is returned depends on it.
    def overloads(parameters)
      return ["(#{parameters}) #{"?#{block} " if block?}-> #{result}"] if !block? || block_is_optional?
      return ["(#{parameters}) #{block} -> #{result}"] unless returns_what_the_block_does?

      with = "[T] (#{parameters}) #{block("T")} -> T"
      types = returned.sub(/, Object\z/, "")
      types == returned ? [with] : ["(#{parameters}) -> #{in_parentheses(Types.rbs(types))}", with]
    end

    def block? = @entry.arguments.include?("&") || !@entry.of("yieldparam").empty?
    def block_is_optional? = @entry.of("yieldparam").any?(/without a block/)
    def returns_what_the_block_does? = @entry.of("return").any?(/what the block returns/)

    def block(result = "void")
      given = @entry.of("yieldparam").map { |text| text.match(/\A(\S+) \[(.*?)\](?= |\z)/) { |match| "#{Types.rbs(match[2])} #{match[1]}" } }
      "{ (#{given.join(", ")}) -> #{result} }"
    end

    def returned = @entry.of("return").first[/\A\[(.*?)\](?= |\z)/, 1]
    def result = @entry.of("return").first.match?(/\] self\b/) ? "self" : in_parentheses(Types.rbs(returned))
    def in_parentheses(type) = type.include?(" | ") && !type.match?(/\A\S+\[.*\]\z/) ? "(#{type})" : type

    def parameters(arguments)
      self.class.parameters(arguments).filter_map do |kind, name|
        case kind
        when :req then "#{type(name)} #{name}"
        when :opt then "?#{type(name, nothing: arguments.include?("#{name} = nil"))} #{name}"
        when :rest then "*#{element(name)}"
        when :keyreq then "#{name}: #{type(name)}"
        when :key then "?#{name}: #{type(name, nothing: arguments.include?("#{name}: nil"))}"
        when :keyrest then "**untyped"
        end
      end.join(", ")
    end

    def documented(name) = @entry.of("param").filter_map { |text| text[/\A#{name} \[(.*?)\](?= |\z)/, 1] }.first
    # What is nil when it is left out may be given as nil.
    def type(name, nothing: false) = Types.rbs([documented(name) || "Object", *("nil" if nothing)].join(", "))

    # Of what is taken as an Array.
    def element(name)
      type = documented(name)
      [type ? Types.rbs(type[/\AArray<(.*)>\z/, 1] || "Object") : "untyped", *(name if name.match?(/\A\w/))].join(" ")
    end
  end

  # What Ruby itself calls, or what only the gem's own parts call: no part of the API.
  INTERNAL = %w[UringMachine::SSL.take UringMachine::Actor.start UringMachine::Actor#prepare UringMachine::Actor#run UringMachine::Actor.new UringMachine::Report.new].freeze

  # The gem's classes and modules.
  def self.modules
    modules = [UringMachine]
    modules.each do |found|
      inner = found.constants.map { |name| found.const_get(name) }.grep(Module)
      modules.concat(inner.select { |one| one.name.start_with?("UringMachine") } - modules)
    end
    modules.sort_by(&:name)
  end

  # The gem's public methods, as the documentation names them.
  def self.public_methods_by_path
    found = modules.flat_map do |mod|
      owner = ApiDocs::INCLUDED.fetch(mod.name, mod.name)
      mod.public_instance_methods(false).map { |name| "#{owner}##{name}" } + mod.singleton_methods(false).map { |name| "#{owner}.#{name}" }
    end
    found - INTERNAL
  end

  def text
    [HEADER, *[Fiber, Thread, *self.class.modules].reject { |found| ApiDocs::INCLUDED.key?(found.name) }.map { |found| declaration(found) }].join("\n")
  end

  private

  def declaration(found)
    methods = entries.fetch(found.name, []).sort_by { |entry| [entry.path.end_with?(".new") ? 0 : 1, entry.kind == "." ? 0 : 1, entry.name] }
    paragraphs = [methods.map { |entry| Signature.new(entry).rbs }]
    paragraphs.unshift(constants(found)) if found.name.start_with?("UringMachine")
    paragraphs.insert(1, [INTERFACE_BODIES.chomp]) if found == UringMachine
    [head(found), *paragraphs.reject(&:empty?).map { |lines| lines.join("\n") }.join("\n\n").then { |body| body.empty? ? [] : [body] }, "end\n"].join("\n")
  end

  def entries = @entries ||= ApiDocs.new.entries.group_by(&:owner)

  def head(found)
    return "module #{found.name}" unless found.is_a?(Class)

    superclass = found.superclass
    superclass == Object ? "class #{found.name}" : "class #{found.name} < ::#{superclass.name}"
  end

  def constants(found)
    found.constants(false).sort.filter_map do |name|
      value = found.const_get(name)
      "  #{name}: #{Types.rbs(value.class.name)}" unless value.is_a?(Module)
    end
  end
end

if $PROGRAM_NAME == __FILE__
  Dir.mkdir(File.dirname(Rbs::FILE)) unless Dir.exist?(File.dirname(Rbs::FILE))
  File.write(Rbs::FILE, Rbs.new.text)
end
