// What npm packages store, by their own code: @47ng/cloak, ciphersweet-js, fernet, jose.
//   npm install @47ng/cloak ciphersweet-js fernet jose, and from there: node node.mjs > ../node.json
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";

const require = createRequire(process.cwd() + "/");
const cloak = require("@47ng/cloak");
const fernet = require("fernet");
const jose = require("jose");
const { CipherSweet, StringProvider, ModernCrypto } = require("ciphersweet-js");
const { EncryptedField, BlindIndex, Lowercase } = require("ciphersweet-js");

const texts = ["a", "Grüße, Zürich ✓", "x".repeat(300)];
const hex = (text) => Buffer.from(text).toString("hex");
const vectors = [];

{
  const key = cloak.generateKey();
  const { raw: bytes, fingerprint: version } = cloak.parseKeySync(key);
  const raw = Buffer.from(bytes).toString("hex");
  const as = { layout: { like: "47ng-cloak" }, key: raw, version };
  for (const text of texts) {
    vectors.push({ ...as, plain: hex(text), value: await cloak.encryptString(text, key) });
  }
  const value = await cloak.encryptString("a value", key);
  vectors.push({ ...as, key: randomBytes(32).toString("hex"), value, fails: "unopenable" });
  vectors.push({ ...as, value: value.slice(0, -30), fails: "malformed" });
  vectors.push({ ...as, value: value.replace(version, "00000000"), fails: "malformed" });
}

{
  const key = randomBytes(32);
  const secret = new fernet.Secret(key.toString("base64url") + "=");
  const seal = (message, time) => new fernet.Token({ secret, time }).encode(message);
  const as = { layout: { like: "fernet" }, key: key.toString("hex") };
  for (const text of texts) {
    const time = Date.UTC(2020, 1, 2);
    vectors.push({ ...as, plain: hex(text), time: time / 1000, value: seal(text, new Date(time)) });
  }
  const value = seal("a value", new Date());
  vectors.push({ ...as, key: randomBytes(32).toString("hex"), value, fails: "unopenable" });
  vectors.push({ ...as, value: value.slice(0, 80), fails: "malformed" });
}

{
  const key = randomBytes(32);
  const seal = (text, kid) => {
    const header = { alg: "dir", enc: "A256GCM", kid };
    return new jose.CompactEncrypt(Buffer.from(text)).setProtectedHeader(header).encrypt(key);
  };
  const as = { layout: { like: "jwe" }, key: key.toString("hex"), version: "2026-07" };
  for (const text of texts) vectors.push({ ...as, plain: hex(text), value: await seal(text, "2026-07") });
  const value = await seal("a value", "2026-07");
  vectors.push({ ...as, key: randomBytes(32).toString("hex"), value, fails: "unopenable" });
  vectors.push({ ...as, value: value.replace(/\.[^.]*$/, ""), fails: "malformed" });
  vectors.push({ ...as, value: await seal("a value", "2025-01"), fails: "malformed" });
}

{
  const key = randomBytes(32).toString("hex");
  const engine = new CipherSweet(new StringProvider(key), new ModernCrypto());
  const field = new EncryptedField(engine, "contacts", "ssn")
    .addBlindIndex(new BlindIndex("contact_ssn", [], 32, true))
    .addBlindIndex(new BlindIndex("contact_ssn_slow", [], 20, false))
    .addBlindIndex(new BlindIndex("contact_ssn_lower", [new Lowercase()], 64, true));
  const as = { layout: { like: "ciphersweet" }, key, table: "contacts", column: "ssn" };
  const kinds = {
    contact_ssn: { kind: "ciphersweet", bits: 32 },
    contact_ssn_slow: { kind: "ciphersweet", bits: 20, slow: true, passes: 4, memory_kib: 32768 },
    contact_ssn_lower: { kind: "ciphersweet", bits: 64, normalize: "lowercase" },
  };
  for (const text of [...texts, "Ada.Lovelace@Example.org"]) {
    const [value, found] = await field.prepareForStorage(Buffer.from(text));
    // its lower case works byte by byte, and spoils what is not ASCII
    if (/[^ -~]/.test(text)) delete found.contact_ssn_lower;
    const indexes = Object.entries(found).map(([name, stored]) => ({ ...kinds[name], name, stored }));
    vectors.push({ ...as, plain: hex(text), value, indexes });
  }
  const [value] = await field.prepareForStorage("a value");
  vectors.push({ ...as, key: randomBytes(32).toString("hex"), value, fails: "unopenable" });
  vectors.push({ ...as, column: "phone", value, fails: "unopenable" });
  vectors.push({ ...as, value: value.slice(0, 40), fails: "malformed" });
}

const packages = ["@47ng/cloak", "ciphersweet-js", "fernet", "jose"];
const named = packages.map((name) => {
  try {
    return `${name} ${require(`./node_modules/${name}/package.json`).version}`;
  } catch {
    return name;
  }
});
console.log(JSON.stringify({ maker: `node ${process.version} with ${named.join(", ")}`, vectors }, null, 2));
