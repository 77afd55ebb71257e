# frozen_string_literal: true

require_relative "test_helper"
require_relative "../script/native_gem"
require "json"
require "yaml"

# The gem from source and the gem of this platform, each in a place where there is nothing of the clone.
class TestPackage < Minitest::Test
  ROOT = NativeGem::ROOT
  GEMS = File.join(ROOT, "target", "gem", "tested", RUBY_VERSION)
  PROGRAM = <<~'RUBY'
    require "uringmachine"
    Fiber.set_scheduler(UM::FiberScheduler.new)
    input, output = IO.pipe
    Fiber.schedule { $stdout.puts input.read, Gem.loaded_specs.fetch("uringmachine").full_gem_path, $LOADED_FEATURES.grep(/uringmachine\.so/) }
    Fiber.schedule { output.write("through a ring") && output.close }
  RUBY

  # Each is built once for all tests.
  class << self
    def native = @native ||= silently { NativeGem.new([RbConfig.ruby]).build(GEMS) }

    def source
      @source ||= silently do
        FileUtils.mkdir_p(GEMS)
        specification = Gem::Specification.load("uringmachine.gemspec")
        File.join(GEMS, specification.file_name).tap { |path| Gem::Package.build(specification, false, false, path) }
      end
    end

    private

    def silently(&) = Gem::DefaultUserInteraction.use_ui(Gem::SilentUI.new) { Dir.chdir(ROOT, &) }
  end

  # What cargo has compiled of others' is kept between runs, in a cargo that can (1.91). The gem's own is built as quickly as can be.
  def cargo
    build = File.join(ROOT, "target", "gem", "build", RUBY_VERSION)
    FileUtils.rm_rf(Dir[File.join(build, "**", "*uringmachine*")])
    home = Dir.home
    cargo = ENV.fetch("PATH").split(":").find { |folder| File.executable?(File.join(folder, "cargo")) }
    # rb-sys asks the Ruby that is on PATH.
    { "PATH" => [RbConfig::CONFIG.fetch("bindir"), cargo, "/usr/local/bin", "/usr/bin", "/bin"].join(":"), "CARGO_HOME" => ENV.fetch("CARGO_HOME", "#{home}/.cargo"), "RUSTUP_HOME" => ENV.fetch("RUSTUP_HOME", "#{home}/.rustup"),
      "CARGO_NET_OFFLINE" => "true", "CARGO_BUILD_BUILD_DIR" => build, "CARGO_PROFILE_RELEASE_LTO" => "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS" => "16" }
  end

  def test_the_gem_from_source_installs_with_rust_and_nothing_of_the_clone
    in_an_empty_home(self.class.source, cargo) { |home| assert_works(home, "lib/uringmachine/uringmachine.so") }
  end

  def test_the_gem_of_this_platform_installs_with_no_compiler
    in_an_empty_home(self.class.native, { "PATH" => "/nowhere" }) { |home| assert_works(home, "lib/uringmachine/#{RUBY_VERSION[/\d+\.\d+/]}/uringmachine.so") }
  end

  def test_each_has_what_it_needs_and_no_more
    source = Gem::Package.new(self.class.source).spec
    native = Gem::Package.new(self.class.native).spec
    assert_equal %w[CHANGELOG.md CONTRIBUTING.md Cargo.lock Cargo.toml LICENSE README.md docs exe ext lib sig src], source.files.map { |file| file[%r{\A[^/]+}] }.uniq.sort
    assert_equal %w[CHANGELOG.md CONTRIBUTING.md LICENSE LICENSE-DEPENDENCIES README.md docs exe lib sig], native.files.map { |file| file[%r{\A[^/]+}] }.uniq.sort
    assert_equal source.files.grep(/\.rb\z/), native.files.grep(/\.rb\z/)
    assert_equal [["ext/uringmachine/Cargo.toml"], []], [source, native].map(&:extensions)
  end

  def test_the_gem_of_this_platform_is_for_the_rubies_that_are_in_it
    spec = NativeGem.new([RbConfig.ruby]).specification
    version = RUBY_VERSION[/\d+\.\d+/]
    assert spec.required_ruby_version.satisfied_by?(Gem::Version.new("#{version}.0"))
    ["3.3.9", "#{version.next}.0", "#{version.next}.0.dev"].each { |other| refute spec.required_ruby_version.satisfied_by?(Gem::Version.new(other)), other }
    assert_match(/\A(x86_64|aarch64)-linux-(gnu|musl)\z/, spec.platform.to_s)
    assert_operator spec.platform, :===, Gem::Platform.local
  end

  def test_what_debuggers_want_is_beside_the_gem
    library = "lib/uringmachine/#{RUBY_VERSION[/\d+\.\d+/]}/uringmachine.so"
    Dir.mktmpdir do |folder|
      Gem::Package.new(self.class.native).extract_files(folder)
      system("tar", "-xf", self.class.native.sub(/gem\z/, "debug.tar.gz"), "-C", folder, exception: true)
      sections = [library, "#{library}.debug"].map { |file| IO.popen(["readelf", "--sections", "--wide", File.join(folder, file)], &:read) }
      assert_equal [false, true], sections.map { |text| text.include?(".debug_info") }
      assert_includes IO.popen(["readelf", "--string-dump=.gnu_debuglink", File.join(folder, library)], &:read), "uringmachine.so.debug"
      identities = [library, "#{library}.debug"].map { |file| IO.popen(["readelf", "--notes", File.join(folder, file)], &:read)[/Build ID: (\h+)/, 1] }
      assert_equal 1, identities.compact.uniq.size
    end
  end

  def test_rubies_that_make_no_gem_are_refused
    assert_match(/RUBIES must name a Ruby/, assert_raises(ArgumentError) { NativeGem.new([]) }.message)
    assert_match(/two are of one version/, assert_raises(ArgumentError) { NativeGem.new([RbConfig.ruby, RbConfig.ruby]) }.message)
    assert_match(%r{RUBIES: /nowhere/ruby}, assert_raises(ArgumentError) { NativeGem.new(["/nowhere/ruby"]) }.message)
  end

  def test_a_gem_without_an_extension_for_this_ruby_says_so
    in_an_empty_home(self.class.native, { "PATH" => "/nowhere" }) do |home|
      installed = File.join(home, "gems", "gems", File.basename(self.class.native, ".gem"), "lib", "uringmachine")
      FileUtils.rm(File.join(installed, RUBY_VERSION[/\d+\.\d+/], "uringmachine.so"))
      assert_match(/\Auringmachine: the extension for Ruby #{RUBY_VERSION} cannot be loaded .*the gem from source builds one\n\z/, run_in(home, "gems/bin/uringmachine", "doctor"))
      FileUtils.rm_rf(File.join(installed, RUBY_VERSION[/\d+\.\d+/]))
      assert_match(/cannot load such file .*gem pristine uringmachine builds one\n\z/, run_in(home, "gems/bin/uringmachine", "doctor"))
    end
  end

  # It runs on the forge alone: here it is read.
  def test_the_release_workflow_builds_the_gems_by_what_there_is
    workflow = YAML.load_file(File.join(ROOT, ".github", "workflows", "release.yml"))
    steps = workflow.fetch("jobs").values.flat_map { |job| job.fetch("steps") }
    commands = steps.filter_map { |step| step["run"] }.join("\n")
    assert_empty steps.filter_map { |step| step["uses"] }.grep_v(/\A[\w-]+\/[\w-]+@v\d+\.\d+\.\d+\z/)
    assert_equal %w[build gem:native], commands.scan(/\brake (\S+)/).flatten
    assert_empty commands.scan(%r{script/\S+}).reject { |file| File.exist?(File.join(ROOT, file)) }
    assert_equal %w[alpine slim-bookworm], workflow.dig("jobs", "native", "strategy", "matrix", "base").sort
  end

  def test_forms_for_issues_can_be_read
    forms = Dir[File.join(ROOT, ".github", "ISSUE_TEMPLATE", "*")]
    refute_empty forms
    forms.each { |file| assert_kind_of Hash, file.end_with?(".md") ? YAML.safe_load(File.read(file)[/\A---\n(.*?)^---$/m, 1]) : YAML.load_file(file), file }
    assert_includes File.read(File.join(ROOT, ".github", "ISSUE_TEMPLATE", "bug_report.md")), "uringmachine doctor --json"
  end

  private

  # Installs a gem there, with no more in the environment than is given.
  def in_an_empty_home(gem, environment)
    Dir.mktmpdir do |home|
      @environment = environment
      run_in(home, RbConfig.ruby, "-rrubygems/gem_runner", "-e", "Gem::GemRunner.new.run(ARGV)", "install", "--local", "--no-document", gem, succeeds: true)
      @environment = { "PATH" => "/nowhere" }
      yield home
    end
  end

  def run_in(home, *command, succeeds: false)
    environment = { "HOME" => home, "GEM_HOME" => File.join(home, "gems"), **@environment }
    output = IO.popen([environment, *command, chdir: home, unsetenv_others: true, err: %i[child out]], &:read)
    assert_predicate $?, :success?, output if succeeds
    output
  end

  # A program under the scheduler, the command, and some of the tests: all by the gem that is installed.
  def assert_works(home, library)
    text, gem, *libraries = run_in(home, RbConfig.ruby, "-W:no-experimental", "-e", PROGRAM, succeeds: true).lines(chomp: true)
    assert_equal "through a ring", text
    assert gem.start_with?(File.realpath(home)), gem
    assert_equal [File.basename(library)], libraries.map { |file| File.basename(file) }
    assert File.exist?(File.join(gem, library))
    assert libraries.first.start_with?(File.realpath(home)), libraries.first
    assert JSON.parse(run_in(home, "gems/bin/uringmachine", "doctor", "--json", succeeds: true)[/^\{.*/m]).fetch("works")
    @environment = { **@environment, "GEM_PATH" => Gem.path.join(":"), "MT_NO_PLUGINS" => "1" }
    output = run_in(home, RbConfig.ruby, "-W:no-experimental", "-I", __dir__, File.join(__dir__, "hooks", "test_io_read.rb"), succeeds: true)
    assert_match(/ 0 failures, 0 errors/, output)
  end
end
