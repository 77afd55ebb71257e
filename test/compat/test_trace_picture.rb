# frozen_string_literal: true

require_relative "../test_helper"
require "json"
require "shellwords"

# docs/trace_viewer.html in a browser, with the trace of examples/trace.rb: see script/trace_picture.
class TestTracePicture < PatientTest
  ROOT = File.expand_path("../..", __dir__)
  BROWSER = ENV.fetch("PATH").split(":").product(%w[chromium chromium-browser google-chrome]).map { |place| File.join(*place) }.find { |path| File.executable?(path) }
  # It is to reach nothing but its page.
  OPTIONS = %w[--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
               --disable-sync --hide-scrollbars --window-size=1280,410].freeze
  # Where the picture goes, if it is wanted.
  PICTURE = ENV.fetch("UM_TRACE_PICTURE", nil)

  def setup
    super
    skip "there is no Chromium" unless BROWSER
    @folder = Dir.mktmpdir
    @trace = File.join(@folder, "trace.json")
    command = [RbConfig.ruby, *$LOAD_PATH.flat_map { |folder| ["-I", folder] }, "examples/trace.rb", @trace]
    assert system(*command, chdir: ROOT, out: File::NULL)
  end

  def teardown
    FileUtils.rm_rf(@folder) if @folder
    super
  end

  def test_every_fiber_has_a_row_and_what_is_long_is_seen
    page = browse("--dump-dom")
    events = JSON.parse(File.read(@trace)).fetch("traceEvents")
    names = events.select { |event| event["name"] == "thread_name" }.map { |event| event["args"]["name"] }
    assert_operator names.size, :>, 8
    assert_equal names, page.scan(%r{class="name">([^<]*)<}).flatten
    slices = events.select { |event| event["ph"] == "X" }
    drawn = page.scan("<title>").size
    assert_includes slices.count { |slice| slice["dur"] > 1000 }..(slices.size + 20), drawn
    slices.select { |slice| slice["dur"] > 5000 }.each { |slice| assert_includes page, "#{slice["name"]}, " }
  end

  def test_the_picture
    picture = File.join(@folder, "trace.png")
    browse("--screenshot=#{picture}")
    bytes = File.binread(picture)
    assert_equal ["\x89PNG\r\n\x1A\n".b, 1280, 410], bytes.unpack("a8x8NN")
    # One of nothing is of some kilobytes.
    assert_includes 30_000..150_000, bytes.size
    FileUtils.cp(picture, PICTURE) if PICTURE
  end

  # The output of a browser that opens the page with the trace in it.
  def browse(*options)
    page = File.read(File.join(ROOT, "docs/trace_viewer.html"))
    data = %(<script id="data" type="application/json">#{File.read(@trace).gsub("</", '<\/')}</script>\n<script>)
    path = File.join(@folder, "page.html")
    File.write(path, page.sub("<script>") { data })
    command = [BROWSER, *OPTIONS, "--user-data-dir=#{File.join(@folder, "profile")}", *options, "file://#{path}"]
    IO.popen([*command, { err: File::NULL }], &:read).tap { assert $?.success?, command.shelljoin }
  end
end
