/**
 * Runs an artifact for a page, in a worker: a message is a request with a `number`, which its answers repeat, and `do`,
 * the name of one of `requests`. Answers have `progress`, then `result` or `error`.
 */

import { openEngine } from "./engine.js";
import { DeepZigError } from "./errors.js";
import { openUrl } from "./fetch.js";

/**
 * @typedef {import("./engine.js").Engine} Engine
 * @typedef {{stop: AbortController, tokens: ReturnType<Engine["generate"]>}} Generation
 */

/** @type {Engine} */
let engine;
/** @type {Map<number, Generation>} */
const generations = new Map();
let last = 0;

/** @type {Record<string, (request: any, tell: (progress: object) => void) => Promise<any>>} */
const requests = {
  async load({ url, options }, tell) {
    const opened = await openUrl(url, options);
    const { manifest, texts, engine: made } = await openEngine(opened.source, { ...opened.options, onProgress: tell });
    engine = made;
    return { manifest, texts, context: engine.context, bytes: engine.bytes };
  },

  /** Begin to generate: the number of the generation, for the others. */
  async begin({ prompt, options }) {
    const stop = new AbortController();
    last += 1;
    generations.set(last, { stop, tokens: engine.generate(prompt, { ...options, signal: stop.signal }) });
    return last;
  },

  /** The next token of a generation. */
  async next({ generation }) {
    return generations.get(generation)?.tokens.next();
  },

  /** Generate no more of it, if it has not ended. */
  async end({ generation }) {
    const found = generations.get(generation);
    generations.delete(generation);
    found?.stop.abort();
    await found?.tokens.return("stop");
  },
};

addEventListener("message", async ({ data: { number, do: name, ...request } }) => {
  try {
    postMessage({ number, result: await requests[name](request, (progress) => postMessage({ number, progress })) });
  } catch (error) {
    const { what, where, hint, message, name: kind } = /** @type {DeepZigError} */ (error);
    postMessage({ number, error: what ? { what, where, hint } : { name: kind, message } });
  }
});
