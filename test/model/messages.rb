# frozen_string_literal: true

module Model
  # Episodes on sockets of messages: each comes once, whole, in order.
  module Messages
    # @param sizes [Array<Integer>]
    # @param puts [Array<Symbol>] ways to write, in turn; these write a message by one call
    # @param takes [Array<Symbol>] ways to read, in turn
    def left_messages(sizes, puts, _takes)
      sizes.each_with_index do |size, index|
        __send__("put_#{puts[index % puts.size]}", io, text(size))
        @position += size
      end
    end

    def right_messages(sizes, _puts, takes)
      sizes.each_with_index do |size, index|
        compare(__send__("take_#{takes[index % takes.size]}", io, size + 10), text(size))
        @position += size
      end
    end

    # What is longer than its reader's buffer is cut.
    def left_cut(size, put, _take)
      __send__("put_#{put}", io, text(size))
      @position += size
    end

    def right_cut(size, _put, take)
      compare(__send__("take_#{take}", io, size / 2), text(size / 2))
      @position += size
    end

    # More than are received: those whose send has returned come.
    def left_flood(size, put, cancel)
      @sent = 0
      in_vain(cancel) do
        loop do
          __send__("put_#{put}", io, text(size))
          @sent += 1
        end
      end
      tell(@sent)
      put_send(io, "the end")
    end

    def right_flood(size, _put, cancel)
      disturb(cancel)
      sent = hear
      received = 0
      until (message = io.recv(size + 100)) == "the end"
        compare(message, text(size)) unless message == text(size)
        received += 1
      end
      # In a thread an exception may come between the call and the count.
      note(:received, received - sent) unless received == sent || (received == sent + 1 && !Fiber.current_scheduler)
    end
  end
end
