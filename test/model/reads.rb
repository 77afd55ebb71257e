# frozen_string_literal: true

module Model
  # Ways to read from an IO. Each is a method `take_…(io, most)`, which waits for something and returns at most so many bytes,
  # or nil at the end.
  module Reads
    # So many, or what there is until the end.
    def take_read(io, most) = io.read(most)

    def take_read_into(io, most) = io.read(most, +"what was here")

    def take_readpartial(io, most) = io.readpartial(most)

    def take_readpartial_into(io, most) = io.readpartial(most, +"what was here")

    def take_gets(io, most) = io.gets(most)

    # Not `gets("")`: it waits for what follows the paragraph, to skip newlines.
    def take_gets_comma(io, most) = io.gets(",", most)

    def take_readline(io, most) = io.readline("7", most)

    def take_each_line(io, most)
      io.each_line(most) { |line| return line }
      nil
    end

    def take_getbyte(io, _most) = io.getbyte&.chr

    def take_readchar(io, _most) = io.readchar

    def take_each_byte(io, _most)
      io.each_byte { |byte| return byte.chr }
      nil
    end

    def take_back(io, most)
      byte = io.getbyte or return
      io.ungetbyte(byte)
      io.readpartial(most)
    end

    # In a fiber of the Enumerator's.
    def take_enumerated(io, _most)
      io.each_byte.next.chr
    rescue StopIteration
      nil
    end

    def take_nonblock(io, most)
      while (text = io.read_nonblock(most, exception: false)) == :wait_readable
        io.to_io.wait_readable
      end
      text
    end

    def take_waited(io, most)
      io.wait(IO::READABLE)
      io.read_nonblock(most, exception: false)
    end

    def take_selected(io, most)
      (readable,) = IO.select([io])
      readable.first.readpartial(most)
    end

    def take_copied(io, most)
      IO.copy_stream(io, copy = StringIO.new, most)
      copy.string
    end

    # Within the kernel, under the scheduler.
    def take_copied_to_pipe(io, most)
      IO.pipe do |reader, writer|
        # What a pipe holds at once. Its end might not come: a child of another conversation has a copy.
        reader.read(IO.copy_stream(io, writer, [most, 4096].min))
      end
    end

    # Past the IO's own buffer: not to be mixed with the above.

    def take_sysread(io, most) = io.sysread(most)

    # In a thread Ruby takes a signal for an answer, and leaves the buffer locked (io_buffer.c, io_buffer_blocking_region).
    def take_buffer(io, most)
      return take_sysread(io, most) unless Fiber.current_scheduler

      buffer = IO::Buffer.new(most)
      count = buffer.read(io, 0)
      raise EOFError if count.zero?

      buffer.get_string(0, count)
    ensure
      raise "the buffer is locked" if buffer&.locked?
    end

    # Sockets only.

    def take_recv(io, most) = none_at_end(io.recv(most))

    def take_recv_into(io, most) = none_at_end(io.recv(most, 0, +"what was here"))

    def take_recvmsg(io, most) = none_at_end(io.recvmsg(most)&.first)

    def take_recvfrom(io, most) = none_at_end(io.recvfrom(most)&.first)

    def take_recv_nonblock(io, most)
      while (text = io.recv_nonblock(most, 0, nil, exception: false)) == :wait_readable
        io.wait_readable
      end
      none_at_end(text)
    end

    private

    def none_at_end(text) = text.nil? || text.empty? ? nil : text
  end
end
