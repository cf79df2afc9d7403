/** Measures an artifact in node: requests are lines of JSON on the standard input, answers on the output. */

import { createInterface } from "node:readline";

const [folder, library] = process.argv.slice(2);
const { load } = await import(library);
const model = await load(folder);

const vector = (values) => ({ data: Int32Array.from(values), shape: [values.length] });

const requests = {
  /** The least seconds of one of `count` decode calls with one row at a depth of the cache. */
  step({ depth, count }) {
    const pages = Array.from({ length: model.pool.count }, (_, i) => i);
    const inputs = {
      tokens: vector([5]),
      seq: vector([0]),
      pos: vector([depth]),
      block_table: { data: Int32Array.from(pages), shape: [1, pages.length] },
      out_rows: vector([0]),
    };
    let best = Infinity;
    for (let i = 0; i < count; i += 1) {
      const begin = performance.now();
      model.executor.call("decode", inputs);
      best = Math.min(best, performance.now() - begin);
    }
    return best / 1000;
  },

  /** The seconds that an answer takes, prompt included. */
  async answer({ prompt, tokens }) {
    const begin = performance.now();
    for await (const _ of model.generate(prompt, { maxTokens: tokens, ignoreEos: true }));
    return (performance.now() - begin) / 1000;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  console.log(JSON.stringify(await requests[request.do](request)));
}
