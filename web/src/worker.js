import { DeepZigError } from "./errors.js";
import { urlSource } from "./fetch.js";
import { Model } from "./model.js";
import { demand } from "./support.js";

/**
 * @typedef {import("./engine.js").Engine} Engine
 * @typedef {import("./engine.js").GenerateOptions} GenerateOptions
 * @typedef {import("./engine.js").Progress} Progress
 * @typedef {{resolve: (result: any) => void, reject: (error: unknown) => void, onProgress?: (progress: Progress) => void}} Asked
 */

/** A worker that is asked by messages; `worker_thread.js` is its program. */
class Peer {
  /** @param {string} name of the artifact, for errors */
  constructor(name) {
    this.name = name;
    this.worker = new Worker(new URL("./worker_thread.js", import.meta.url), { type: "module", name: "deepzig" });
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = (event) => {
      const what = `the worker failed: ${event.message ?? "its program can't be loaded"}`;
      this.end(new DeepZigError(what, this.name, "load the model again, or in the page itself"));
    };
    /** @type {Map<number, Asked>} */
    this.asked = new Map();
    this.last = 0;
    /** @type {unknown} */
    this.ended = undefined;
  }

  /**
   * @param {string} name of a request of `worker_thread.js`
   * @param {object} request
   * @param {(progress: Progress) => void} [onProgress]
   * @returns {Promise<any>}
   */
  ask(name, request, onProgress) {
    return new Promise((resolve, reject) => {
      if (this.ended) throw this.ended;
      this.last += 1;
      this.worker.postMessage({ number: this.last, do: name, ...request });
      this.asked.set(this.last, { resolve, reject, onProgress });
    });
  }

  /** @param {{number: number, progress?: Progress, result?: unknown, error?: any}} answer */
  hear({ number, progress, result, error }) {
    const asked = this.asked.get(number);
    if (progress) return asked?.onProgress?.(progress);
    this.asked.delete(number);
    if (!error) return asked?.resolve(result);
    const { what, where, hint, name, message } = error;
    return asked?.reject(what ? new DeepZigError(what, where, hint) : Object.assign(new Error(message), { name }));
  }

  /**
   * Stop the worker, whatever it is doing.
   * @param {unknown} error for who waits, and for who asks later
   */
  end(error) {
    this.ended ??= error;
    this.worker.terminate();
    for (const { reject } of this.asked.values()) reject(error);
    this.asked.clear();
  }
}

/**
 * Generates tokens in a worker.
 * @implements {Engine}
 */
class WorkerEngine {
  /**
   * @param {Peer} peer
   * @param {{context: number, bytes: number}} loaded
   */
  constructor(peer, { context, bytes }) {
    this.peer = peer;
    this.context = context;
    this.bytes = bytes;
  }

  /**
   * @param {readonly number[]} prompt
   * @param {GenerateOptions} [options]
   * @returns {AsyncGenerator<number, import("./engine.js").FinishReason, void>}
   */
  async *generate(prompt, { signal, ...options } = {}) {
    const generation = await this.peer.ask("begin", { prompt, options });
    const end = () => void this.peer.ask("end", { generation }).catch(() => {}); // a worker that ended holds nothing
    signal?.addEventListener("abort", end);
    try {
      for (;;) {
        signal?.throwIfAborted();
        const { value, done } = await this.peer.ask("next", { generation });
        if (done) return value;
        yield value;
      }
    } catch (error) {
      signal?.throwIfAborted(); // with its own reason
      throw error;
    } finally {
      signal?.removeEventListener("abort", end);
      end();
    }
  }

  close() {
    this.peer.end(new DeepZigError("the model is closed", this.peer.name, "load it again"));
  }
}

/**
 * Load the artifact in a folder on a server, in a worker: the page stays free while it loads and answers.
 * @param {string | URL} url
 * @param {import("./fetch.js").UrlOptions} [options]
 */
export async function load(url, { signal, onProgress, ...options } = {}) {
  demand(["workers"]);
  signal?.throwIfAborted();
  const { name } = urlSource(url);
  const peer = new Peer(name);
  const abort = () => peer.end(signal?.reason);
  signal?.addEventListener("abort", abort);
  try {
    const { manifest, texts, ...loaded } = await peer.ask("load", { url: name, options }, onProgress);
    return new Model({ manifest, texts, engine: new WorkerEngine(peer, loaded) }, name);
  } catch (error) {
    peer.end(error);
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}
