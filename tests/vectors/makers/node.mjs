// What npm packages store, by their own code: @47ng/cloak, ciphersweet-js, fernet, jose.
//   npm install @47ng/cloak ciphersweet-js fernet jose, and from there:
//   node PATH/TO/node.mjs | python PATH/TO/broken.py > node.json
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";

const require = createRequire(process.cwd() + "/");
const cloak = require("@47ng/cloak");
const fernet = require("fernet");
const jose = require("jose");
const { CipherSweet, StringProvider, ModernCrypto } = require("ciphersweet-js");
const { EncryptedField, BlindIndex, Lowercase } = require("ciphersweet-js");

const texts = ["", "a", "Grüße, Zürich ✓", "x".repeat(300)];
const hex = (text) => Buffer.from(text).toString("hex");
const sets = [];

// one set of vectors: what `seal` makes of each text, and what it makes with something else
async function add(about, seal, others, each = texts) {
  const vectors = [];
  for (const text of each) vectors.push({ expect: "ok", plain: hex(text), ...(await seal(text)) });
  for (const [expect, why, other, more] of others) vectors.push({ expect, why, ...(await other), ...more });
  sets.push({ ...about, vectors });
}

{
  const [key, other] = [cloak.generateKey(), cloak.generateKey()];
  const { raw, fingerprint: version } = cloak.parseKeySync(key);
  const { fingerprint: named } = cloak.parseKeySync(other);
  const about = { layout: { like: "47ng-cloak" }, key: Buffer.from(raw).toString("hex"), version };
  const seal = async (text) => ({ value: await cloak.encryptString(text, key) });
  const value = await cloak.encryptString("a value", other);
  await add(about, seal, [
    ["unknown-key", "under a version without a key", { value }, { named }],
    ["unknown-key", "sealed under another key", { value: value.replace(named, version) }],
  ]);
}

{
  const [key, other] = [randomBytes(32), randomBytes(32)];
  const time = Date.UTC(2020, 1, 2);
  const seal = (text, raw = key) => {
    const secret = new fernet.Secret(raw.toString("base64url") + "=");
    return { time: time / 1000, value: new fernet.Token({ secret, time: new Date(time) }).encode(text) };
  };
  const about = { layout: { like: "fernet" }, key: key.toString("hex") };
  await add(about, (text) => seal(text), [
    ["unknown-key", "sealed under another key", seal("a value", other)],
  ]);
}

{
  const [key, other] = [randomBytes(32), randomBytes(32)];
  const seal = async (text, kid = "2026-07", raw = key) => {
    const header = { alg: "dir", enc: "A256GCM", kid };
    return { value: await new jose.CompactEncrypt(Buffer.from(text)).setProtectedHeader(header).encrypt(raw) };
  };
  const about = { layout: { like: "jwe" }, key: key.toString("hex"), version: "2026-07" };
  await add(about, (text) => seal(text), [
    ["unknown-key", "sealed under another key", seal("a value", "2026-07", other)],
    ["unknown-key", "under a version without a key", seal("a value", "2025-01"), { named: "2025-01" }],
  ]);
}

function sweet(key) {
  const engine = new CipherSweet(new StringProvider(key), new ModernCrypto());
  return (column) =>
    new EncryptedField(engine, "contacts", column)
      .addBlindIndex(new BlindIndex("contact_ssn", [], 32, true))
      .addBlindIndex(new BlindIndex("contact_ssn_slow", [], 20, false))
      .addBlindIndex(new BlindIndex("contact_ssn_lower", [new Lowercase()], 64, true));
}

{
  const key = randomBytes(32).toString("hex");
  const other = sweet(randomBytes(32).toString("hex"));
  const place = { table: "contacts", column: "ssn" };
  const kinds = {
    contact_ssn: { kind: "ciphersweet", bits: 32 },
    contact_ssn_slow: { kind: "ciphersweet", bits: 20, slow: true, passes: 4, memory_kib: 32768 },
    contact_ssn_lower: { kind: "ciphersweet", bits: 64, normalize: "lowercase" },
  };
  const seal = async (text) => {
    const [value, found] = await sweet(key)("ssn").prepareForStorage(Buffer.from(text));
    // its lower case works byte by byte, and spoils what is not ASCII
    if (/[^ -~]/.test(text)) delete found.contact_ssn_lower;
    const indexes = Object.entries(found).map(([name, stored]) => ({ ...kinds[name], name, stored }));
    return { value, indexes };
  };
  const alone = async (field, aad = "") => ({ value: await field.encryptValue("a value", aad) });
  const own = sweet(key);
  await add({ layout: { like: "ciphersweet" }, key, ...place }, seal, [
    ["unknown-key", "sealed under another key", alone(other("ssn"))],
    ["unknown-key", "another column's, and so its key", alone(own("phone"))],
    ["bad-aad", "sealed with associated data", alone(own("ssn"), "7")],
  ], [...texts, "Ada.Lovelace@Example.org"]);
  const layout = { like: "ciphersweet", aad: "{tenant_id}" };
  const bound = async (text) => ({ value: await own("ssn").encryptValue(Buffer.from(text), "7") });
  await add({ layout, key, ...place, columns: { tenant_id: "7" } }, bound, [
    ["bad-aad", "sealed for another tenant", alone(own("ssn"), "8")],
    ["bad-aad", "sealed without associated data", alone(own("ssn"))],
  ]);
}

const packages = ["@47ng/cloak", "ciphersweet-js", "fernet", "jose"];
const named = packages.map((name) => {
  try {
    return `${name} ${require(`./node_modules/${name}/package.json`).version}`;
  } catch {
    return name;
  }
});
console.log(JSON.stringify({ maker: `node ${process.version} with ${named.join(", ")}`, sets }));
