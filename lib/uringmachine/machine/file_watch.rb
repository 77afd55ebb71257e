# frozen_string_literal: true

class UringMachine
  # Watches a directory with everything in it, directories that are made or moved there later included. Symbolic links
  # are reported, not followed; root itself may be one.
  #
  # What happens in a new directory before it is watched, a moment after it was made, is not reported. If events come
  # faster than they are taken, the kernel drops some: that is an event with UM::IN_Q_OVERFLOW, and root for its :fn,
  # and directories that were missed are watched from then on.
  #
  # @method UringMachine#file_watch(root, mask, &block)
  # @param root [String, #to_path] a directory, or a file
  # @param mask [Integer] which events, as UM::IN_CREATE | UM::IN_CLOSE_WRITE
  # @yieldparam event [Hash] with :mask, what has happened, and :fn, the path, which begins with root
  # @return [Object] nil when nothing is left to be watched: root has been removed. Else it goes on until the block
  #   breaks, or the fiber is scheduled with a value, which is returned, or an exception
  # @raise [SystemCallError] as inotify_add_watch(2): Errno::ENOENT if root isn't there, Errno::ENOSPC if the user may
  #   not watch as many directories (fs.inotify.max_user_watches)
  # @raise [TypeError] if root is no path, or mask no Integer
  # @raise [ArgumentError] if root has a zero byte, mask has no event or is out of range, or without a block
  # @example
  #   machine.file_watch("/srv/app", UM::IN_CREATE | UM::IN_DELETE) { |event| puts event[:fn] }
  def file_watch(root, mask, &block)
    raise ArgumentError, "no block given (file_watch)" unless block

    tree = WatchedTree.new(root, mask)
    while tree.watched?
      events = inotify_get_events(tree.fd)
      return events unless events.is_a?(Array)

      tree.take(events, &block)
    end
  ensure
    tree&.close
  end
end
