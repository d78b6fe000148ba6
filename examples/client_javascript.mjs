// A plain OpenAI client behind the proxy: only baseURL and the key are the proxy's.
//
//   npm install openai && node client_javascript.mjs ["your question"]
//
// OPENAI_BASE_URL and OPENAI_API_KEY are read if set; MODEL names the model (else the first listed).
// Exit status 3 where the policy stopped the reply.

import OpenAI from "openai";

const EXAMPLE_KEY = "gt-example-acme-0dxHqoAGQukUtd_cVPUpQYdx4nuF0q_3PsoAoXII7VM";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8080/v1",
  apiKey: process.env.OPENAI_API_KEY ?? EXAMPLE_KEY,
});

async function main() {
  const model = process.env.MODEL ?? (await client.models.list()).data[0].id;
  const stream = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: process.argv[2] ?? "What is 17 times 23?" }],
    stream: true,
  });
  let shown = "";
  let reason = null;
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      const delta = choice.delta;
      // vLLM says `reasoning`, DeepSeek and older servers `reasoning_content`; the proxy passes either on.
      const texts = { thinking: delta.reasoning ?? delta.reasoning_content, answer: delta.content, refusal: delta.refusal };
      for (const [kind, text] of Object.entries(texts)) {
        if (!text) continue;
        if (kind !== shown) process.stdout.write(`\n[${kind}]\n`);
        shown = kind;
        process.stdout.write(text);
      }
      reason = choice.finish_reason ?? reason;
    }
  }
  console.log(`\n\nfinish_reason: ${reason}`);
  if (reason === "content_filter") {
    console.error("stopped by policy");
    process.exitCode = 3;
  }
}

try {
  await main();
} catch (error) {
  // Refusals before the reply (a wrong key, a body that isn't audited), and a stream that broke off.
  if (!(error instanceof OpenAI.APIError)) throw error;
  const isCut = error.code === "content_filter"; // under a policy with `cut_shape: error`
  console.error(`${error.constructor.name}: ${error.message}`);
  if (isCut) console.error("stopped by policy");
  process.exitCode = isCut ? 3 : 1;
}
