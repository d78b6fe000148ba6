// @anthropic-ai/sdk: `create`, or the helper `stream()` and its final message, as the argument says.

import * as exported from "@anthropic-ai/sdk";
import { KEY, MODEL, PROMPT, serve } from "./lines.mjs";

const ASK = { model: MODEL, max_tokens: 900, messages: [{ role: "user", content: PROMPT }] };
// It adds `/v1` itself.
const messages = (url) =>
  new exported.Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: KEY, maxRetries: 0 }).messages;

function read(event, seen, got) {
  got(event);
  if (event.type === "content_block_delta") {
    seen.thinking += event.delta.thinking ?? "";
    seen.text += event.delta.text ?? "";
  }
  if (event.type === "message_delta") seen.finish = event.delta.stop_reason;
}

function readWhole(message, seen, got) {
  got(message);
  const said = (type) => message.content.filter((block) => block.type === type).map((block) => block[type]).join("");
  Object.assign(seen, { thinking: said("thinking"), text: said("text"), finish: message.stop_reason });
}

async function stream(url, seen, got) {
  for await (const event of await messages(url).create({ ...ASK, stream: true })) read(event, seen, got);
}

async function whole(url, seen, got) {
  readWhole(await messages(url).create(ASK), seen, got);
}

async function leave(url, seen, got) {
  for await (const event of await messages(url).create({ ...ASK, stream: true })) {
    read(event, seen, got);
    if (seen.thinking) break;
  }
  seen.left_by = "`break`";
}

async function streamHelper(url, seen, got) {
  const events = messages(url).stream(ASK);
  for await (const event of events) read(event, seen, got);
  const added = {};
  readWhole(await events.finalMessage(), added, got);
  for (const key of Object.keys(added)) {
    if (added[key] !== seen[key]) throw new Error(`the final message's ${key} isn't what its events said`);
  }
}

async function leaveHelper(url, seen, got) {
  for await (const event of messages(url).stream(ASK)) {
    read(event, seen, got);
    if (seen.thinking) break;
  }
  seen.left_by = "`break`";
}

const cases = { create: { stream, whole, leave }, helper: { stream: streamHelper, whole, leave: leaveHelper } };
await serve("@anthropic-ai/sdk", exported, cases[process.argv[2]]);
