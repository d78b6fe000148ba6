// openai-node on the Responses API: `create`.

import * as exported from "openai";
import { KEY, MODEL, PROMPT, serve } from "./lines.mjs";

const ASK = { model: MODEL, input: PROMPT };
const responses = (url) => new exported.OpenAI({ baseURL: url, apiKey: KEY }).responses;

function read(event, seen, got) {
  got(event);
  if (event.type === "response.reasoning_text.delta") seen.thinking += event.delta;
  if (event.type === "response.output_text.delta") seen.text += event.delta;
  if (event.type === "response.completed" || event.type === "response.incomplete") end(event.response, seen);
}

function end(response, seen) {
  seen.finish = response.incomplete_details?.reason ?? response.status;
}

async function stream(url, seen, got) {
  for await (const event of await responses(url).create({ ...ASK, stream: true })) read(event, seen, got);
}

async function whole(url, seen, got) {
  const response = await responses(url).create(ASK);
  got(response);
  seen.text = response.output_text;
  for (const item of response.output) {
    if (item.type === "reasoning") seen.thinking += (item.content ?? []).map((part) => part.text).join("");
  }
  end(response, seen);
}

async function leave(url, seen, got) {
  for await (const event of await responses(url).create({ ...ASK, stream: true })) {
    read(event, seen, got);
    if (seen.thinking) break;
  }
  seen.left_by = "`break`";
}

await serve("openai", exported, { stream, whole, leave });
