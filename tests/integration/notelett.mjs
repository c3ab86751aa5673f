// NoteLett as far as a rotation can see it: DEK records and encrypted documents in Cosmos DB, made and read with
// Node's own crypto and http. It shares nothing with rewrap. The names of fields are assumptions: see
// docs/systems/notelett.md.
//
//   node notelett.mjs make '{"dek_store": 100, "notes": 40}'   DEK records and documents, all in good order
//   node notelett.mjs odd                one of each kind that a rotation must not trip over
//   node notelett.mjs save CONTAINER ID TEXT    a document under a DEK of its own, as the application writes it
//   node notelett.mjs read               every DEK record and every document, opened if it can be
//   node notelett.mjs write [SEED] [NEW] [PAUSE_MS]    writes until its standard input ends, at most NEW new
//                                        documents, and says what it wrote
//
// What it prints is one JSON object: {container: {id: what it is}}.
//
//   NOTELETT_MEKS         {version: {"public": PEM, "private": PEM} | {"secret": hex} | {"public", "vault", "token"}}
//   NOTELETT_MEK_VERSION  the version that new DEKs are wrapped under
//   NOTELETT_DEK_STORES   the containers of DEK records, with commas between them; dek_store if not set

import { Buffer } from "node:buffer";
import crypto from "node:crypto";
import http from "node:http";
import https from "node:https";

const endpoint = new URL(process.env.COSMOS_ENDPOINT);
const accountKey = Buffer.from(process.env.COSMOS_KEY, "base64");
const database = process.env.COSMOS_DATABASE;
const meks = JSON.parse(process.env.NOTELETT_MEKS);
const current = process.env.NOTELETT_MEK_VERSION;
const dekStores = (process.env.NOTELETT_DEK_STORES ?? "dek_store").split(",");
const AT_ONCE = 16;

// The encrypted containers: their partition key, and the properties that are encrypted field objects.
const CONTAINERS = {
  notes: { partition: "workspaceId", fields: ["body"] },
  artifacts: { partition: "workspaceId", fields: ["content"] },
  prompts: { partition: "userId", fields: ["template"] },
  agent_actions: { partition: "workspaceId", fields: ["input", "output"] },
  memories: { partition: "userId", fields: ["text"] },
};

// Cosmos DB's REST interface

const client = endpoint.protocol === "https:" ? https : http;
const agent = new client.Agent({ keepAlive: true, maxSockets: AT_ONCE });

function exchange(method, path, body, headers) {
  const parts = path.split("/");
  const [kind, link] = parts.length % 2 ? [parts.at(-1), parts.slice(0, -1).join("/")] : [parts.at(-2), path];
  const date = new Date().toUTCString().toLowerCase();
  const signed = `${method.toLowerCase()}\n${kind}\n${link}\n${date}\n\n`;
  const signature = crypto.createHmac("sha256", accountKey).update(signed).digest("base64");
  const sent = {
    authorization: encodeURIComponent(`type=master&ver=1.0&sig=${signature}`),
    "x-ms-date": date,
    "x-ms-version": "2020-07-15",
    "content-type": "application/json",
    ...headers,
  };
  return new Promise((resolve, reject) => {
    const target = { host: endpoint.hostname, port: endpoint.port, path: `/${path}`, method, headers: sent, agent };
    const request = client.request(target, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        resolve({ status: response.statusCode, headers: response.headers, body: text ? JSON.parse(text) : null });
      });
    });
    request.on("error", reject);
    request.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

async function done(...request) {
  const answer = await exchange(...request);
  if (answer.status >= 400) throw new Error(`${request[0]} ${request[1]}: ${answer.status}`);
  return answer;
}

const inside = (container) => `dbs/${database}/colls/${container}/docs`;

const partitionOf = (container, document) => ({
  "x-ms-documentdb-partitionkey": JSON.stringify([
    document[CONTAINERS[container] ? CONTAINERS[container].partition : "id"],
  ]),
});

function upsert(container, document) {
  const headers = { ...partitionOf(container, document), "x-ms-documentdb-is-upsert": "True" };
  return done("POST", inside(container), document, headers);
}

async function* documents(container) {
  let token;
  do {
    const headers = { "x-ms-max-item-count": "5000", ...(token && { "x-ms-continuation": token }) };
    const page = await exchange("GET", inside(container), undefined, headers);
    if (page.status === 404) return;
    if (page.status >= 400) throw new Error(`${container}: ${page.status}`);
    yield* page.body.Documents;
    token = page.headers["x-ms-continuation"];
  } while (token);
}

