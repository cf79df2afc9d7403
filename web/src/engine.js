import { bytesToRead, chooseBuild, readManifest, readPart, readTexts } from "./artifact.js";
import { DeepZigError } from "./errors.js";
import { Executor, largestBlock } from "./executor.js";
import { openHost } from "./host.js";
import { PagePool, Sequence } from "./pages.js";
import { pause } from "./pause.js";
import { parseOptions } from "./sampling.js";
import { demand } from "./support.js";
import { openGpu } from "./webgpu.js";
import { loadWeights } from "./weights.js";

const DEFAULT_CACHE_TOKENS = 16384;
const NO_TOKEN = -1; // what is drawn from logits that are no numbers

/**
 * @typedef {import("./sampling.js").SamplingOptions & {signal?: AbortSignal}} GenerateOptions
 * @typedef {"stop" | "length"} FinishReason an end token or a stop text came, or the most tokens
 *
 * @typedef {object} Engine what generates tokens, wherever it runs
 * @property {number} context the most tokens of a prompt and its answer
 * @property {number} bytes of memory that weights, cache and values of a call take
 * @property {(prompt: readonly number[], options?: GenerateOptions) => AsyncGenerator<number, FinishReason, void>} generate
 * @property {() => void} close free what it holds
 *
 * @typedef {object} LoadOptions
 * @property {number} [cacheTokens] tokens that the cache holds
 * @property {import("./artifact.js").DeviceName} [device] where it shall run
 * @property {boolean} [verify] whether to hash all parts (default); else their sizes are compared
 * @property {AbortSignal} [signal]
 * @property {(progress: Progress) => void} [onProgress]
 * @property {import("./cache.js").PartCache} [cache] keeps parts
 *
 * @typedef {{loaded: number, total: number}} Progress bytes of the parts that the manifest lists
 * @typedef {Map<string, Uint8Array>} Texts the tokenizer's files and the chat templates, by their names
 * @typedef {{manifest: import("./artifact.js").Manifest, texts: Texts, engine: Engine}} Opened
 */

/**
 * Kind of device -> what makes an artifact's code ready on it. It is told the bytes of the largest block of memory.
 * @type {Record<string, (code: import("./tensors.js").Bytes, where: string, largest: number) => Promise<Ready>>}
 *
 * @typedef {{kernels: import("./executor.js").Kernels, memory: import("./memory.js").Memory}} Ready
 */
const OPEN = { cpu: openHost, webgpu: openGpu };

/**
 * The executor of an artifact.
 * @param {import("./artifact.js").Source} source
 * @param {import("./artifact.js").Manifest} manifest
 * @param {number} pages of the cache
 * @param {import("./artifact.js").PartOptions & {device?: import("./artifact.js").DeviceName}} [options]
 */
export async function openExecutor(source, manifest, pages, { device = "auto", ...options } = {}) {
  const build = chooseBuild(manifest, device, source.name);
  const code = await readPart(source, manifest, build.code, options);
  const plan = JSON.parse(new TextDecoder().decode(await readPart(source, manifest, build.plan, options)));
  const largest = largestBlock(plan, manifest, pages);
  const { kernels, memory } = await OPEN[build.device](code, `${source.name}/${build.code}`, largest);
  const weights = await loadWeights(source, manifest, memory, options);
  const executor = Executor.create({ plan, manifest, kernels, memory, weights, pages });
  await memory.seal();
  return executor;
}

/**
 * Generates tokens with an executor.
 * @implements {Engine}
 */
export class LocalEngine {
  /**
   * @param {import("./artifact.js").Manifest} manifest
   * @param {Executor} executor
   * @param {PagePool} pool
   * @param {string} name for errors
   */
  constructor(manifest, executor, pool, name) {
    this.manifest = manifest;
    /** @type {Executor | undefined} */
    this.executor = executor;
    this.pool = pool;
    this.name = name;
  }

  /** The executor, as long as there is one. */
  get open() {
    if (!this.executor) throw new DeepZigError("the model is closed", this.name, "load it again");
    return this.executor;
  }

  get bytes() {
    return this.open.memory.bytes;
  }

  close() {
    this.executor = undefined;
  }

  /** The most tokens of a prompt and its answer. */
  get context() {
    return Math.min(this.manifest.bounds.positions, this.pool.tokens);
  }

