// Envelopes as an application makes and reads them with Node's own crypto.
//   node documents.mjs make  < {"key": hex, "version": "v1", "documents": [{"id", "tenant", "fields": {…}}], "shared": false}
//   node documents.mjs open  < {"keys": {"v1": hex}, "deks": [record…], "values": [{"dekId", "iv", "tag", "ct"}…]}
// "make" prints {"deks": [record…], "documents": [{"id", "fields": {name: {ct, iv, tag, dekId, mekVersion}}}]};
// "open" prints the plaintexts, null for what does not open.
import { createCipheriv, createDecipheriv, randomBytes, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

const base64 = (bytes) => bytes.toString("base64");

function seal(key, plain) {
  const iv = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, iv);
  const ct = Buffer.concat([cipher.update(plain), cipher.final()]);
  return { ct: base64(ct), iv: base64(iv), tag: base64(cipher.getAuthTag()) };
}

function open(key, { ct, iv, tag }) {
  const decipher = createDecipheriv("aes-256-gcm", key, Buffer.from(iv, "base64"));
  decipher.setAuthTag(Buffer.from(tag, "base64"));
  return Buffer.concat([decipher.update(Buffer.from(ct, "base64")), decipher.final()]);
}

function make({ key, version, documents, shared }) {
  const mek = Buffer.from(key, "hex");
  const deks = [];
  const mint = (tenant) => {
    const dek = randomBytes(32);
    const { ct, iv, tag } = seal(mek, dek);
    const record = { id: randomUUID(), tenant, wrappedDek: ct, iv, tag, mekVersion: version };
    deks.push(record);
    return { dek, id: record.id };
  };
  const tenants = {};
  const sealed = documents.map(({ id, tenant, fields }) => {
    const { dek, id: dekId } = shared ? (tenants[tenant] ??= mint(tenant)) : mint(tenant);
    const values = Object.entries(fields).map(([name, plain]) => [
      name,
      { ...seal(dek, plain), dekId, mekVersion: version },
    ]);
    return { id, tenant, fields: Object.fromEntries(values) };
  });
  return { deks, documents: sealed };
}

function openAll({ keys, deks, values }) {
  const records = new Map(deks.map((record) => [record.id, record]));
  const opened = new Map();
  const dekOf = (id) => {
    if (!opened.has(id)) {
      const { wrappedDek, iv, tag, mekVersion } = records.get(id);
      opened.set(id, open(Buffer.from(keys[mekVersion], "hex"), { ct: wrappedDek, iv, tag }));
    }
    return opened.get(id);
  };
  return values.map((value) => {
    try {
      return open(dekOf(value.dekId), value).toString();
    } catch {
      return null;
    }
  });
}

const asked = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(process.argv[2] === "make" ? make(asked) : openAll(asked)));
