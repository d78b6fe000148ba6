// A client script's talk with the tests: a request a line on standard input, what was seen a line on standard output.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

export const MODEL = "thinker";
export const PROMPT = "Please help.";
export const KEY = "EMPTY";

// The error's class as its package exports it, for `instanceof`; without a package where it's none of the exported.
function named(error, name, exported) {
  const found = Object.entries(exported).find(([, value]) => value === error.constructor);
  return found ? `${name}.${found[0]}` : error.constructor.name;
}

// Cases: async (url, seen, got), `got` keeps all that the client handed over, in search of leaks.
export async function serve(name, exported, cases) {
  const manifest = new URL(`node_modules/${name}/package.json`, import.meta.url);
  console.log(JSON.stringify({ version: JSON.parse(readFileSync(manifest, "utf8")).version }));
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const seen = { thinking: "", text: "", finish: null, error: null, left_by: null, everything: [] };
    const got = (part) => seen.everything.push(JSON.stringify(part));
    try {
      await cases[request.case](request.url, seen, got);
    } catch (error) {
      seen.error = named(error, name, exported);
      got([String(error), error]);
    }
    console.log(JSON.stringify(seen));
  }
}