// many things at once, AT_ONCE at a time
async function each(items, work) {
  const left = items[Symbol.iterator]();
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (const item of left) await work(item);
    }),
  );
}

// Sealing and wrapping

const OAEP = { padding: crypto.constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256" };

function seal(key, plain) {
  const iv = crypto.randomBytes(12);
  const cipher = crypto.createCipheriv("aes-256-gcm", key, iv);
  const ct = Buffer.concat([cipher.update(plain), cipher.final()]);
  return { iv, ct, tag: cipher.getAuthTag() };
}

function open(key, { iv, ct, tag }) {
  const decipher = crypto.createDecipheriv("aes-256-gcm", key, iv);
  decipher.setAuthTag(tag);
  return Buffer.concat([decipher.update(ct), decipher.final()]);
}

function wrap(version, dek) {
  const mek = meks[version];
  if (mek.public) return crypto.publicEncrypt({ key: mek.public, ...OAEP }, dek).toString("base64");
  const { iv, ct, tag } = seal(Buffer.from(mek.secret, "hex"), dek);
  return Buffer.concat([iv, ct, tag]).toString("base64");
}

async function unwrap(version, wrapped) {
  const mek = meks[version];
  if (!mek) throw new Error("no such MEK version");
  const bytes = Buffer.from(wrapped, "base64");
  if (mek.vault) return unwrapInVault(mek, bytes);
  if (mek.private) return crypto.privateDecrypt({ key: mek.private, ...OAEP }, bytes);
  const secret = Buffer.from(mek.secret, "hex");
  return open(secret, { iv: bytes.subarray(0, 12), ct: bytes.subarray(12, -16), tag: bytes.subarray(-16) });
}

async function unwrapInVault(mek, bytes) {
  const answer = await fetch(`${mek.vault}/unwrapkey?api-version=7.4`, {
    method: "POST",
    headers: { authorization: `Bearer ${mek.token}`, "content-type": "application/json" },
    body: JSON.stringify({ alg: "RSA-OAEP-256", value: bytes.toString("base64url") }),
  });
  if (!answer.ok) throw new Error(`the vault answers ${answer.status}`);
  return Buffer.from((await answer.json()).value, "base64url");
}

function field(dekId, dek, plain, mekVersion = current) {
  const { iv, ct, tag } = seal(dek, plain);
  return {
    __encrypted: true,
    v: 1,
    alg: "aes-256-gcm",
    dekId,
    mekVersion,
    iv: iv.toString("base64"),
    ct: ct.toString("base64"),
    tag: tag.toString("base64"),
  };
}

// The application

let counter = 0;
const newId = (prefix) => `${prefix}-${String((counter += 1)).padStart(6, "0")}-${crypto.randomBytes(4).toString("hex")}`;

function dekRecord(id, dek, version = current) {
  const asymmetric = Boolean(meks[version].public);
  return {
    id,
    productId: "notelett",
    wrappedDek: wrap(version, dek),
    mekVersion: version,
    algorithm: asymmetric ? "RSA-OAEP-256" : "A256GCM",
    createdAt: new Date().toISOString(),
  };
}

function encrypted(container, id, texts, dekId, dek) {
  const { partition, fields } = CONTAINERS[container];
  const document = { id, [partition]: `${partition}-${id.length % 3}${id.at(-1)}`, productId: "notelett", title: `about ${id}` };
  fields.forEach((name, at) => (document[name] = field(dekId, dek, texts[at])));
  return { ...document, updatedAt: new Date().toISOString() };
}

const plainsOf = (texts) => texts.map((text) => text.toString("base64"));

const TEXTS = [
  () => Buffer.from("plain ASCII, nothing else"),
  () => Buffer.from("Grüße aus Zürich — 日本語 \u{1F512}"),
  () => Buffer.from(crypto.randomBytes(3_000).toString("base64")),
  () => Buffer.from(""),
  () => Buffer.from(`{"looks": "like JSON", "mekVersion": "v1"}`),
];

async function make(counts) {
  const told = Object.fromEntries(dekStores.map((name) => [name, {}]));
  const deks = [];
  for (const store of dekStores) {
    await each(Array(counts[store] ?? 0).fill(), async () => {
      const [id, dek] = [newId("dek"), crypto.randomBytes(32)];
      await upsert(store, dekRecord(id, dek));
      deks.push([id, dek]);
      told[store][id] = { kind: "stale", dek: digest(dek) };
    });
  }
  for (const [container, { fields }] of Object.entries(CONTAINERS)) {
    if (!counts[container]) continue;
    told[container] = {};
    await each(Array(counts[container]).fill(), async () => {
      const id = newId(container);
      const [dekId, dek] = deks[counter % deks.length];
      const texts = fields.map((_, at) => TEXTS[(counter + at) % TEXTS.length]());
      await upsert(container, encrypted(container, id, texts, dekId, dek));
      told[container][id] = { kind: "encrypted", plains: plainsOf(texts) };
    });
  }
  return told;
}

// One of each kind; a note refers to each DEK that opens, so that it can be seen to be readable.
async function odd() {
  const store = dekStores[0];
  const told = { [store]: {}, notes: {} };
  async function keep(kind, changes, opens = true) {
    const [id, dek] = [newId(`odd-${kind}`), crypto.randomBytes(32)];
    const record = { ...dekRecord(id, dek), ...changes(dek) };
    for (const name of Object.keys(record)) if (record[name] === undefined) delete record[name];
    await upsert(store, record);
    told[store][id] = { kind, dek: digest(dek) };
    if (!opens) return;
    const note = encrypted("notes", newId("note-of"), [Buffer.from(`of ${kind}`)], id, dek);
    await upsert("notes", note);
    told.notes[note.id] = { kind: "encrypted", plains: plainsOf([Buffer.from(`of ${kind}`)]) };
  }
  const stranger = crypto.randomBytes(32);
  const foreign = (dek) => {
    if (!meks[current].public) {
      const { iv, ct, tag } = seal(stranger, dek);
      return Buffer.concat([iv, ct, tag]).toString("base64");
    }
    const { publicKey } = crypto.generateKeyPairSync("rsa", { modulusLength: 2048 });
    return crypto.publicEncrypt({ key: publicKey, ...OAEP }, dek).toString("base64");
  };
  await keep("no_version", () => ({ mekVersion: undefined }));
  await keep("null_version", () => ({ mekVersion: null }));
  await keep("number_version", () => ({ mekVersion: 1 }));
  await keep("other_version", () => ({ mekVersion: "retired-long-ago" }), false);
  await keep("malformed", (dek) => ({ wrappedDek: `${wrap(current, dek).slice(0, 21)}!` }), false);
  await keep("unopenable", (dek) => ({ wrappedDek: foreign(dek) }), false);
  await keep("null", () => ({ wrappedDek: null }), false);

  const place = { workspaceId: "workspaceId-odd", productId: "notelett", title: "odd" };
  const plain = { id: newId("note-plain"), ...place, body: "written before encryption came" };
  const empty = { id: newId("note-null"), ...place, body: null };
  const without = { id: newId("note-without"), ...place };
  const orphan = { id: newId("note-orphan"), ...place, body: field("dek-that-is-gone", stranger, Buffer.from("lost")) };
  for (const [note, kind] of [[plain, "plaintext"], [empty, "null"], [without, "null"], [orphan, "orphan"]]) {
    await upsert("notes", note);
    told.notes[note.id] = { kind };
  }
  return told;
}

async function save(container, id, text) {
  const [dekId, dek, texts] = [newId("dek"), crypto.randomBytes(32), CONTAINERS[container].fields.map(() => Buffer.from(text))];
  await upsert(dekStores[0], dekRecord(dekId, dek));
  await upsert(container, encrypted(container, id, texts, dekId, dek));
  return {
    [dekStores[0]]: { [dekId]: { kind: "current", dek: digest(dek) } },
    [container]: { [id]: { kind: "encrypted", plains: plainsOf(texts) } },
  };
}

// Reading

const digest = (bytes) => crypto.createHash("sha256").update(bytes).digest("hex");

async function read() {
  const told = {};
  const deks = new Map();
  for (const store of dekStores) {
    told[store] = {};
    const records = [];
    for await (const record of documents(store)) records.push(record);
    await each(records, async (record) => {
      const { mekVersion } = record;
      const said = { hash: digest(JSON.stringify(record)), mekVersion, others: others(record, ["wrappedDek", "mekVersion"]) };
      told[store][record.id] = said;
      // a record without a usable version is tried with every MEK, as the reader of last resort would
      const versions = typeof mekVersion === "string" ? [mekVersion] : Object.keys(meks);
      for (const version of versions) {
        try {
          const dek = await unwrap(version, record.wrappedDek);
          if (dek.length !== 32) continue;
          deks.set(record.id, dek);
          said.dek = digest(dek);
          said.opened = version;
        } catch {
          // the next one, or none
        }
      }
    });
  }
  for (const [container, { fields }] of Object.entries(CONTAINERS)) {
    told[container] = {};
    for await (const document of documents(container)) {
      const read = fields.map((name) => readField(document[name], deks));
      told[container][document.id] = {
        hash: digest(JSON.stringify(document)),
        kinds: read.map(({ kind }) => kind),
        plains: read.map(({ plain }) => plain),
        dekIds: fields.map((name) => document[name]?.dekId ?? null),
        others: others(document, fields),
      };
    }
  }
  return told;
}

// the rest of a document, without what Cosmos DB itself changes with each write
function others(document, fields) {
  const left = Object.entries(document).filter(([name]) => !fields.includes(name) && !["_etag", "_ts"].includes(name));
  return digest(JSON.stringify(left.sort()));
}

function readField(value, deks) {
  if (value === null || value === undefined) return { kind: "null" };
  if (typeof value === "string") return { kind: "plaintext", plain: Buffer.from(value).toString("base64") };
  const dek = deks.get(value.dekId);
  if (!dek) return { kind: "no dek" };
  try {
    const sealed = Object.fromEntries(["iv", "ct", "tag"].map((name) => [name, Buffer.from(value[name], "base64")]));
    return { kind: "encrypted", plain: open(dek, sealed).toString("base64") };
  } catch {
    return { kind: "unreadable" };
  }
}

// A live writer: new documents under new DEKs, a mark on a DEK record that is there, a DEK record removed
// that nothing refers to. Every write of a record that is there goes by its etag, as an application's should.

async function write(seed, most = "1000", pauseMs = "4") {
  let state = BigInt(seed ?? 1) * 6364136223846793005n + 1442695040888963407n;
  const random = (below) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number((state >> 33n) % BigInt(below));
  };
  let ended = false;
  process.stdin.on("end", () => (ended = true)).resume();
  const told = { marked: {}, lost: 0, ...Object.fromEntries([...dekStores, "notes"].map((name) => [name, {}])) };
  const ids = {};
  for (const store of dekStores) {
    ids[store] = [];
    for await (const { id } of documents(store)) ids[store].push(id);
  }
  process.stderr.write("writing\n");
  while (!ended) {
    const store = dekStores[random(dekStores.length)];
    const made = Object.keys(told.notes).length;
    if (made < Number(most) && (random(3) === 0 || !ids[store].length)) {
      const [dekId, dek, id] = [newId("live"), crypto.randomBytes(32), newId("live-note")];
      const texts = [Buffer.from(`written at ${new Date().toISOString()}`)];
      // documents name DEKs of the first container
      await upsert(dekStores[0], dekRecord(dekId, dek));
      await upsert("notes", encrypted("notes", id, texts, dekId, dek));
      told[dekStores[0]][dekId] = { kind: "live", dek: digest(dek) };
      told.notes[id] = { kind: "encrypted", plains: plainsOf(texts) };
    } else {
      const id = ids[store][random(ids[store].length)];
      const path = `${inside(store)}/${id}`;
      const headers = partitionOf(store, { id });
      const { body: record } = await done("GET", path, undefined, headers);
      const mark = `${random(1_000_000)}`;
      const answer = await exchange("PUT", path, { ...record, lastUsed: mark }, { ...headers, "if-match": record._etag });
      // 412: rewrap was faster; the application lets the mark go, as it would
      if (answer.status === 200) told.marked[id] = mark;
      else if (answer.status === 412) told.lost += 1;
      else throw new Error(`${path}: ${answer.status}`);
    }
    await new Promise((resolve) => setTimeout(resolve, Number(pauseMs)));
  }
  return told;
}

const [verb, ...given] = process.argv.slice(2);
const verbs = { make: (text) => make(JSON.parse(text)), odd, save, read, write };
process.stdout.write(JSON.stringify(await verbs[verb](...given)));
agent.destroy();
