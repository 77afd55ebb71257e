# frozen_string_literal: true

require_relative "../test_helper"

# What lists directories: as plain Ruby does, and small ones without a hook for every entry (lib/uringmachine/core_ext/dir.rb).
class TestListing < PatientTest
  SMALL = %w[a.rb b.rb ä .hidden {c} sub].freeze

  # @return [Array(Object, Integer)] what the block returns under a scheduler, and how often Ruby asked for the hook
  def listed(&block)
    hooks = 0
    counting = TracePoint.new(:c_call) { |event| hooks += 1 if event.method_id == :blocking_operation_wait }
    result = Thread.new do
      Fiber.set_scheduler(UM::FiberScheduler.new)
      value = nil
      # What a machine does once.
      Fiber.schedule { Dir.children("/") }
      Fiber.schedule { counting.enable(target_thread: Thread.current) { value = block.call } }
      Fiber.scheduler.run
      value
    end.value
    [result, hooks]
  end

  def with_small
    Dir.mktmpdir do |folder|
      SMALL.each { |name| name == "sub" ? Dir.mkdir(File.join(folder, name)) : File.write(File.join(folder, name), "") }
      File.write(File.join(folder, "sub/d.rb"), "")
      yield folder
    end
  end

  def outcome
    yield
  rescue StandardError => e
    [e.class, e.message]
  end

  WAYS = {
    children: ->(folder) { Dir.children(folder) },
    children_encoded: ->(folder) { Dir.children(folder, encoding: "BINARY").map { |name| [name, name.encoding] } },
    entries: ->(folder) { Dir.entries(folder) },
    each_child: ->(folder) { [].tap { |names| names << Dir.each_child(folder) { |name| names << name } } },
    each_child_enumerated: ->(folder) { Dir.each_child(folder).to_a },
    each_child_broken: ->(folder) { Dir.each_child(folder, encoding: "BINARY") { |name| break name } },
    foreach: ->(folder) { [].tap { |names| names << Dir.foreach(folder) { |name| names << name } } },
    glob: ->(folder) { Dir.glob(File.join(folder, "*")) },
    glob_hidden: ->(folder) { Dir.glob(File.join(folder, "*"), File::FNM_DOTMATCH) },
    glob_flags: ->(folder) { Dir.glob("*", flags: File::FNM_DOTMATCH, base: folder, sort: false).sort },
    glob_base: ->(folder) { Dir.glob("sub/*", base: folder) },
    glob_plain: ->(folder) { Dir.glob("a.rb", base: folder) },
    glob_block: ->(folder) { [].tap { |names| Dir.glob(File.join(folder, "*.rb")) { |name| names << name } } },
    glob_several: ->(folder) { Dir.glob(%w[*.rb sub/*], base: folder) },
    glob_recursive: ->(folder) { Dir.glob("**/*.rb", base: folder) },
    glob_braces: ->(folder) { Dir.glob("{sub,.}/*.rb", base: folder) },
    glob_escaped: ->(folder) { Dir.glob("\\{c}", base: folder) },
    brackets: ->(folder) { Dir[File.join(folder, "[ab].rb")] },
    brackets_base: ->(folder) { Dir["*.rb", "sub/*", base: folder] },
    glob_of_an_object: ->(folder) { Dir.glob(Pathname(folder) + "*") },
    children_of_an_object: ->(folder) { Dir.children(Pathname(folder)) },
    missing: ->(folder) { Dir.children(File.join(folder, "none")) },
    a_file: ->(folder) { Dir.entries(File.join(folder, "a.rb")) },
    missing_glob: ->(folder) { Dir.glob(File.join(folder, "none/*")) },
    zero: ->(folder) { Dir.children("#{folder}\0") },
    zero_glob: ->(folder) { Dir.glob("#{folder}/\0*") },
    nothing: ->(_) { Dir.children("") },
    nothing_glob: ->(_) { Dir.glob("") },
    no_string: ->(_) { Dir.children(1) },
    no_pattern: ->(_) { Dir.glob(nil) },
    wrong: ->(folder) { Dir.children(folder, nonsense: 1) },
    wrong_glob: ->(folder) { Dir.glob(folder, nonsense: 1) }
  }.freeze

  WAYS.each do |name, way|
    define_method("test_#{name}") do
      with_small do |folder|
        plain = outcome { way.call(folder) }
        fiber, = listed { outcome { way.call(folder) } }
        assert_equal plain, fiber
      end
    end
  end

  def test_small_directories_need_no_hook
    with_small do |folder|
      %i[children entries each_child foreach glob glob_flags glob_base brackets].each do |name|
        _, hooks = listed { WAYS[name].call(folder) }
        assert_equal 0, hooks, name
      end
    end
  end

  # Others go on meanwhile.
  def test_large_directories_are_read_by_the_hook
    Dir.mktmpdir do |folder|
      4000.times { |number| File.write(File.join(folder, "a long name, so that they fill the directory #{number}"), "") }
      %i[children entries each_child foreach glob brackets].each do |name|
        way = name == :brackets ? -> { Dir[File.join(folder, "*")] } : -> { WAYS[name].call(folder) }
        _, hooks = listed(&way)
        assert_operator hooks, :>, 4000, name
      end
    end
  end
end
