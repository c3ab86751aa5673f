# What Elixir's Cloak stores, by its own code (the hex package cloak).
#   elixir -pa PATH/TO/cloak/ebin cloak.exs > ../cloak.json
key = :crypto.strong_rand_bytes(32)
hex = &Base.encode16(&1, case: :lower)

seal = fn text, tag, length ->
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

vectors =
  for {like, length, layout} <- layouts do
    tag = "AES.GCM.V1"

    stored = fn raw ->
      case like do
        "elixir-cloak" -> {"bytes", text.(hex.(raw))}
        "elixir-cloak-base64" -> {"value", text.(Base.encode64(raw))}
      end
    end

    as = [{"layout", layout}, {"key", text.(hex.(key))}, {"version", text.(tag)}]
    wrong = :crypto.strong_rand_bytes(32)
    other = [{"layout", layout}, {"key", text.(hex.(wrong))}, {"version", text.(tag)}]
    value = seal.("a value", tag, length)

    good =
      for plain <- ["", "a", "Grüße, Zürich ✓", String.duplicate("x", 300)] do
        vector.(as ++ [{"plain", text.(hex.(plain))}, stored.(seal.(plain, tag, length))])
      end

    good ++
      [
        vector.(other ++ [stored.(value), {"fails", text.("unopenable")}]),
        vector.(as ++ [stored.(binary_part(value, 0, 33)), {"fails", text.("malformed")}]),
        vector.(as ++ [stored.(seal.("a value", "AES.GCM.V2", length)), {"fails", text.("malformed")}])
      ]
  end

maker = "elixir #{System.version()}, otp #{System.otp_release()}, cloak's GCM cipher"
IO.puts(~s({\n  "maker": "#{maker}",\n  "vectors": [\n) <> Enum.join(List.flatten(vectors), ",\n") <> "\n  ]\n}")
