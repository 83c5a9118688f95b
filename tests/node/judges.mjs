// Tells what mail programs show of messages: one in base64 on each line, a JSON reply for each with what every parser
// takes for header fields and file names. jsmime is Thunderbird's, as ProtonMail publishes it.

import { register } from "node:module";
import { createInterface } from "node:readline";
import emailjs from "emailjs-mime-parser";
import { simpleParser } from "mailparser";
import PostalMime, { decodeWords } from "postal-mime";

// Its modules are written for bundlers: without extensions, and not declared as ECMAScript modules.
const hooks = `
const ours = (url) => url.includes("/@protontech/jsmimeparser/");
export const resolve = (name, context, next) =>
  next(name.startsWith(".") && ours(context.parentURL ?? "") ? name + ".js" : name, context);
export const load = (url, context, next) => next(url, ours(url) ? { ...context, format: "module" } : context);
`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);
const { MimeParser, headerparser } = await import("@protontech/jsmimeparser/lib/jsmime.js");

const texts = (list) => [...new Set(list.filter((each) => typeof each === "string" && each))];

// Fields by name in lower case, and file names: all that the parser makes of one message.
class Shown {
  fields = {};
  names = [];

  field(name, value) {
    (this.fields[name] ??= []).push(value);
  }

  done() {
    for (const name of Object.keys(this.fields)) this.fields[name] = texts(this.fields[name].flat());
    return { fields: this.fields, names: texts(this.names) };
  }
}

function jsmime(message) {
  const shown = new Shown();
  const parameter = (headers, field, name) => {
    const raw = headers._rawHeaders.get(field)?.[0];
    if (raw === undefined) return undefined;
    const text = headerparser.convert8BitHeader(raw, headers.charset);
    return headerparser.parseParameterHeader(`;${text}`, true, true).get(name);
  };
  const parser = new MimeParser({
    startPart(number, headers) {
      shown.names.push(parameter(headers, "content-disposition", "filename"));
      shown.names.push(parameter(headers, "content-type", "name"), headers.contentType.get("name"));
      if (number !== "") return;
      for (const [name, values] of headers._rawHeaders) {
        for (const value of values) {
          const text = headerparser.convert8BitHeader(value, headers.charset);
          shown.field(name, headerparser.decodeRFC2047Words(text));
        }
      }
    },
  }, { bodyformat: "decode", strformat: "binarystring" });
  parser.deliverData(message.toString("latin1"));
  parser.deliverEOF();
  return shown.done();
}

async function mailparser(message) {
  const shown = new Shown();
  const options = { skipHtmlToText: true, skipTextToHtml: true, skipImageLinks: true, skipTextLinks: true };
  const mail = await simpleParser(message, options);
  shown.field("subject", mail.subject);
  for (const [name, value] of mail.headers) if (typeof value === "string" || Array.isArray(value)) shown.field(name, value);
  for (const { filename } of mail.attachments) shown.names.push(filename);
  return shown.done();
}

async function postal(message) {
  const shown = new Shown();
  const mail = await PostalMime.parse(message);
  shown.field("subject", mail.subject);
  for (const { key, value } of mail.headers) shown.field(key, decodeWords(value));
  for (const { filename } of mail.attachments) shown.names.push(filename);
  return shown.done();
}

function emailjsParser(message) {
  const shown = new Shown();
  const root = emailjs.default(message.toString("latin1"));
  const walk = (node) => {
    shown.names.push(node.headers["content-disposition"]?.[0]?.params?.filename, node.contentType?.params?.name);
    node.childNodes.forEach(walk);
  };
  walk(root);
  for (const [name, values] of Object.entries(root.headers)) {
    for (const { value } of values) if (typeof value === "string") shown.field(name, value);
  }
  return shown.done();
}

const judges = { jsmime, mailparser, postal, emailjs: emailjsParser };

for await (const line of createInterface({ input: process.stdin })) {
  const message = Buffer.from(line, "base64");
  const reply = {};
  for (const [name, judge] of Object.entries(judges)) {
    try {
      reply[name] = await judge(message);
    } catch (error) {
      reply[name] = { fields: {}, names: [], error: String(error) };
    }
  }
  process.stdout.write(JSON.stringify(reply) + "\n");
}
