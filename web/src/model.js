import { openEngine } from "./engine.js";
import { DeepZigError } from "./errors.js";
import { Detokenizer, StopFinder } from "./text.js";

/**
 * @typedef {import("./engine.js").GenerateOptions} GenerateOptions
 * @typedef {import("./engine.js").FinishReason} FinishReason
 * @typedef {GenerateOptions & {stop?: string | readonly string[]}} StreamOptions `stop`: texts that end the answer
 * @typedef {StreamOptions & import("./chat_template.js").TemplateOptions} ChatOptions
 * @typedef {import("./chat_template.js").Message} Message
 */

/** An artifact that answers; made by `load`. */
export class Model {
  /**
   * @param {import("./engine.js").Opened} opened
   * @param {string} name for errors
   */
  constructor({ manifest, texts, engine }, name) {
    this.manifest = manifest;
    this.texts = texts;
    this.engine = engine;
    this.name = name;
    /** @type {Promise<import("./tokenizer.js").Tokenizer> | undefined} */
    this.opening = undefined;
  }

  /** The most tokens of a prompt and its answer. */
  get context() {
    return this.engine.context;
  }

  /** Bytes of memory that weights, cache and values of a call take. */
  get bytes() {
    return this.engine.bytes;
  }

  /** The artifact's tokenizer, made when it is first asked for. */
  tokenizer() {
    this.opening ??= openTokenizer(this.texts, this.name);
    return this.opening;
  }

  /**
   * The tokens that continue a prompt, one by one as they are drawn; those that end the answer are left out.
   * @param {string | readonly number[]} prompt a text or token ids
   * @param {GenerateOptions} [options]
   * @returns {AsyncGenerator<number, FinishReason, void>}
   */
  async *generate(prompt, options) {
    const tokens = typeof prompt === "string" ? (await this.tokenizer()).encode(prompt) : prompt;
    return yield* this.engine.generate(tokens, options);
  }

  /**
   * The text that continues a prompt: a piece for each token, which is empty as long as a character is unfinished or
   * a stop text may begin, and what is left at the end.
   * @param {string | readonly number[]} prompt a text or token ids
   * @param {StreamOptions} [options]
   * @returns {AsyncGenerator<string, FinishReason, void>}
   */
  async *stream(prompt, { stop = [], ...options } = {}) {
    const tokenizer = await this.tokenizer();
    const texts = new Detokenizer((tokens) => tokenizer.decode(tokens));
    const stops = new StopFinder(typeof stop === "string" ? [stop] : stop);
    const tokens = this.generate(prompt, options);
    try {
      let next = await tokens.next();
      for (; !next.done; next = await tokens.next()) {
        const { text, found } = stops.push(texts.push(next.value));
        yield text;
        if (found) return "stop";
      }
      const { text, found } = stops.last(texts.flush());
      if (text) yield text;
      return found ? "stop" : next.value;
    } finally {
      await tokens.return("stop");
    }
  }

  /**
   * The answer to messages, as `stream` gives it.
   * @param {readonly Message[]} messages
   * @param {ChatOptions} [options]
   * @returns {AsyncGenerator<string, FinishReason, void>}
   */
  async *chat(messages, { tools, template, continueFinalMessage, variables, ...options } = {}) {
    const tokenizer = await this.tokenizer();
    const prompt = tokenizer.encodeChat(messages, { tools, template, continueFinalMessage, variables });
    return yield* this.stream(prompt, options);
  }

  /** Free what it holds; it can't be used any more. */
  close() {
    this.engine.close();
  }
}

/**
 * Load an artifact.
 * @param {import("./artifact.js").Source} source
 * @param {import("./engine.js").LoadOptions} [options]
 */
export async function loadFrom(source, options) {
  return new Model(await openEngine(source, options), source.name);
}

/**
 * @param {import("./engine.js").Texts} texts
 * @param {string} name
 */
async function openTokenizer(texts, name) {
  let module;
  try {
    module = await import("./tokenizer.js"); // only now: who gives token ids needs no packages
  } catch (error) {
    const what = `the tokenizer's packages can't be loaded: ${/** @type {Error} */ (error).message}`;
    const hint = "install them with npm, or name them in the page's import map";
    throw new DeepZigError(what, "@huggingface/tokenizers, @huggingface/jinja", hint);
  }
  return new module.Tokenizer(texts, name);
}
