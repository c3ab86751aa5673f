// What an application in Node stores when it works with envelopes: payloads sealed by data keys, data keys
// wrapped by a key-encryption key. By node:crypto alone: `node envelopes.mjs < calls.json > answers.json`.
import {
  constants,
  createCipheriv,
  createDecipheriv,
  privateDecrypt,
  publicEncrypt,
  randomBytes,
} from "node:crypto";

const bytes = (text) => Buffer.from(text, "base64");

function seal({ key, plain, aad }) {
  const iv = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", bytes(key), iv);
  if (aad) cipher.setAAD(Buffer.from(aad));
  const ct = Buffer.concat([cipher.update(bytes(plain)), cipher.final()]);
  return { iv: iv.toString("base64"), ct: ct.toString("base64"), tag: cipher.getAuthTag().toString("base64") };
}

function open({ key, iv, ct, tag, aad }) {
  const decipher = createDecipheriv("aes-256-gcm", bytes(key), bytes(iv));
  if (aad) decipher.setAAD(Buffer.from(aad));
  decipher.setAuthTag(bytes(tag));
  return Buffer.concat([decipher.update(bytes(ct)), decipher.final()]).toString("base64");
}

const oaep = ({ pem, hash }) => ({ key: pem, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: hash });

const verbs = {
  seal,
  open,
  wrap: (call) => publicEncrypt(oaep(call), bytes(call.plain)).toString("base64"),
  unwrap: (call) => privateDecrypt(oaep(call), bytes(call.ct)).toString("base64"),
};

let input = "";
for await (const part of process.stdin) input += part;
const answers = JSON.parse(input).map((call) => {
  try {
    return verbs[call.verb](call);
  } catch {
    return null;
  }
});
process.stdout.write(JSON.stringify(answers));
