import { DeepZigError } from "./errors.js";
import { DTYPES, Tensor, count } from "./tensors.js";

/**
 * @typedef {import("./tensors.js").Elements} Elements
 * @typedef {number | string} Dim a number, or the name of a size known at the call, perhaps with factors: `p*64`
 * @typedef {Record<string, number>} Sizes
 *
 * @typedef {object} PlannedTensor
 * @property {import("./tensors.js").DType} dtype
 * @property {Dim[]} shape
 * @property {string} [weight] its name, if it is a weight
 * @property {string} [state] its name, if it is a state
 * @property {[number, number]} [at] otherwise its block, and where it begins there
 *
 * @typedef {{kernel: string, arguments: number[]}} PlannedCall
 *
 * @typedef {object} PlannedEntry
 * @property {PlannedTensor[]} tensors
 * @property {number[]} inputs
 * @property {number[]} outputs
 * @property {PlannedCall[]} calls
 *
 * @typedef {object} Plan the part plan.json, see FORMAT.md
 * @property {Sizes} sizes
 * @property {number[]} blocks of memory for all that is neither weight nor state: their bytes
 * @property {Record<string, PlannedEntry>} entry_points
 *
 * @typedef {{dtype: import("./tensors.js").DType, rank: number, address: number}} Place
 *
 * @typedef {object} Calls calls of kernels, made ready
 * @property {(tensor: number, shape: readonly number[]) => void} shape set the shape of a tensor
 * @property {(begin: number, end: number) => void} run make the calls `begin` to `end` - 1
 *
 * @typedef {object} Kernels the code of an artifact, on a device
 * @property {(calls: readonly PlannedCall[], tensors: readonly Place[]) => Calls} prepare
 *
 * @typedef {{data: Elements, shape: readonly number[]} | Tensor} Input
 */

/**
 * @param {Dim} dim
 * @param {Sizes} sizes
 */
function evaluate(dim, sizes) {
  if (typeof dim === "number") return dim;
  const [name, ...factors] = dim.split("*");
  return factors.reduce((product, factor) => product * Number(factor), sizes[name]);
}

/**
 * The bytes of the largest weight, cache or other block of memory.
 * @param {Plan} plan
 * @param {import("./artifact.js").Manifest} manifest
 * @param {number} pages of the cache
 */
export function largestBlock(plan, manifest, pages) {
  const specs = [...manifest.weights, ...manifest.cache];
  /** @param {import("./artifact.js").Spec} spec */
  const bytes = ({ dtype, shape }) => count(shape.map((dim) => evaluate(dim, { pages }))) * DTYPES[dtype].bytes;
  const sizes = specs.map(bytes);
  return sizes.reduce((most, size) => Math.max(most, size), Math.max(...plan.blocks));
}

/** One entry point: its kernel calls, made ready. */
class Entry {
  /**
   * @param {string} name
   * @param {PlannedEntry} plan
   * @param {import("./artifact.js").EntryPoint} signature
   * @param {Sizes} most
   * @param {Kernels} kernels
   * @param {import("./memory.js").Memory} memory
   * @param {(tensor: PlannedTensor) => number} place address of a tensor
   * @param {Sizes} fixed sizes that no call changes
   */
  constructor(name, plan, signature, most, kernels, memory, place, fixed) {
    this.name = name;
    this.plan = plan;
    this.signature = signature;
    this.most = most;
    this.memory = memory;
    /** @type {Sizes} */
    this.sizes = { ...fixed };
    this.addresses = plan.tensors.map(place);
    const { addresses } = this;
    const places = plan.tensors.map(({ dtype, shape }, i) => ({ dtype, rank: shape.length, address: addresses[i] }));
    this.calls = kernels.prepare(plan.calls, places);
    /** @type {number[]} */
    this.varying = [];
    plan.tensors.forEach(({ shape }, i) => {
      const named = shape.filter((dim) => typeof dim === "string").map((dim) => String(dim).split("*")[0]);
      if (named.every((dim) => dim in fixed)) this.calls.shape(i, shape.map((dim) => evaluate(dim, fixed)));
      else this.varying.push(i);
    });
  }

  /**
   * @param {number} number of a tensor of the plan
   */
  tensor(number) {
    const { dtype, shape } = this.plan.tensors[number];
    return new Tensor(this.memory, dtype, shape.map((dim) => evaluate(dim, this.sizes)), this.addresses[number]);
  }

  /**
   * Put inputs in their places.
   * @param {Record<string, Input>} inputs
   */
  begin(inputs) {
    const found = this.measure(inputs);
    if (Object.keys(found).some((name) => found[name] !== this.sizes[name])) {
      Object.assign(this.sizes, found);
      for (const i of this.varying) {
        this.calls.shape(i, this.plan.tensors[i].shape.map((dim) => evaluate(dim, this.sizes)));
      }
    }
    this.signature.inputs.forEach(({ name }, i) => {
      const input = inputs[name];
      const to = this.addresses[this.plan.inputs[i]];
      if (input instanceof Tensor) this.memory.copy(input.address, to, input.bytes);
      else this.memory.write(to, new Uint8Array(input.data.buffer, input.data.byteOffset, input.data.byteLength));
    });
  }

