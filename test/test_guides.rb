# frozen_string_literal: true

require_relative "test_helper"

# The programs in the guides are run as they stand, and print what the guides say.
class TestGuides < PatientTest
  GUIDES = File.expand_path("../docs/guides", __dir__)
  # A program, and what is said to be its output.
  PROGRAM = /^```ruby\n(?<program>.*?)^```\n(?:\n```\n(?<output>.*?)^```\n)?/m

  Dir.glob("*.md", base: GUIDES).each do |name|
    guide = File.read(File.join(GUIDES, name))
    guide.scan(PROGRAM).each.with_index(1) do |(program, output), number|
      define_method("test_#{File.basename(name, ".md")}_#{number}") do
        said, status = ruby(program)
        assert_predicate status, :success?, said
        # Ruby 3.4 prints what newer ones do.
        assert_equal output.to_s, said
      end
    end
  end

  # What wants other libraries (```rb) is a part of what test/compat runs.
  def test_code_of_other_libraries
    run = Dir.glob("compat/*.rb", base: __dir__).map { |name| unindented(File.read(File.join(__dir__, name))) }
    shown = Dir.glob(File.join(GUIDES, "*.md")).flat_map { |guide| File.read(guide).scan(/^```rb\n(.*?)^```/m).flatten }
    refute_empty shown
    assert_empty(shown.reject { |code| run.any? { |file| file.include?(unindented(code)) } })
  end

  def unindented(code) = code.gsub(/^ +/, "")

  # Links within the repository lead somewhere.
  def test_links
    root = File.expand_path("..", __dir__)
    pages = Dir.glob("{*.md,docs/**/*.md}", base: root)
    lost = pages.flat_map do |page|
      File.read(File.join(root, page)).scan(/\]\(([^)#\s]+)(?:#[^)]*)?\)/).flatten.grep_v(/\A[a-z]+:/)
          .reject { |link| File.exist?(File.expand_path(link, File.join(root, File.dirname(page)))) }.map { |link| "#{page}: #{link}" }
    end
    assert_empty lost
  end
end
