/**
 * Runs an artifact for another process, which sends requests and gets answers.
 *
 * A request has a `number`, which its answer repeats, and `do`, the name of one of `requests`; `free` are numbers of
 * tensors that are not needed any more. An answer has `result` or `error`: what, where and hint. Tensors of an answer
 * are numbered and kept until they are freed; bytes are in base64.
 */

import { DeepZigError } from "./errors.js";
import { DTYPES, Tensor, count } from "./tensors.js";

const PIECE = 1 << 15; // arguments of a call

/**
 * @typedef {{data: string, shape: number[]} | {tensor: number, shape: number[]}} Given an input
 * @typedef {{tensor: number, dtype: string, shape: readonly number[]}} Told a tensor in an answer
 *
 * @typedef {object} Load the request to load an artifact, whose parts who asks has checked
 * @property {string} name of the artifact, for errors
 * @property {string} manifest
 * @property {number} pages of cache
 * @property {string} [folder] where its parts lie
 * @property {Record<string, {file: string, begin: number, size: number}>} [places] of parts that lie elsewhere
 */

/** @type {import("./executor.js").Executor} */
let executor;
/** @type {Map<number, import("./executor.js").Input & {dtype: import("./tensors.js").DType}>} */
const kept = new Map();
let last = 0;

/**
 * @param {import("./executor.js").Input & {dtype: import("./tensors.js").DType}} tensor
 * @returns {Told}
 */
function keep(tensor) {
  last += 1;
  kept.set(last, tensor);
  return { tensor: last, dtype: tensor.dtype, shape: tensor.shape };
}

/** @param {number} number */
function found(number) {
  const tensor = kept.get(number);
  if (!tensor) throw new DeepZigError(`there is no tensor ${number}`, "requests.js", "report it");
  return tensor;
}

/**
 * @param {string} entry
 * @param {Record<string, Given>} inputs
 */
function inputsOf(entry, inputs) {
  const signature = executor.entries[entry].signature;
  return Object.fromEntries(
    signature.inputs.map(({ name, dtype }) => {
      const given = inputs[name];
      if ("tensor" in given) {
        const whole = found(given.tensor);
        if (whole instanceof Tensor) throw new DeepZigError("an argument is no input", name, "report it");
        return [name, { data: whole.data.subarray(0, count(given.shape)), shape: given.shape }];
      }
      return [name, { data: new (DTYPES[dtype].array)(bytesOf(given.data).buffer), shape: given.shape }];
    }),
  );
}

/** @param {string} text in base64 */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/**
 * @param {Uint8Array} bytes
 * @returns {string} base64
 */
function textOf(bytes) {
  if (globalThis.Buffer) return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
  const pieces = [];
  for (let i = 0; i < bytes.length; i += PIECE) pieces.push(String.fromCharCode(...bytes.subarray(i, i + PIECE)));
  return btoa(pieces.join(""));
}

/**
 * Copies of the outputs, which outlive the next call.
 * @param {Record<string, Tensor>} outputs
 */
async function told(outputs) {
  const copies = Object.values(outputs).map(async (output) =>
    keep({ data: await output.read(), dtype: output.dtype, shape: output.shape }),
  );
  return Promise.all(copies);
}

/** @type {Record<string, (request: any) => Promise<any>>} */
const requests = {
  /** Run an entry point: its outputs. */
  async call({ entry, inputs }) {
    return told(executor.call(entry, inputsOf(entry, inputs)));
  },

  /** Prepare a call whose kernels `step` will call. */
  async begin({ entry, inputs }) {
    executor.entries[entry].begin(inputsOf(entry, inputs));
  },

  /** Call one kernel. */
  async step({ entry, index }) {
    executor.entries[entry].run(index, index + 1);
    await executor.memory.wait();
  },

  /** The arguments of a kernel call, where they lie. */
  async arguments({ entry, index }) {
    const one = executor.entries[entry];
    return one.plan.calls[index].arguments.map((number) => keep(one.tensor(number)));
  },

  /** The outputs of a call that `begin` prepared. */
  async end({ entry }) {
    return told(executor.entries[entry].outputs());
  },

  /** Copy pages of the caches, from the first to the second of each pair. */
  async copy_pages({ pairs }) {
    executor.copyPages(pairs);
  },

  /** What a page of the caches holds. */
  async read_page({ page }) {
    const found = Object.entries(await executor.readPage(page));
    return Object.fromEntries(found.map(([name, data]) => [name, textOf(data)]));
  },

  /** Put there what `read_page` gave. */
  async write_page({ page, data }) {
    const bytes = Object.entries(data).map(([name, text]) => [name, bytesOf(text)]);
    executor.writePage(page, Object.fromEntries(bytes));
  },

  async read({ tensor }) {
    const one = found(tensor);
    const data = one instanceof Tensor ? await one.read() : one.data;
    return textOf(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  },

  async write({ tensor, data }) {
    const one = found(tensor);
    const bytes = bytesOf(data);
    if (one instanceof Tensor) one.write(bytes);
    else new Uint8Array(one.data.buffer).set(bytes);
  },
};

/**
 * What answers requests.
 * @param {(request: Load) => Promise<import("./executor.js").Executor>} open loads an artifact
 * @returns {(line: string) => Promise<string>} from the text of a request to that of its answer
 */
export function answering(open) {
  /** @type {typeof requests} */
  const known = { ...requests, load: async (request) => void (executor = await open(request)) };
  return async (line) => {
    const { number, do: name, free = [], ...request } = JSON.parse(line);
    for (const tensor of free) kept.delete(tensor);
    let answer;
    try {
      answer = { number, result: (await known[name](request)) ?? null };
    } catch (error) {
      const { what, where, hint, message } = /** @type {DeepZigError} */ (error);
      answer = { number, error: what ? { what, where, hint } : { what: `the artifact's code failed: ${message}` } };
    }
    return JSON.stringify(answer);
  };
}
