# frozen_string_literal: true

class UringMachine
  # The watches of a directory and the directories in it.
  class WatchedTree
    # What inotify(7) calls these.
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    ANY_EVENT = 0xfff
    UNMOUNT = 0x2000
    OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLY_DIRECTORY = 0x1000000
    NO_FOLLOW = 0x2000000
    EXCLUDE_UNLINKED = 0x4000000
    DIRECTORY = 0x40000000
    # How directories that come and go are seen, whatever the caller asks for.
    NEEDED = CREATE | MOVED_FROM | MOVED_TO
    # Told whatever the caller asks for.
    ALWAYS = UNMOUNT | OVERFLOW
    # What happens to directories while they are being read, and what a program may not read.
    GONE = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP, Errno::EACCES].freeze

    def initialize(root, mask)
      path = root.respond_to?(:to_path) ? root.to_path : root
      raise TypeError, "root must be a path, not #{root.class}" unless path.is_a?(String)
      raise ArgumentError, "root contains null byte" if path.b.include?("\0")
      raise TypeError, "mask must be an Integer, not #{mask.class}" unless mask.is_a?(Integer)
      raise ArgumentError, "mask #{mask} is out of range" unless (0..0xffff_ffff).cover?(mask)
      raise ArgumentError, "mask #{mask} has no event" if mask.nobits?(ANY_EVENT)

      @wanted = mask & ANY_EVENT
      @mask = @wanted | (mask & (EXCLUDE_UNLINKED | ONLY_DIRECTORY)) | NEEDED
      # As the names that are joined to it.
      @root = path.dup.force_encoding(Encoding.find("filesystem"))
      @paths = {}
      # The collector closes it, should its fiber go on no more.
      @inotify = ::IO.for_fd(UM.inotify_init)
      begin
        watch_root
      rescue Exception # rubocop:disable Lint/RescueException
        close
        raise
      end
    end

    def fd = @inotify.fileno

    def watched?
      !@paths.empty?
    end

    # Keeps the watches up with events, then yields those that are wanted: what the block does in a new directory is
    # seen.
    def take(events)
      events.each do |event|
        mask = event[:mask]
        path = path_of(event)
        follow(event, mask, path)
        yield({ mask:, fn: path }) if path && mask.anybits?(@wanted | ALWAYS)
      end
    end

    # Not by the machine, which may be what has failed.
    def close = @inotify.close

    private

    # The path of an event; nil if its watch has ended.
    def path_of(event)
      return @root if event[:mask].anybits?(OVERFLOW)

      folder = @paths[event[:wd]]
      folder && event[:name] ? File.join(folder, event[:name]) : folder
    end

    def follow(event, mask, path)
      if mask.anybits?(OVERFLOW)
        watch_all
      elsif mask.anybits?(IGNORED)
        @paths.delete(event[:wd])
      elsif path && mask.anybits?(DIRECTORY) && event[:name]
        watch(path) if mask.anybits?(CREATE | MOVED_TO)
        forget(path) if mask.anybits?(MOVED_FROM)
      end
    end

    def watch_root
      @paths[UM.inotify_add_watch(fd, @root, @mask)] = @root
      watch_children(@root)
    end

    # Events have been lost: directories may have come, gone or been moved.
    def watch_all
      former = @paths
      @paths = {}
      watch_root
    rescue *GONE
      # Nothing is left at root.
    ensure
      end_watches(former.keys - @paths.keys)
    end

    # Watches a directory with those in it; whatever else path is by now is left alone.
    def watch(path)
      watch_children(path) if add(path)
    end

    # Not by recursion: a tree may be deeper than the stack of a fiber.
    def watch_children(folder)
      folders = [folder]
      while (folder = folders.pop)
        folders.concat(directories_in(folder).select { |path| add(path) })
      end
    end

    # Watches one directory; false if it is none, or none any more.
    def add(path)
      wd = UM.inotify_add_watch(fd, path, @mask | ONLY_DIRECTORY | NO_FOLLOW)
      @paths[wd] = path
    rescue *GONE
      false
    end

    def directories_in(folder)
      Dir.children(folder).filter_map do |name|
        path = File.join(folder, name)
        path if File.lstat(path).directory?
      rescue *GONE
        nil
      end
    rescue *GONE
      []
    end

    # Ends the watches of a directory that has been moved away. Should it have been moved within the tree, it is
    # watched anew.
    def forget(path)
      inside = "#{path}/"
      end_watches(@paths.keys.select { |wd| @paths[wd] == path || @paths[wd].start_with?(inside) })
    end

    def end_watches(wds)
      wds.each do |wd|
        UM.inotify_rm_watch(fd, wd)
      rescue Errno::EINVAL
        # It has ended by itself.
      end
    end
  end
  private_constant :WatchedTree
end
