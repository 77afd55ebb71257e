# frozen_string_literal: true

require "logger"
require "net/http"
require "rails"
require "active_record/railtie"
require "action_controller/railtie"
require "uringmachine"

# A small Rails application, of which test_rails.rb makes requests; docs/guides/rails.md shows parts of it.
module RailsApplication
  # Calls works at the same time, each in a fiber of this thread's; returns what they return, in their order, or raises what one has raised.
  module AtOnce
    # Raised in those that nobody waits for any more.
    class Stopped < StandardError
    end

    def self.call(*works)
      # A server that runs each request in a fiber has one already.
      own = Fiber.set_scheduler(UM::FiberScheduler.new) unless Fiber.current_scheduler
      results = Array.new(works.size)
      errors = []
      ended = Queue.new
      fibers = []
      works.each_with_index do |work, index|
        Fiber.schedule do
          fibers << Fiber.current
          results[index] = Rails.application.executor.wrap(&work)
        rescue StandardError => e
          errors << e
        ensure
          ended << true
        end
      end
      own ? own.run : works.size.times { ended.pop }
      raise errors.first if errors.any?

      results
    ensure
      # Not killed: other libraries than ActiveRecord may commit what a killed fiber has half done.
      fibers.each { |fiber| fiber.raise(Stopped) if fiber.alive? }
      Fiber.set_scheduler(nil) if own
    end
  end

  class Application < Rails::Application
    config.load_defaults 7.2
    config.root = __dir__
    config.eager_load = true
    config.enable_reloading = false
    config.logger = Logger.new(File::NULL)
    config.secret_key_base = "a" * 64
    config.active_support.isolation_level = :fiber

    routes.append do
      get "/answer", to: "rails_application/pages#show"
      get "/slow", to: "rails_application/pages#slow"
    end
  end

  class Current < ActiveSupport::CurrentAttributes
    attribute :visitor
  end

  class Visit < ActiveRecord::Base
  end

  class PagesController < ActionController::API
    before_action { Current.visitor = params[:name] }

    # Three requests to another server at the same time, each of which is written down.
    def show
      bodies = AtOnce.call(*%w[one two three].map { |page| -> { fetch(page) } })
      render plain: "#{Current.visitor} #{bodies.join(" ")} #{Visit.where(name: Current.visitor).delete_all}"
    end

    def slow
      render plain: Rails.configuration.x.slowly.call(params[:name])
    end

    private

    def fetch(page)
      # A fiber has no current attributes yet: it is given what it needs.
      Net::HTTP.get("127.0.0.1", "/#{page}", Rails.configuration.x.port).tap { Visit.create!(name: params[:name], page:) }
    end
  end
end
