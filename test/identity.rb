# frozen_string_literal: true

require "openssl"

# A key and a certificate that it has signed itself, for servers of the tests.
module Identity
  def self.key = @key ||= OpenSSL::PKey::EC.generate("prime256v1")

  # @param names [String] of the server, as subjectAltName has them
  def self.certificate(names = "DNS:localhost")
    @certificates ||= {}
    @certificates[names] ||= OpenSSL::X509::Certificate.new.tap do |certificate|
      certificate.version = 2
      certificate.serial = 1
      certificate.subject = certificate.issuer = OpenSSL::X509::Name.parse("/CN=localhost")
      certificate.public_key = key
      certificate.not_before = Time.now - 60
      certificate.not_after = Time.now + 86_400
      extensions = OpenSSL::X509::ExtensionFactory.new(certificate, certificate)
      certificate.add_extension(extensions.create_extension("basicConstraints", "CA:TRUE", true))
      certificate.add_extension(extensions.create_extension("subjectAltName", names, false))
      certificate.sign(key, "SHA256")
    end
  end
end
