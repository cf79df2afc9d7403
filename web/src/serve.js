/**
 * Runs an artifact for another process: a request is a line of JSON on the standard input, its answer one on the
 * output.
 *
 * A request has a `number`, which its answer repeats, and `do`, the name of one of `requests`; `free` are numbers of
 * tensors that are not needed any more. An answer has `result` or `error`: what, where and hint. Tensors of an answer
 * are numbered and kept until they are freed; bytes are in base64.
 */

import { createInterface } from "node:readline";

import { openExecutor } from "./engine.js";
import { DeepZigError } from "./errors.js";
import { folderSource } from "./node.js";
import { DTYPES, Tensor, count } from "./tensors.js";

/**
 * @typedef {{data: string, shape: number[]} | {tensor: number, shape: number[]}} Given an input
 * @typedef {{tensor: number, dtype: string, shape: readonly number[]}} Told a tensor in an answer
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
  if (!tensor) throw new DeepZigError(`there is no tensor ${number}`, "serve.js", "report it");
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

/** @param {string} text */
function bytesOf(text) {
  return Uint8Array.from(Buffer.from(text, "base64"));
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
  /** Load an artifact, with so many pages of cache. Who asks has checked its parts. */
  async load({ folder, name, places, manifest, pages }) {
    const source = folderSource(folder, { name, places });
    executor = await openExecutor(source, JSON.parse(manifest), pages, { verify: false });
  },

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
    executor.entries[entry].calls[index]();
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
    return Object.fromEntries(found.map(([name, data]) => [name, Buffer.from(data).toString("base64")]));
  },

  /** Put there what `read_page` gave. */
  async write_page({ page, data }) {
    const bytes = Object.entries(data).map(([name, text]) => [name, bytesOf(text)]);
    executor.writePage(page, Object.fromEntries(bytes));
  },

  async read({ tensor }) {
    const one = found(tensor);
    const data = one instanceof Tensor ? await one.read() : one.data;
    return Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64");
  },

  async write({ tensor, data }) {
    const one = found(tensor);
    const bytes = bytesOf(data);
    if (one instanceof Tensor) one.write(bytes);
    else new Uint8Array(one.data.buffer).set(bytes);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { number, do: name, free = [], ...request } = JSON.parse(line);
  for (const tensor of free) kept.delete(tensor);
  let answer;
  try {
    answer = { number, result: (await requests[name](request)) ?? null };
  } catch (error) {
    const { what, where, hint, message } = /** @type {DeepZigError} */ (error);
    answer = { number, error: what ? { what, where, hint } : { what: `the artifact's code failed: ${message}` } };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
