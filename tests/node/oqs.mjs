// Does with liboqs as WebAssembly what it is asked: a JSON request on each line, a JSON reply for each.
// The first request pays for the loading of a module; octets travel as base64.

import { createInterface } from "node:readline";
import * as oqs from "@oqs/liboqs-js";

const makers = {
  "ML-KEM-1024": oqs.createMLKEM1024,
  "HQC-256": oqs.createHQC256,
  "FrodoKEM-1344-SHAKE": oqs.createFrodoKEM1344SHAKE,
  "Classic-McEliece-6688128": oqs.createClassicMcEliece6688128,
  "ML-DSA-87": oqs.createMLDSA87,
};
const made = {};
const octets = (text) => new Uint8Array(Buffer.from(text, "base64"));
const base64 = (_key, value) => (value instanceof Uint8Array ? Buffer.from(value).toString("base64") : value);

for await (const line of createInterface({ input: process.stdin })) {
  const { algorithm, method, parameters } = JSON.parse(line);
  let reply;
  try {
    made[algorithm] ??= await makers[algorithm]();
    const scheme = made[algorithm];
    reply = { value: method === "info" ? scheme.info : scheme[method](...parameters.map(octets)) };
  } catch (error) {
    reply = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(reply, base64) + "\n");
}
