// openai-node: `create`.

import * as exported from "openai";
import { KEY, MODEL, PROMPT, serve } from "./lines.mjs";

const ASK = { model: MODEL, messages: [{ role: "user", content: PROMPT }] };
const completions = (url) => new exported.OpenAI({ baseURL: url, apiKey: KEY }).chat.completions;

// A chunk of a stream, or a whole reply: its message has the same fields.
function read(chunk, seen, got) {
  got(chunk);
  for (const choice of chunk.choices) {
    const part = choice.delta ?? choice.message;
    seen.thinking += part.reasoning ?? "";
    seen.text += part.content ?? "";
    seen.finish = choice.finish_reason ?? seen.finish;
  }
}

async function stream(url, seen, got) {
  for await (const chunk of await completions(url).create({ ...ASK, stream: true })) read(chunk, seen, got);
}

async function whole(url, seen, got) {
  read(await completions(url).create(ASK), seen, got);
}

async function leave(url, seen, got) {
  for await (const chunk of await completions(url).create({ ...ASK, stream: true })) {
    read(chunk, seen, got);
    if (seen.thinking) break;
  }
  seen.left_by = "`break`";
}

await serve("openai", exported, { stream, whole, leave });
