// What programs of one's own store, by Node's crypto alone: two-axis tokens, AES-GCM bound to an account.
//   node crypto.mjs make SEED | python broken.py > ../crypto.json    the same for the same seed
//   node crypto.mjs make                                             new keys and nonces each time
//   node crypto.mjs open < [{"layout", "key", "value", "aad"}, …] > ["plaintext in hex", …]
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";

const [verb, seed] = process.argv.slice(2);
let drawn = 0;

// random bytes, or with a seed always the same ones
function bytes(size) {
  if (seed === undefined) return randomBytes(size);
  return createHash("sha512").update(`${seed} ${drawn++}`).digest().subarray(0, size);
}

const INFO = "field encryption";
const two = { kind: "hkdf", hash: "sha256", info: INFO };
const bound = { encoding: "base64", aad: "{account_id}" };

// how each layout's key is made, and how its values are written and read
const layouts = [
  { layout: { like: "two-axis-token" }, info: "", axis: true },
  { layout: { like: "two-axis-token", kdf: two }, info: INFO, axis: true },
  { layout: { like: "aes-gcm" } },
  { layout: { like: "aes-gcm", aad: "{account_id}" }, aad: "acc-Zürich-7", columns: { account_id: "acc-Zürich-7" } },
  { layout: { ...bound, cipher: "aes-192-gcm" }, aad: "7", columns: { account_id: "7" } },
  { layout: { ...bound, cipher: "aes-128-gcm" }, aad: "7", columns: { account_id: "7" } },
  {
    // a data key in a record, bound to JSON; the record says which key wraps it
    layout: { encoding: "base64", cipher: "aes-256-gcm", aad: { account_id: "{account_id}" } },
    aad: '{"account_id":"7"}',
    columns: { account_id: "7" },
    apart: ["version"],
    form: "local/aether-secrets:{version}",
  },
];

const sizeOf = (layout) => Number(/\d+/.exec(layout.cipher ?? "aes-256-gcm")[0]) / 8;

function keyOf(one, key) {
  return one.axis ? Buffer.from(hkdfSync("sha256", key, "", one.info, 32)) : key;
}

function seal(one, key, text, aad = one.aad ?? "", version = "v1") {
  const nonce = bytes(12);
  const cipher = createCipheriv(`aes-${sizeOf(one.layout) * 8}-gcm`, keyOf(one, key), nonce);
  cipher.setAAD(Buffer.from(aad));
  const raw = Buffer.concat([nonce, cipher.update(text), cipher.final(), cipher.getAuthTag()]);
  if (one.axis) return `a1.k${version}:${raw.toString("base64url")}`;
  const before = one.form ? `${one.form.replace("{version}", version)}\u001e` : "";
  return before + raw.toString("base64");
}

function open(one, key, value, aad) {
  const raw = Buffer.from(value.replace(/^.*[:\u001e]/, ""), "base64");
  const decipher = createDecipheriv(`aes-${sizeOf(one.layout) * 8}-gcm`, keyOf(one, key), raw.subarray(0, 12));
  decipher.setAAD(Buffer.from(aad));
  decipher.setAuthTag(raw.subarray(-16));
  return Buffer.concat([decipher.update(raw.subarray(12, -16)), decipher.final()]);
}

if (verb === "open") {
  const found = JSON.parse(readFileSync(0)).map((asked) => {
    const same = (one) => Object.entries(one.layout).every(([name, value]) => {
      return JSON.stringify(asked.layout[name]) === JSON.stringify(value);
    });
    const one = layouts.filter(same).at(-1);
    return open(one, Buffer.from(asked.key, "hex"), asked.value, asked.aad).toString("hex");
  });
  console.log(JSON.stringify(found));
} else {
  const sets = layouts.map((one) => {
    // the application takes its secret as text
    const [key, other] = [0, 1].map(() => {
      return one.axis ? Buffer.from(bytes(32).toString("hex")) : bytes(sizeOf(one.layout));
    });
    const texts = ["", "a", '{"token":"Grüße, Zürich ✓"}', "x".repeat(300)];
    const vectors = texts.map((text) => {
      return { expect: "ok", plain: Buffer.from(text).toString("hex"), value: seal(one, key, text) };
    });
    const [text, aad] = ["a value", one.aad ?? ""];
    vectors.push({ expect: "unknown-key", why: "sealed under another key", value: seal(one, other, text) });
    vectors.push({ expect: "bad-aad", why: "sealed for another account", value: seal(one, key, text, `${aad}8`) });
    if (one.aad) {
      vectors.push({ expect: "bad-aad", why: "sealed for no account", value: seal(one, key, text, "") });
      // NULL is bound as nothing
      const value = seal(one, key, text, one.aad.replace(one.columns.account_id, ""));
      const about = { why: "of a row without an account", columns: { account_id: null } };
      vectors.push({ expect: "ok", ...about, plain: Buffer.from(text).toString("hex"), value });
    }
    if (one.axis || one.form) {
      const value = seal(one, other, text, aad, "v9");
      vectors.push({ expect: "unknown-key", why: "under a version without a key", value, named: "v9" });
    }
    const { layout, columns, apart, form } = one;
    return { layout, key: key.toString("hex"), columns, apart, form, vectors };
  });
  // what made a seeded set does not depend on the version of Node
  const maker = seed === undefined ? `node ${process.version}, crypto` : `node, crypto, seed ${seed}`;
  console.log(JSON.stringify({ maker, sets }));
}
