# frozen_string_literal: true

module Model
  # Makes a program that fails smaller, as long as it fails in the same way.
  class Shrinker
    # One that fails now and then is worth some tries; one that hangs takes long.
    TRIES = 3

    # @param program [Array<Array>]
    # @param failure [Runner::Failure]
    # @yield [program] each smaller one that fails
    def initialize(program, failure, &report)
      @program = program
      @failure = failure
      @report = report
    end

    # @param seconds [Numeric] for so long
    # @return [Array(Array, Runner::Failure)] the smallest that was found, and how it fails
    def shrink(seconds = 120)
      ends = now + seconds
      while (smaller = smaller(@program).find { |candidate| now > ends || fails?(candidate) }) && now < ends
        @program = smaller
        @report&.call(smaller)
      end
      [@program, @failure]
    end

    private

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def fails?(candidate)
      (@failure.kind == :hangs ? 1 : TRIES).times do
        failure = Runner.failure(candidate, [:threads, @failure.mode].uniq)
        return @failure = failure if @failure.same?(failure)
      end
      false
    end

    # With fewer conversations, or with fewer episodes in one, or with less in an episode.
    def smaller(program)
      Enumerator.new do |found|
        fewer(program).each { |less| found << less }
        program.each_with_index do |(kind, episodes), index|
          put = ->(less) { found << replaced(program, index, [kind, less]) }
          fewer(episodes).each(&put)
          episodes.each_with_index do |episode, place|
            episode.each_index do |part|
              less(episode[part]).each { |value| put.call(replaced(episodes, place, replaced(episode, part, value))) }
            end
          end
        end
      end
    end

    # Without a half of its parts, then without one.
    def fewer(array)
      half = array.size / 2
      halves = array.size > 3 ? [array.take(half), array.drop(half)] : []
      halves + (array.size > 1 ? array.each_index.map { |index| array[0, index] + array.drop(index + 1) } : [])
    end

    # An argument of an episode that is smaller: a number, a list of ways or of sizes, or of ways with sizes.
    def less(value)
      case value
      when Integer then [value / 10, value / 2, value - 1].uniq.select { |number| number.positive? && number < value }
      when Array then (value.first.is_a?(Symbol) && value.last.is_a?(Integer) ? [] : fewer(value)) + replacements(value)
      else []
      end
    end

    def replacements(array)
      array.each_index.flat_map { |index| less(array[index]).map { |value| replaced(array, index, value) } }
    end

    def replaced(array, index, value) = array.dup.tap { |copy| copy[index] = value }
  end
end
