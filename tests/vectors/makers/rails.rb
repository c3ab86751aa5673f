# What Active Record Encryption stores, by its own code (Rails 7 and later; Debian 12 has none).
#   ruby rails.rb make | python broken.py > ../rails.json
#   ruby rails.rb open < [{"layout", "key", "value"}, …] > ["plaintext in hex, inflated where it was", …]
require "stringio"
require "json"
require "securerandom"
require "active_record"

Encryption = ActiveRecord::Encryption
PLACE = "a salt from the credentials"
DERIVED = { "kind" => "pbkdf2", "hash" => "sha256", "salt" => PLACE, "iterations" => 65_536 }

def provider(layout, key)
  Encryption.config.key_derivation_salt = PLACE
  made = layout["kdf"] ? Encryption::Key.derive_from(key) : Encryption::Key.new(key)
  Encryption::KeyProvider.new([made])
end

def options(layout)
  { deterministic: layout["like"].end_with?("deterministic") }
end

encryptor = Encryption::Encryptor.new

if ARGV[0] == "open"
  found = JSON.parse($stdin.read).map do |one|
    keys = provider(one["layout"], [one["key"]].pack("H*"))
    encryptor.decrypt(one["value"], key_provider: keys).b.unpack1("H*")
  end
  puts JSON.generate(found)
  exit
end

sets = []
names = [{ "like" => "rails" }, { "like" => "rails", "kdf" => DERIVED }, { "like" => "rails-deterministic" }]
names.each do |layout|
  [false, true].each do |references|
    Encryption.config.store_key_references = references
    key = SecureRandom.bytes(32)
    seal = ->(text, with = key) do
      encryptor.encrypt(text, key_provider: provider(layout, with), cipher_options: options(layout))
    end
    texts = ["", "a", "Grüße, Zürich ✓", "latin \xE9".dup.force_encoding("ISO-8859-1")]
    vectors = texts.map { |text| { "expect" => "ok", "plain" => text.b.unpack1("H*"), "value" => seal.(text) } }
    # more than 140 bytes are deflated first: that is the plaintext as it is sealed
    long = "x" * 300
    deflated = Zlib::Deflate.deflate(long).unpack1("H*")
    vectors << { "expect" => "ok", "plain" => deflated, "inflated" => long.unpack1("H*"), "value" => seal.(long) }
    other = seal.("a value", SecureRandom.bytes(32))
    vectors << { "expect" => "unknown-key", "why" => "sealed under another key", "value" => other }
    sets << { "layout" => layout, "key" => key.unpack1("H*"), "vectors" => vectors }
  end
end
maker = "ruby #{RUBY_VERSION} with activerecord #{ActiveRecord::VERSION::STRING}"
puts JSON.generate("maker" => maker, "sets" => sets)