  /**
   * The tokens that continue a prompt, one by one as they are drawn; those that end the answer are left out.
   * @param {readonly number[]} prompt token ids
   * @param {GenerateOptions} [given]
   * @returns {AsyncGenerator<number, FinishReason, void>}
   */
  async *generate(prompt, { signal, ...given } = {}) {
    const options = parseOptions(given);
    this.check(prompt);
    const ends = new Set([...options.stopTokenIds, ...(options.ignoreEos ? [] : this.manifest.model.eos_token_ids)]);
    const limit = Math.min(options.maxTokens, this.context - prompt.length);
    const sequence = new Sequence(this.pool);
    try {
      const { chunk } = this.manifest.bounds;
      let logits;
      for (let begin = 0; begin < prompt.length; begin += chunk) {
        await pause();
        signal?.throwIfAborted();
        const end = Math.min(begin + chunk, prompt.length);
        logits = this.read(prompt.slice(begin, end), begin, sequence, end === prompt.length ? [end - begin - 1] : []);
      }
      for (let position = prompt.length; position < prompt.length + limit; position += 1) {
        const token = await this.draw(/** @type {import("./tensors.js").Tensor} */ (logits), options, position);
        await pause();
        signal?.throwIfAborted();
        if (ends.has(token)) return "stop";
        yield token;
        if (position + 1 < prompt.length + limit) logits = this.read([token], position, sequence, [0]);
      }
      return "length";
    } finally {
      sequence.close();
    }
  }

  /** @param {readonly number[]} prompt */
  check(prompt) {
    if (!prompt.length) throw new DeepZigError("the prompt is empty", "prompt", "give at least one token");
    if (prompt.length >= this.context) {
      throw new DeepZigError(`the prompt has ${prompt.length} tokens`, "prompt", `give at most ${this.context - 1}`);
    }
    const vocabulary = this.manifest.model.vocab_size;
    const wrong = prompt.find((token) => !Number.isInteger(token) || token < 0 || token >= vocabulary);
    if (wrong !== undefined) throw new DeepZigError(`prompt has ${wrong}`, "prompt", `use 0 to ${vocabulary - 1}`);
  }

  /**
   * Run consecutive rows of a sequence: the logits of the wanted ones.
   * @param {readonly number[]} tokens
   * @param {number} begin position of the first
   * @param {Sequence} sequence
   * @param {readonly number[]} outRows
   */
  read(tokens, begin, sequence, outRows) {
    const rows = tokens.length;
    sequence.reserve(begin + rows);
    const entry = rows > this.manifest.bounds.decode_rows ? "prefill" : "decode";
    return this.open.call(entry, {
      tokens: vector(tokens),
      seq: vector(new Array(rows).fill(0)),
      pos: vector(tokens.map((_, i) => begin + i)),
      block_table: { data: Int32Array.from(sequence.pages), shape: [1, sequence.pages.length] },
      out_rows: vector(outRows),
    }).logits;
  }

  /**
   * Draw a token by the artifact's own op.
   * @param {import("./tensors.js").Tensor} logits of one row
   * @param {ReturnType<typeof parseOptions>} options
   * @param {number} position of the token
   */
  async draw(logits, { temperature, topK, topP, minP, key }, position) {
    /** @param {number} value */
    const float = (value) => ({ data: Float32Array.of(value), shape: [1] });
    const { tokens } = this.open.call("sample", {
      logits,
      temperature: float(temperature),
      top_k: vector([topK]),
      top_p: float(topP),
      min_p: float(minP),
      seed: { data: key, shape: [1, 2] },
      position: vector([position]),
    });
    const [token] = await tokens.read();
    if (token === NO_TOKEN) {
      const what = "the model computed logits that are no numbers";
      throw new DeepZigError(what, "sampling", "compile with another --dtype");
    }
    return token;
  }
}

/** @param {readonly number[]} values */
function vector(values) {
  return { data: Int32Array.from(values), shape: [values.length] };
}

/**
 * Read an artifact, and make it ready to generate tokens.
 * @param {import("./artifact.js").Source} source
 * @param {LoadOptions} [options]
 * @returns {Promise<Opened>}
 */
export async function openEngine(source, { cacheTokens, onProgress, ...options } = {}) {
  demand();
  const manifest = await readManifest(source, { signal: options.signal });
  const { positions, page_size: pageSize } = manifest.bounds;
  const tokens = cacheTokens ?? Math.min(positions, DEFAULT_CACHE_TOKENS);
  if (!Number.isInteger(tokens) || tokens < 1) {
    throw new DeepZigError(`cacheTokens is ${tokens}`, "option cacheTokens", "give a whole number from 1");
  }
  const pages = Math.ceil(tokens / pageSize);
  const counted = { ...options, onProgress: counter(onProgress, bytesToRead(manifest)) };
  const texts = await readTexts(source, manifest, counted);
  const executor = await openExecutor(source, manifest, pages, counted);
  await options.cache?.keepOnly(manifest.files);
  return { manifest, texts, engine: new LocalEngine(manifest, executor, new PagePool(pages, pageSize), source.name) };
}

/**
 * @param {((progress: Progress) => void) | undefined} onProgress
 * @param {number} total
 */
function counter(onProgress, total) {
  let loaded = 0;
  /** @param {number} bytes */
  return (bytes) => {
    loaded += bytes;
    onProgress?.({ loaded, total });
  };
}
