# What Active Record Encryption stores, by its own code (Rails 7 and later; Debian 12 has none).
#   ruby rails.rb make > ../rails.json
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

vectors = []
names = [{ "like" => "rails" }, { "like" => "rails", "kdf" => DERIVED }, { "like" => "rails-deterministic" }]
names.each do |layout|
  [false, true].each do |references|
    Encryption.config.store_key_references = references
    key = SecureRandom.bytes(32)
    as = { "layout" => layout, "key" => key.unpack1("H*") }
    seal = ->(text) do
      encryptor.encrypt(text, key_provider: provider(layout, key), cipher_options: options(layout))
    end
    ["", "a", "Grüße, Zürich ✓", "latin \xE9".dup.force_encoding("ISO-8859-1")].each do |text|
      vectors << { **as, "plain" => text.b.unpack1("H*"), "value" => seal.(text) }
    end
    # more than 140 bytes are deflated first: that is the plaintext as it is sealed
    long = "x" * 300
    deflated = Zlib::Deflate.deflate(long).unpack1("H*")
    vectors << { **as, "plain" => deflated, "inflated" => long.unpack1("H*"), "value" => seal.(long) }
    value = seal.("a value")
    vectors << { **as, "key" => SecureRandom.hex(32), "value" => value, "fails" => "unopenable" }
    vectors << { **as, "value" => value.sub("iv", "vi"), "fails" => "malformed" }
    vectors << { **as, "value" => value[0..-2], "fails" => "malformed" }
  end
end
maker = "ruby #{RUBY_VERSION} with activerecord #{ActiveRecord::VERSION::STRING}"
puts JSON.pretty_generate("maker" => maker, "vectors" => vectors)
