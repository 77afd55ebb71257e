# frozen_string_literal: true

module Model
  # Ways to write a text to an IO, whole. Each is a method `put_…(io, text)`.
  module Writes
    def put_write(io, text)
      count = io.write(text)
      raise "#{count} of #{text.bytesize} bytes" unless count == text.bytesize
    end

    def put_pieces(io, text)
      size = (text.bytesize / 5) + 1
      count = io.write(*Array.new(5) { |part| text.byteslice(part * size, size) || "" })
      raise "#{count} of #{text.bytesize} bytes" unless count == text.bytesize
    end

    def put_print(io, text) = io.print(text)

    def put_shovel(io, text) = io << text

    def put_syswrite(io, text)
      wrote(count = io.syswrite(text)) && text = text.byteslice(count..) until text.empty?
    end

    # What is not flushed is kept by the IO: a cancelled flush loses nothing and sends nothing twice. In a thread it may do so:
    # an exception may come when the bytes have been written, and Ruby has not noted it yet (thread.c,
    # rb_thread_io_blocking_call).
    def put_flushed(io, text)
      return put_write(io, text) unless Fiber.current_scheduler

      io.sync = false
      text.scan(/.{1,1000}/m) { |piece| io.print(piece) || wrote(piece.bytesize) }
      io.flush
      io.sync = true
    end

    def put_nonblock(io, text) = in_parts(io, text) { |rest| io.write_nonblock(rest, exception: false) }

    def put_selected(io, text)
      until text.empty?
        _, writable, = IO.select(nil, [io])
        wrote(count = writable.first.write_nonblock(text)) && text = text.byteslice(count..)
      end
    rescue IO::WaitWritable
      # Writable to poll(2), but not for so many bytes.
      retry
    end

    def put_copied(io, text) = IO.copy_stream(StringIO.new(text), io)

    # Within the kernel, under the scheduler. In a thread Ruby may forget there what is to be raised (io.c,
    # nogvl_copy_stream_func).
    def put_copied_file(io, text)
      return put_copied(io, text) unless Fiber.current_scheduler

      with_file(text) { |file| IO.copy_stream(file, io) }
    end

    def put_copied_slice(io, text)
      return put_copied(io, text) unless Fiber.current_scheduler

      with_file("before#{text}after") { |file| IO.copy_stream(file, io, text.bytesize, 6) }
    end

    # In a thread Ruby takes a signal for an answer (io_buffer.c, io_buffer_blocking_region).
    def put_buffer(io, text)
      return put_syswrite(io, text) unless Fiber.current_scheduler

      buffer = IO::Buffer.for(text.dup)
      offset = 0
      wrote(count = buffer.write(io, 0, offset)) && offset += count while offset < text.bytesize
    end

    # A child's bytes are the program's.
    def put_forked(io, text)
      pid = fork do
        io.write(text)
        exit!(0)
      rescue Exception # rubocop:disable Lint/RescueException
        exit!(1)
      end
      _, status = Process.wait2(pid)
      raise "the child: #{status}" unless status.success?
    end

    # Not with the IO as the child's output: the child would find it in non-blocking mode.
    def put_from_child(io, text)
      with_file(text) { |file| IO.popen(["cat", file.path]) { |child| IO.copy_stream(child, io) } }
    end

    # Sockets only.

    def put_send(io, text)
      wrote(count = io.send(text, 0)) && text = text.byteslice(count..) until text.empty?
    end

    def put_sendmsg(io, text)
      wrote(count = io.sendmsg(text)) && text = text.byteslice(count..) until text.empty?
    end

    def put_sendmsg_nonblock(io, text) = in_parts(io, text) { |rest| io.sendmsg_nonblock(rest, exception: false) }

    private

    # Waits for room between two parts. The block writes one, or says that there is none.
    def in_parts(io, text)
      until text.empty?
        count = yield text
        count == :wait_writable ? io.to_io.wait_writable : wrote(count) && text = text.byteslice(count..)
      end
    end

    # Notes how much has surely been written.
    def wrote(count) = @wrote += count

    def with_file(text)
      Tempfile.create("model") do |file|
        file.write(text)
        file.rewind
        yield file
      end
    end
  end
end
