# frozen_string_literal: true

require_relative "test_helper"
require_relative "../docs/house"

# The floors of ext/: see docs/architecture.md.
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
end
