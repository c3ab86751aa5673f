# What Ruby libraries store, by their own code.
# Debian: ruby-lockbox, ruby-attr-encrypted, ruby-activesupport.
#   ruby ruby.rb make | python broken.py > ../ruby.json
#   ruby ruby.rb open < [{"layout", "key", "value", "table", "column"}, …] > ["plaintext in hex", …]
require "stringio"
require "json"
require "securerandom"
require "base64"
require "active_support"
require "active_support/core_ext"
require "active_support/message_encryptor"
require "active_support/key_generator"
require "lockbox"
require "attr_encrypted"

PART = "\u001e"
DERIVED = { "kind" => "pbkdf2", "hash" => "sha1", "salt" => "encrypted value", "iterations" => 1000 }

class Person
  extend AttrEncrypted
  attr_accessor :encrypted_ssn, :encrypted_ssn_iv, :secret
  attr_encrypted :ssn, key: :secret, encode: true, allow_empty_value: true
end

class Text
  def self.dump(text) = text
  def self.load(text) = text
end

def lockbox(key, table, column, encode)
  Lockbox.new(key: Lockbox.attribute_key(table: table, attribute: column, master_key: key), encode: encode)
end

def message_encryptor(layout, key)
  generator = ActiveSupport::KeyGenerator.new(key, iterations: 1000)
  secret = layout["kdf"] ? generator.generate_key("encrypted value", 32) : key
  ActiveSupport::MessageEncryptor.new(secret, cipher: "aes-256-gcm", serializer: Text)
end

def sealed(layout, key, text, table, column)
  case layout["like"]
  when "lockbox" then lockbox(key, table, column, true).encrypt(text)
  when "lockbox-bytes" then lockbox(key, table, column, false).encrypt(text).unpack1("H*")
  when "message-encryptor" then message_encryptor(layout, key).encrypt_and_sign(text)
  when "attr-encrypted"
    person = Person.new
    person.secret = key
    person.ssn = text
    person.encrypted_ssn_iv + PART + person.encrypted_ssn
  end
end

def opened(layout, key, value, table, column)
  case layout["like"]
  when "lockbox" then lockbox(key, table, column, true).decrypt(value)
  when "lockbox-bytes" then lockbox(key, table, column, false).decrypt([value].pack("H*"))
  when "message-encryptor" then message_encryptor(layout, key).decrypt_and_verify(value)
  when "attr-encrypted"
    person = Person.new
    person.secret = key
    person.encrypted_ssn_iv, person.encrypted_ssn = value.split(PART)
    person.ssn
  end
end

if ARGV[0] == "open"
  found = JSON.parse($stdin.read).map do |one|
    key = [one["key"]].pack("H*")
    opened(one["layout"], key, one["value"], one["table"], one["column"]).b.unpack1("H*")
  end
  puts JSON.generate(found)
  exit
end

layouts = [
  { "like" => "lockbox" },
  { "like" => "lockbox-bytes" },
  { "like" => "message-encryptor" },
  { "like" => "message-encryptor", "kdf" => DERIVED },
  { "like" => "attr-encrypted" },
]
sets = layouts.map do |layout|
  key = SecureRandom.bytes(32)
  place = { "table" => "users", "column" => "email_ciphertext" }
  name = layout["like"] == "lockbox-bytes" ? "bytes" : "value"
  seal = ->(text, with = key, column = "email_ciphertext") { sealed(layout, with, text, "users", column) }
  texts = ["", "a", "Grüße, Zürich ✓", "x" * 300]
  # this Ruby's OpenSSL refuses to seal nothing, which Lockbox knows, and the others do not
  texts.shift unless layout["like"].start_with?("lockbox")
  vectors = texts.map do |text|
    { "expect" => "ok", "plain" => text.b.unpack1("H*"), name => seal.(text) }
  end
  other = seal.("a value", SecureRandom.bytes(32))
  vectors << { "expect" => "unknown-key", "why" => "sealed under another key", name => other }
  if layout["like"].start_with?("lockbox")
    elsewhere = seal.("a value", key, "phone_ciphertext")
    vectors << { "expect" => "unknown-key", "why" => "another column's, and so its key", name => elsewhere }
  end
  apart = layout["like"] == "attr-encrypted" ? { "apart" => ["nonce"] } : {}
  { "layout" => layout, "key" => key.unpack1("H*"), **place, **apart, "vectors" => vectors }
end
versions = [Lockbox::VERSION, AttrEncrypted::Version.string, ActiveSupport::VERSION::STRING]
maker = format("ruby #{RUBY_VERSION} with lockbox %s, attr_encrypted %s, activesupport %s", *versions)
puts JSON.generate("maker" => maker, "sets" => sets)
