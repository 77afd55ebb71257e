# frozen_string_literal: true

# RESP2 and RESP3 as one reads them from a String that is all there: what UM::IO#resp_read is held to.
class RespModel
  MOST = 512 << 20
  DEEPEST = 128
  LONGEST_LINE = 64 << 10
  DOUBLE = /\A[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?\z/i
  SPECIAL = /\A([+-]?)(inf|infinity|nan)\z/i

  # What reads bring, one after the other, up to the end or the first error.
  def self.outcomes(bytes)
    model = new(bytes)
    found = []
    loop do
      value = model.value(0)
      return [*found, :end] if value == :end

      found << describe(value)
    rescue UM::Error, EOFError => e
      return [*found, e.class]
    end
  end

  # A value as it can be compared: NaN, and errors, are like none but themselves.
  def self.describe(value)
    case value
    when Float then [:double, value.nan? ? "nan" : [value].pack("G")]
    when String then [:string, value.b, value.encoding]
    when UM::IO::RESPError then [:error, value.message.b]
    when Array then value.map { |element| describe(element) }
    when Hash then [:hash, value.map { |key, element| [describe(key), describe(element)] }]
    else value
    end
  end

  def initialize(bytes)
    @left = bytes.b
  end

  # The next value, or :end.
  def value(depth)
    wrong if depth > DEEPEST
    line = self.line or return :end
    wrong if line.empty?
    rest = line[1..]
    case line[0]
    when "+" then text(rest)
    when "-" then UM::IO::RESPError.new(text(rest))
    when ":", "(" then integer(rest)
    when "," then double(rest)
    when "_" then rest.empty? ? nil : wrong
    when "#" then { "t" => true, "f" => false }.fetch(rest) { wrong }
    when "$" then string(rest)&.then { |bytes| text(bytes) }
    when "!" then string(rest)&.then { |bytes| UM::IO::RESPError.new(text(bytes)) }
    when "=" then string(rest)&.then { |bytes| bytes[3] == ":" ? text(bytes[4..]) : wrong }
    when "*", "~", ">" then elements(rest, 1, depth)&.flatten(1)
    when "%", "|" then elements(rest, 2, depth)&.to_h
    else wrong
    end
  end

  private

  def wrong = raise(UM::Error)

  def cut_off = raise(EOFError)

  def text(bytes) = bytes.dup.force_encoding(Encoding::UTF_8)

  def line
    place = @left.index("\n")
    wrong if (place || @left.bytesize) > LONGEST_LINE
    return @left.empty? ? nil : cut_off unless place

    wrong unless @left[0..place].end_with?("\r\n")
    @left.slice!(0..place).chomp
  end

  def length(field)
    return if field == "-1"

    field.match?(/\A\d+\z/) && field.to_i <= MOST ? field.to_i : wrong
  end

  def bulk(length)
    cut_off if @left.bytesize < length + 2
    wrong unless @left[length, 2] == "\r\n"
    @left.slice!(0, length + 2)[0...-2]
  end

  def string(field)
    return length(field)&.then { |length| bulk(length) } unless field == "?"

    whole = "".b
    loop do
      line = self.line or cut_off
      wrong unless line.start_with?(";")
      length = length(line[1..]) or wrong
      return whole if length.zero?

      whole << bulk(length)
    end
  end

  # Elements in groups of so many.
  def elements(field, size, depth)
    return streamed(size, depth) if field == "?"

    count = length(field) or return
    found = []
    count.times { found << Array.new(size) { element(depth) } }
    found
  end

  def streamed(size, depth)
    found = []
    loop do
      cut_off if @left.empty?
      return line == "." ? found : wrong if @left.start_with?(".")

      found << Array.new(size) { element(depth) }
    end
  end

  def element(depth)
    value = value(depth + 1)
    value == :end ? cut_off : value
  end

  def integer(digits) = digits.match?(/\A[+-]?\d+\z/) ? digits.to_i : wrong

  def double(digits)
    return Float(digits.sub(/\.(?!\d)/, ".0").sub(/(?<!\d)\./, "0.")) if digits.match?(DOUBLE)

    sign, name = digits.match(SPECIAL)&.captures
    wrong unless name
    # One of its own each time: a Hash takes the same object for the same key.
    return 0.0 / 0.0 if name.casecmp?("nan")

    sign == "-" ? -Float::INFINITY : Float::INFINITY
  end
end
