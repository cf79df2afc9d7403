/** Runs an artifact for another process: requests are lines on the standard input, answers on the output. */

import { createInterface } from "node:readline";

import { openExecutor } from "./engine.js";
import { folderSource } from "./node.js";
import { answering } from "./requests.js";

const answer = answering(async ({ folder = "", name, places, manifest, pages }) => {
  const source = folderSource(folder, { name, places });
  return openExecutor(source, JSON.parse(manifest), pages, { verify: false });
});

for await (const line of createInterface({ input: process.stdin })) process.stdout.write(`${await answer(line)}\n`);
