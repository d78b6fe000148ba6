// The Vercel AI SDK with its provider for OpenAI-compatible servers: `streamText` and `generateText`.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as exported from "ai";
import { KEY, MODEL, PROMPT, serve } from "./lines.mjs";

const ask = (url) => ({
  model: createOpenAICompatible({ name: "guarded", baseURL: url, apiKey: KEY })(MODEL),
  prompt: PROMPT,
});

async function read(parts, seen, got, enough = () => false) {
  for await (const part of parts) {
    got(part);
    if (part.type === "reasoning-delta") seen.thinking += part.text;
    if (part.type === "text-delta") seen.text += part.text;
    // `fullStream` hands errors over as parts, it doesn't throw them.
    if (part.type === "error") throw part.error;
    if (part.type === "finish") seen.finish = part.finishReason;
    if (enough()) return;
  }
}

async function stream(url, seen, got) {
  // Without onError they are also printed.
  const { fullStream } = exported.streamText({ ...ask(url), onError: () => {} });
  await read(fullStream, seen, got);
}

async function whole(url, seen, got) {
  const { text, reasoningText, finishReason, steps } = await exported.generateText(ask(url));
  got(steps);
  Object.assign(seen, { text, thinking: reasoningText ?? "", finish: finishReason });
}

async function leave(url, seen, got) {
  const controller = new AbortController();
  const { fullStream } = exported.streamText({ ...ask(url), abortSignal: controller.signal });
  await read(fullStream, seen, got, () => seen.thinking !== "");
  controller.abort();
  seen.left_by = "`controller.abort()`";
}

await serve("ai", exported, { stream, whole, leave });
