# The blind indexes of the gem blind_index beside values of Lockbox, by their own code.
#   ruby blind_index.rb make | python broken.py > ../blind_index.json
require "stringio"
require "json"
require "securerandom"
require "lockbox"
require "blind_index"

key = SecureRandom.hex(32)
place = { table: "users", attribute: "email_ciphertext" }
box = Lockbox.new(key: Lockbox.attribute_key(**place, master_key: key), encode: true)

def index(text, key, column, **options)
  secret = BlindIndex.index_key(table: "users", bidx_attribute: column, master_key: key, encode: false)
  BlindIndex.generate_bidx(text, key: secret, **options)
end

as = { "layout" => { "like" => "lockbox" }, "key" => key, "table" => "users", "column" => "email_ciphertext" }
vectors = ["", "Ada@Example.org", "Grüße, Zürich ✓"].map do |text|
  plain = { "kind" => "lockbox", "name" => "email_bidx", "stored" => index(text, key, "email_bidx") }
  lower = plain.merge(
    "normalize" => "lowercase", "stored" => index(text, key, "email_bidx", expression: ->(v) { v.downcase })
  )
  short = plain.merge("bits" => 128, "stored" => index(text, key, "email_bidx", size: 16))
  slow = plain.merge(
    "name" => "slow", "passes" => 4, "memory_kib" => 32_768, "stored" => index(text, key, "slow", slow: true)
  )
  indexes = [plain, lower, short, slow]
  { "expect" => "ok", "plain" => text.b.unpack1("H*"), "value" => box.encrypt(text), "indexes" => indexes }
end
other = Lockbox.new(key: SecureRandom.hex(32), encode: true).encrypt("a")
vectors << { "expect" => "unknown-key", "why" => "sealed under another key", "value" => other }
maker = "ruby #{RUBY_VERSION} with lockbox #{Lockbox::VERSION}, blind_index #{BlindIndex::VERSION}"
puts JSON.generate("maker" => maker, "sets" => [{ **as, "vectors" => vectors }])
