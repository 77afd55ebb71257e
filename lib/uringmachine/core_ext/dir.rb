# frozen_string_literal: true

class UringMachine
  module CoreGaps
    # Dir's methods that list a directory: a small one at once. Prepended by `spare_hooks` in turns.rb.
    module Listing
      # As Dir.children.
      def children(path, ...) = CoreGaps.list(path) { super } || super

      # As Dir.entries.
      def entries(path, ...) = CoreGaps.list(path) { super } || super

      # As Dir.each_child.
      def each_child(path, ...)
        names = block_given? && CoreGaps.list(path) { children(path, ...) } or return super
        names.each { |name| yield name }
        nil
      end

      # As Dir.foreach.
      def foreach(path, ...)
        names = block_given? && CoreGaps.list(path) { entries(path, ...) } or return super
        names.each { |name| yield name }
        nil
      end

      # As Dir.glob.
      def glob(pattern, *flags, base: nil, **options, &block)
        folder = Listing.folder(pattern, base) unless block
        (CoreGaps.list(folder) { super } if folder) || super
      end

      # As Dir.[].
      def [](*patterns, base: nil, **options)
        folder = Listing.folder(patterns.first, base) if patterns.one?
        (CoreGaps.list(folder) { super } if folder) || super
      end

      # The one directory that a pattern looks into, if there is no other.
      def self.folder(pattern, base)
        return unless pattern.is_a?(String) && (base.nil? || base.is_a?(String))

        folder, _, names = pattern.rpartition("/")
        return if folder.match?(/[*?\[{\\]/) || names.include?("**")

        folder = "/" if folder.empty? && pattern.start_with?("/")
        return folder.empty? ? base || "." : folder if base.nil? || folder.empty? || folder.start_with?("/")

        File.join(base, folder)
      end
    end
    private_constant :Listing
  end
end