  /**
   * The sizes of a call, from the shapes of its inputs.
   * @param {Record<string, Input>} inputs
   */
  measure(inputs) {
    /** @type {Sizes} */
    const found = {};
    for (const { name, dtype, shape } of this.signature.inputs) {
      const input = inputs[name];
      const where = `${this.name}, input ${name}`;
      const given = input?.shape ?? [];
      const fits =
        input &&
        given.length === shape.length &&
        (input instanceof Tensor ? input.dtype === dtype : input.data instanceof DTYPES[dtype].array) &&
        (input instanceof Tensor || input.data.length === count(given)) &&
        shape.every((dim, axis) => given[axis] === (typeof dim === "number" ? dim : (found[dim] ??= given[axis])));
      if (!fits) throw new DeepZigError(`the input is not ${dtype}[${shape}]`, where, "give it as the manifest says");
      const large = shape.find((dim, axis) => typeof dim === "string" && given[axis] > this.most[dim]);
      if (large !== undefined) {
        const what = `${found[large]} is too large for ${large}`;
        throw new DeepZigError(what, where, `give at most ${this.most[large]} in a call`);
      }
    }
    return found;
  }

  /**
   * Call its kernels, or a part of them.
   * @param {number} [begin] number of the first
   * @param {number} [end] number behind the last
   */
  run(begin = 0, end = this.plan.calls.length) {
    this.calls.run(begin, end);
  }

  /** @returns {Record<string, Tensor>} */
  outputs() {
    const named = this.signature.outputs.map(({ name }, i) => [name, this.tensor(this.plan.outputs[i])]);
    return Object.fromEntries(named);
  }
}

/** Runs the entry points of an artifact, as its plan says. */
export class Executor {
  /**
   * @param {Record<string, Entry>} entries
   * @param {import("./memory.js").Memory} memory
   * @param {Map<string, {address: number, bytes: number}>} caches name -> where it begins, and bytes of a page
   */
  constructor(entries, memory, caches) {
    this.entries = entries;
    this.memory = memory;
    this.caches = caches;
  }

  /**
   * @param {object} parts
   * @param {Plan} parts.plan
   * @param {import("./artifact.js").Manifest} parts.manifest
   * @param {Kernels} parts.kernels
   * @param {import("./memory.js").Memory} parts.memory
   * @param {Map<string, number>} parts.weights name -> address
   * @param {number} parts.pages pages of the cache
   */
  static create({ plan, manifest, kernels, memory, weights, pages }) {
    const fixed = { pages };
    const caches = new Map();
    for (const { name, dtype, shape } of manifest.cache) {
      const bytes = count(shape.slice(1).map(Number)) * DTYPES[dtype].bytes;
      caches.set(name, { address: memory.allocate(pages * bytes), bytes });
    }
    const blocks = plan.blocks.map((bytes) => memory.allocate(bytes));
    /** @param {PlannedTensor} tensor */
    const place = ({ weight, state, at }) => {
      if (at) return blocks[at[0]] + at[1];
      const found = weights.get(String(weight)) ?? caches.get(String(state))?.address;
      if (found === undefined) {
        throw new DeepZigError(`there is no ${weight ?? state}`, "the artifact's plan", "compile the model again");
      }
      return found;
    };
    /** @type {Record<string, Entry>} */
    const entries = {};
    for (const [name, entry] of Object.entries(plan.entry_points)) {
      const signature = manifest.entry_points[name];
      entries[name] = new Entry(name, entry, signature, plan.sizes, kernels, memory, place, fixed);
    }
    return new Executor(entries, memory, caches);
  }

  /**
   * Run an entry point. Its outputs hold until it is called again.
   * @param {string} name
   * @param {Record<string, Input>} inputs
   */
  call(name, inputs) {
    const entry = this.entries[name];
    entry.begin(inputs);
    entry.run();
    return entry.outputs();
  }

  /**
   * Copy pages of the caches: from the first to the second of each pair.
   * @param {[number, number][]} pairs
   */
  copyPages(pairs) {
    for (const { address, bytes } of this.caches.values()) {
      for (const [from, to] of pairs) this.memory.copy(address + from * bytes, address + to * bytes, bytes);
    }
  }

  /**
   * What a page of the caches holds.
   * @param {number} page
   * @returns {Promise<Record<string, Uint8Array>>}
   */
  async readPage(page) {
    /** @type {Record<string, Uint8Array>} */
    const found = {};
    for (const [name, { address, bytes }] of this.caches) {
      found[name] = await this.memory.read(address + page * bytes, bytes);
    }
    return found;
  }

  /**
   * Put there what `readPage` gave.
   * @param {number} page
   * @param {Record<string, Uint8Array>} data
   */
  writePage(page, data) {
    for (const [name, { address, bytes }] of this.caches) this.memory.write(address + page * bytes, data[name]);
  }
}
