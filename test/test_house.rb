# frozen_string_literal: true

require_relative "test_helper"
require_relative "../docs/house"

# The floors of ext/, and of the tests: see docs/architecture.md.
class TestHouse < Minitest::Test
  def test_imports_point_downward
    assert_empty House.upward_imports.map { |file, line, floor| "#{file}:#{line} reaches up to #{floor}" }
  end

  def test_an_import_that_points_upward_is_found
    assert_equal [["lending/x.rs", 2, "machine"], ["lending/x.rs", 4, "hooks"]], House.upward_imports({ "lending/x.rs" => <<~RUST })
      use crate::ruby::Raise; // and not crate::hooks
      use crate::machine::Core;
      fn x() -> crate::os::Fd {
          crate::hooks::define()
      }
    RUST
  end

  def test_every_folder_is_a_floor
    folders = Dir.children(House::ROOT).select { |name| File.directory?(File.join(House::ROOT, name)) }
    assert_equal House::FLOORS.sort, folders.sort
  end

  # What is left of it is beneath: see docs/architecture.md.
  def test_the_upper_floors_forbid_unsafe
    %w[classes methods hooks].each { |floor| assert_includes File.read(File.join(House::ROOT, floor, "mod.rs")), "#![forbid(unsafe_code)]", floor }
    assert_includes File.read(File.join(House::ROOT, "machine/mod.rs")), "#![deny(unsafe_code)]"
  end

  def test_a_tenth_at_most_is_unsafe
    rows = House.table.values
    assert_operator rows.sum { |row| row[:unsafe_lines] }, :<=, rows.sum { |row| row[:lines] } / 10
  end

  def test_unsafe_lines_are_counted
    text = "fn a() {\n    unsafe { b() };\n    c();\n}\n\nunsafe fn d() {\n    e();\n}\n// unsafe { }\n"
    assert_equal 4, House.unsafe_lines(House.code(text))
  end

  # All are loaded into one process: a class of one name in two files would be one class.
  def test_no_two_test_files_have_one_name_or_one_class
    files = Dir.glob("**/test_*.rb", base: __dir__)
    assert_empty files.map { |file| File.basename(file) }.tally.select { |_, count| count > 1 }.keys
    classes = files.flat_map { |file| File.read(File.join(__dir__, file)).scan(/^class (\w+)/).flatten }
    assert_empty classes.tally.select { |_, count| count > 1 }.keys
  end

  # Folders of tests are named after what they test.
  def test_every_folder_of_tests_is_one_of_the_code
    folders = Dir.children(__dir__).select { |name| File.directory?(File.join(__dir__, name)) }
    assert_empty folders - House::FLOORS - ["compat", "core_ext", "faults", "model", "ruby_suite"]
  end

  # What the pages for contributors name is there.
  def test_files_that_the_pages_name_exist
    root = File.expand_path("..", __dir__)
    named = %w[docs/architecture.md CONTRIBUTING.md].flat_map do |page|
      File.read(File.join(root, page)).scan(%r{`((?:src|ext|lib|test|docs|script|bench)/[\w./]*)`}).flatten
    end
    refute_empty named
    assert_empty named.uniq.reject { |path| File.exist?(File.join(root, path)) }
  end
end
