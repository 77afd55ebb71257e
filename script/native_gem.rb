# frozen_string_literal: true

require "fileutils"
require "json"
require "open3"
require "rubygems/package"

# The gem of one platform, with an extension for each of some Rubies in it: whoever installs it needs no compiler. Beside it
# goes an archive of what debuggers want, to be unpacked in the installed gem's folder. `rake gem:native` makes both.
class NativeGem
  ROOT = File.expand_path("..", __dir__)
  # Only whoever builds the extension needs them.
  SOURCES = %r{\A(?:ext/|src/|Cargo\.)}
  LICENSES = "LICENSE-DEPENDENCIES"
  RUST = "Rust's standard library (MIT OR Apache-2.0)\n\nCopyright (c) The Rust Project Contributors\n"

  # What a Ruby says of itself, and where its extension is built.
  Target = Struct.new(:ruby, :version, :description, :platform) do
    def self.of(ruby)
      code = 'print [RUBY_VERSION[/\A\d+\.\d+/], "#{RUBY_ENGINE}-#{RUBY_VERSION}-#{RUBY_PLATFORM}", Gem::Platform.local].join(" ")'
      output, status = Open3.capture2({ "RUBYOPT" => nil, "RUBYLIB" => nil }, ruby, "-e", code)
      raise ArgumentError, "RUBIES: #{ruby} is no Ruby" unless status.success?

      new(ruby, *output.split)
    rescue SystemCallError => e
      raise ArgumentError, "RUBIES: #{ruby}: #{e.message}"
    end

    def folder = File.join(ROOT, "target", description)
    def library = "lib/uringmachine/#{version}/uringmachine.so"
  end

  def initialize(rubies)
    raise ArgumentError, "RUBIES must name a Ruby, or several with a colon between" if rubies.empty?

    @targets = rubies.map { |ruby| Target.of(ruby) }.sort_by { |target| Gem::Version.new(target.version) }
    raise ArgumentError, "RUBIES: two are of one version: #{@targets.map(&:description).join(", ")}" if @targets.uniq(&:version).size < @targets.size
    raise ArgumentError, "RUBIES: they are of several platforms: #{@targets.map(&:platform).join(", ")}" if @targets.uniq(&:platform).size > 1
  end

  # The specification of the gem from source, but for what is different.
  def specification
    @specification ||= Dir.chdir(ROOT) { Gem::Specification.load("uringmachine.gemspec") }.dup.tap do |spec|
      spec.platform = platform
      spec.extensions = []
      spec.files = spec.files.grep_v(SOURCES) + @targets.map(&:library) + [LICENSES]
      spec.required_ruby_version = [">= #{@targets.first.version}", "< #{following(@targets.last.version)}.dev"]
    end
  end

  # Writes gem and archive into a folder; returns the gem's path.
  def build(output)
    stage = File.join(ROOT, "target", "gem", specification.full_name)
    FileUtils.rm_rf([stage, "#{stage}.debug"])
    FileUtils.mkdir_p([stage, output])
    @targets.each { |target| add_library(target, stage) }
    (specification.files - @targets.map(&:library) - [LICENSES]).each { |file| copy(File.join(ROOT, file), File.join(stage, file)) }
    File.write(File.join(stage, LICENSES), licenses)
    run("tar", "-czf", File.join(output, "#{specification.full_name}.debug.tar.gz"), "-C", "#{stage}.debug", "lib")
    gem = File.join(File.expand_path(output), specification.file_name)
    Dir.chdir(stage) { Gem::Package.build(specification, false, false, gem) }
    gem
  end

  private

  # A gem for plain linux would be taken where the C library is another, too.
  def platform
    Gem::Platform.new(@targets.first.platform).tap { |local| local.version ||= "gnu" if local.os == "linux" }
  end

  def following(version)
    major, minor = version.split(".").map { |part| Integer(part) }
    "#{major}.#{minor + 1}"
  end

  def add_library(target, stage)
    run({ "RUBY" => target.ruby, "CARGO_TARGET_DIR" => target.folder }, "cargo", "build", "--release", "--locked", "--package", "uringmachine", "--quiet", chdir: ROOT)
    library = File.join(stage, target.library)
    debug = File.join("#{stage}.debug", "#{target.library}.debug")
    copy(File.join(target.folder, "release", "liburingmachine.so"), library)
    FileUtils.mkdir_p(File.dirname(debug))
    run("objcopy", "--only-keep-debug", library, debug)
    run("objcopy", "--strip-unneeded", "--add-gnu-debuglink=#{debug}", library)
  end

  # The licences of what the extension has within it ask to be with it.
  def licenses
    tree = run("cargo", "tree", "--locked", "--package", "uringmachine", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}", chdir: ROOT)
    linked = tree.lines.map { |line| line.split.first(2) }.uniq
    crates = JSON.parse(run("cargo", "metadata", "--locked", "--format-version", "1", chdir: ROOT)).fetch("packages")
    crates = crates.select { |crate| crate["source"] && linked.include?([crate["name"], "v#{crate["version"]}"]) }.sort_by { |crate| crate["name"] }
    notices = crates.map do |crate|
      files = Dir[File.join(File.dirname(crate["manifest_path"]), "{LICENSE,COPYING,UNLICENSE}*")]
      raise "#{crate["name"]} has no licence with it" if files.empty?

      # Of several that one may choose from, MIT's.
      text = File.read(files.find { |file| file.end_with?("LICENSE-MIT") } || files.first)
      "#{crate["name"]} #{crate["version"]} (#{crate["license"]})\n\n#{text.strip}\n"
    end
    [RUST, *notices].join("\n#{"-" * 80}\n\n")
  end

  def copy(from, to)
    FileUtils.mkdir_p(File.dirname(to))
    FileUtils.cp(from, to, preserve: true)
  end

  def run(*command, **options)
    output, status = Open3.capture2(*command, **options)
    raise "#{command.grep(String).first} failed" unless status.success?

    output
  end
end
