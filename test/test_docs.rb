# frozen_string_literal: true

require_relative "test_helper"
require_relative "../docs/api_docs"
require_relative "../docs/rbs"

# docs/api.md against the doc comments and the built gem.
class TestDocs < Minitest::Test
  DOCS = ApiDocs.new
  def documented = DOCS.entries.map(&:path)

  def test_every_public_method_is_documented
    assert_empty Rbs.public_methods_by_path - documented
  end

  def test_every_documented_method_exists
    missing = documented.reject do |path|
      owner, kind, name = /\A([\w:]+?)([#.])(.*)\z/.match(path).captures
      owner = Object.const_get(owner)
      kind == "." ? owner.respond_to?(name) : owner.public_method_defined?(name)
    end
    # Ruby 3.4 would call it without its lock, so it is not defined there.
    missing.delete("UringMachine::FiberScheduler#io_pwrite") if UM::FiberScheduler.interface_version < 3
    assert_empty missing
  end

  def test_no_method_is_documented_twice
    assert_empty documented.tally.select { |_, count| count > 1 }.keys
  end

  def test_every_method_says_what_it_returns_and_shows_an_example
    DOCS.entries.each do |entry|
      refute_empty entry.of("return") + (entry.kind == "." && entry.name == "new" ? [""] : []), "#{entry.source}: #{entry.path} says not what it returns"
      refute_empty entry.of("example").map(&:strip) - [""], "#{entry.source}: #{entry.path} has no example"
    end
  end

  def test_parameters_are_those_of_the_signature
    DOCS.entries.each do |entry|
      names = entry.arguments.scan(/(?<![\w:])[*&]*([a-z_]\w*)(?=[:,)= ]|\z)/).flatten - %w[nil true false block]
      described = entry.of("param").map { |text| text[/\A\w+/] }
      unknown = described - names
      assert_empty unknown, "#{entry.source}: #{entry.path} describes what it does not take"
    end
  end

  def test_examples_are_ruby
    DOCS.entries.each do |entry|
      entry.of("example").each { |code| assert RubyVM::InstructionSequence.compile("def example\n#{code}\nend"), entry.path }
    end
  end

  OPERATING = File.read(File.join(ApiDocs::ROOT, "docs", "operating.md"))

  def test_the_guide_to_operating_shows_ruby_and_files_that_there_are
    blocks = OPERATING.scan(/^```ruby\n(.*?)^```$/m).flatten
    refute_empty blocks
    blocks.each { |code| assert RubyVM::InstructionSequence.compile("def example\n#{code}\nend") }
    files = OPERATING.scan(%r{`(examples/\w+\.rb)`|\]\((\w+\.md)\)}).map { |example, page| example || "docs/#{page}" }
    refute_empty files
    assert_empty files.reject { |file| File.exist?(File.join(ApiDocs::ROOT, file)) }
  end

  def test_the_guide_to_operating_has_every_metric
    table = OPERATING[/^\| name \| what \|\n(?:\|.*\n)+/].lines.drop(2)
    told = table.flat_map { |line| line.split("|")[1].scan(/`(\w+)`/).flatten.map(&:to_sym) }
    scheduler = UM::FiberScheduler.new.warn_of_stalls(1)
    scheduler.machine.profile_mode = true
    assert_equal scheduler.metrics.keys.sort, told.sort
  ensure
    scheduler&.warn_of_stalls(nil)
  end

  def test_the_page_is_up_to_date
    page = File.join(ApiDocs::ROOT, "docs", "api.md")
    assert DOCS.markdown == File.read(page), "docs/api.md is not what script/docs makes"
  end
end
