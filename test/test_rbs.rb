# frozen_string_literal: true

require_relative "test_helper"
require_relative "../docs/rbs"

# sig/uringmachine.rbs against the built gem.
class TestRbs < Minitest::Test
  # What a call may give, as the file says.
  Shape = Struct.new(:required, :optional, :rest, :required_keys, :keys, :other_keys) do
    # Of parameters as Method#parameters has them.
    def self.of(parameters)
      kinds = parameters.group_by(&:first).transform_values { |found| found.map { |_, name| name } }
      kinds.default = []
      new(kinds[:req].size, kinds[:opt].size, kinds[:rest].any?, kinds[:keyreq].sort, kinds[:key].sort, kinds[:keyrest].any?)
    end

    def keys? = required_keys.any? || keys.any? || other_keys
    # How many arguments a native method may say it takes: keywords are one Hash to it, which it may count.
    def ranges
      range = required..(required + optional)
      keys? ? [range, (required + (required_keys.any? ? 1 : 0))..(range.max + 1)] : [range]
    end
  end

  # The shapes of each method, by its path.
  def signatures
    @signatures ||= begin
      owner = nil
      File.readlines(Rbs::FILE, chomp: true).each_with_object({}) do |line, found|
        owner = $1 if line =~ /\A(?:class|module) ([\w:]+)(?!.* = )/
        next unless line =~ /\A  def (self\.)?(\S+): (.*)\z/

        path = $2 == "initialize" ? "#{owner}.new" : "#{owner}#{$1 ? "." : "#"}#{$2}"
        found[path] = $3.split(/ \| (?=(?:\[T\] )?\()/).map { |overload| shape(overload) }
      end
    end
  end

  def shape(overload)
    Shape.of(arguments(overload[/\((.*)/, 1]).map do |text|
      case text
      when /\A\*\*/ then [:keyrest, :**]
      when /\A\*/ then %i[rest *]
      when /\A\?(\w+): / then [:key, $1.to_sym]
      when /\A(\w+): / then [:keyreq, $1.to_sym]
      when /\A\?/ then [:opt]
      else [:req]
      end
    end)
  end

  # What stands up to the parenthesis that closes, split at the commas that are in no other.
  def arguments(text)
    depth = 0
    found = [+""]
    text.each_char do |letter|
      depth += { "(" => 1, "[" => 1, ")" => -1, "]" => -1 }.fetch(letter, 0)
      break if depth.negative?

      letter == "," && depth.zero? ? found << +"" : found.last << letter
    end
    found.map(&:strip).reject(&:empty?)
  end

  def method_at(path)
    owner, kind, name = /\A([\w:]+?)([#.])(.*)\z/.match(path).captures
    owner = Object.const_get(owner)
    return owner.instance_method(name) if kind == "#"

    name == "new" ? owner.instance_method(:initialize) : owner.method(name)
  end

  def shapes_and_methods
    signatures.filter_map do |path, shapes|
      [path, shapes, method_at(path)]
    rescue NameError
      raise unless path == "UringMachine::FiberScheduler#io_pwrite" && UM::FiberScheduler.interface_version < 3
    end
  end

  def test_the_file_is_up_to_date
    assert Rbs.new.text == File.read(Rbs::FILE), "sig/uringmachine.rbs is not what script/docs makes"
  end

  def test_every_public_method_has_a_signature
    assert_empty Rbs.public_methods_by_path - signatures.keys
  end

  def test_every_signature_is_a_methods
    assert_equal signatures.size, shapes_and_methods.size + (UM::FiberScheduler.interface_version < 3 ? 1 : 0)
  end

  def test_methods_in_ruby_take_what_their_signatures_say
    ruby = shapes_and_methods.select { |_, _, method| method.source_location }
    assert_operator ruby.size, :>, 50
    ruby.each { |path, shapes, method| assert_equal [Shape.of(method.parameters)], shapes.uniq, path }
  end

  # One that takes several numbers of arguments says which when it is given too many.
  def test_native_methods_take_as_many_arguments_as_their_signatures_say
    native = shapes_and_methods.reject { |_, shapes, method| method.source_location || shapes.any?(&:rest) }
    assert_operator native.size, :>, 150
    native.each do |path, shapes, method|
      told = method.arity.negative? ? told_range(path) : (method.arity..method.arity)
      assert_includes shapes.flat_map(&:ranges), told, path
    end
  end

  # By Ruby's own checker, if this Ruby has it.
  def test_rbs_finds_no_fault
    skip "the gem rbs is not there" if Gem::Specification.find_all_by_name("rbs").empty?

    code = 'require "rbs"; require "rbs/cli"; exit(RBS::CLI.new(stdout: $stdout, stderr: $stderr).run(ARGV) || 0)'
    output = IO.popen([{ "RUBYOPT" => nil }, RbConfig.ruby, "-W0", "-e", code, "-r", "openssl", "-I", File.dirname(Rbs::FILE), "validate", err: %i[child out]], &:read)
    assert_predicate $?, :success?, output
  end

  def test_types_are_those_of_the_comments
    {
      "Integer, nil" => "::Integer?", "String, #to_path, nil" => "::String | ::_ToPath | nil", "Array<String, IO::Buffer>" => "::Array[::String | ::IO::Buffer]",
      "Array(Integer, Array(String, Integer)), nil" => "[::Integer, [::String, ::Integer]]?", "Hash{Symbol => Integer, Hash{Symbol => Float}}" => "::Hash[::Symbol, ::Integer | ::Hash[::Symbol, ::Float]]",
      ":fd, nil" => ":fd | nil", "nil" => "nil", "Object, nil" => "untyped", "Hash" => "::Hash[untyped, untyped]", "Boolean, nil" => "bool?"
    }.each { |yard, rbs| assert_equal rbs, Rbs::Types.rbs(yard) }
    assert_raises(ArgumentError) { Rbs::Types.rbs("Array<Integer") }
  end

  private

  def told_range(path)
    owner, kind, name = /\A([\w:]+?)([#.])(.*)\z/.match(path).captures
    receiver = kind == "." ? Object.const_get(owner) : receivers.fetch(owner)
    error = assert_raises(ArgumentError, path) { receiver.public_send(name, *Array.new(99)) { flunk path } }
    given, least, most = /\Awrong number of arguments \(given (\d+), expected (\d+)(?:\.\.(\d+))?\)\z/.match(error.message).captures
    # A selector has taken the fiber away before it counts.
    taken = 99 - Integer(given)
    (Integer(least) + taken)..(Integer(most || least) + taken)
  end

  def receivers
    @receivers ||= begin
      machine = UM.new
      { "UringMachine" => machine, "UringMachine::IO" => machine.io(0), "UringMachine::BufferPool" => machine.register_buffers(count: 1, size: 4096),
        "UringMachine::FiberScheduler" => UM::FiberScheduler.new, "UringMachine::Selector" => UM::Selector.new(Fiber.current) }
    end
  end
end
