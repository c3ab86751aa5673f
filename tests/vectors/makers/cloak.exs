# What Elixir's Cloak stores, by its own code (the hex package cloak).
#   elixir -pa PATH/TO/cloak/ebin cloak.exs | python broken.py > ../cloak.json
key = :crypto.strong_rand_bytes(32)
hex = &Base.encode16(&1, case: :lower)

seal = fn text, tag, length, key ->
  {:ok, sealed} = Cloak.Ciphers.AES.GCM.encrypt(text, key: key, tag: tag, iv_length: length)
  sealed
end

vector = fn fields ->
  "    {" <> Enum.map_join(fields, ", ", fn {name, value} -> ~s("#{name}": #{value}) end) <> "}"
end

text = fn value -> ~s("#{value}") end

layouts = [
  {"elixir-cloak", 12, ~s({"like": "elixir-cloak"})},
  {"elixir-cloak", 16, ~s({"like": "elixir-cloak", "nonce_bytes": 16})},
  {"elixir-cloak-base64", 12, ~s({"like": "elixir-cloak-base64"})}
]

sets =
  for {like, length, layout} <- layouts do
    tag = "AES.GCM.V1"

    stored = fn raw ->
      case like do
        "elixir-cloak" -> {"bytes", text.(hex.(raw))}
        "elixir-cloak-base64" -> {"value", text.(Base.encode64(raw))}
      end
    end

    good =
      for plain <- ["", "a", "Grüße, Zürich ✓", String.duplicate("x", 300)] do
        value = stored.(seal.(plain, tag, length, key))
        vector.([{"expect", text.("ok")}, {"plain", text.(hex.(plain))}, value])
      end

    wrong = stored.(seal.("a value", tag, length, :crypto.strong_rand_bytes(32)))
    other = stored.(seal.("a value", "AES.GCM.V2", length, key))

    bad = [
      vector.([{"expect", text.("unknown-key")}, {"why", text.("sealed under another key")}, wrong]),
      vector.([
        {"expect", text.("unknown-key")},
        {"why", text.("under a version without a key")},
        {"named", text.("AES.GCM.V2")},
        other
      ])
    ]

    vectors = {"vectors", "[\n" <> Enum.join(good ++ bad, ",\n") <> "\n]"}
    vector.([{"layout", layout}, {"key", text.(hex.(key))}, {"version", text.(tag)}, vectors])
  end

maker = "elixir #{System.version()}, otp #{System.otp_release()}, cloak's GCM cipher"
IO.puts(~s({\n  "maker": "#{maker}",\n  "sets": [\n) <> Enum.join(sets, ",\n") <> "\n  ]\n}")
