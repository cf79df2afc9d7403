import { Tokenizer as Backend } from "@huggingface/tokenizers";

import { render } from "./chat_template.js";
import { DeepZigError } from "./errors.js";

/** @typedef {import("./chat_template.js").Message} Message */
/** @typedef {import("./chat_template.js").TemplateOptions} TemplateOptions */

const TOKENIZER = "tokenizer.json";
const CONFIG = "tokenizer_config.json";
const TEMPLATE = "chat_template.jinja";
const NAMED_TEMPLATE = /^additional_chat_templates\/([^/]+)\.jinja$/;
const COMPILE_AGAIN = "compile the model again";

/** The named tokens; templates see those that the config has. */
const SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/** An artifact's tokenizer and chat templates, with the conventions of Python's. */
export class Tokenizer {
  /**
   * @param {ReadonlyMap<string, Uint8Array>} files those of the tokenizer and the chat templates, by their names
   * @param {string} where they come from, for errors
   */
  constructor(files, where) {
    this.where = where;
    this.config = readConfig(files, where);
    this.templates = readTemplates(files, this.config, where);
    this.backend = open(files, where);
    const special = SPECIAL.map((name) => [name, this.config[name]?.content ?? this.config[name]]);
    /** @type {Record<string, string>} */
    this.special = Object.fromEntries(special.filter(([, text]) => typeof text === "string"));
  }

  /**
   * Token ids of a text; special tokens in it are recognised.
   * @param {string} text
   * @param {object} [options]
   * @param {boolean} [options.special] add the tokens that begin and end a sequence (default): those that
   *     `add_bos_token` and `add_eos_token` of the config say, or where it says nothing, those of tokenizer.json. A text
   *     that starts with the beginning-of-sequence token does not get a second one.
   * @returns {number[]}
   */
  encode(text, { special = true } = {}) {
    const explicit = "add_bos_token" in this.config || "add_eos_token" in this.config;
    const { ids } = this.backend.encode(text, { add_special_tokens: special && !explicit });
    if (!special) return ids;
    const begin = this.config.add_bos_token ? this.edge("bos_token") : [];
    const end = this.config.add_eos_token ? this.edge("eos_token") : [];
    const all = [...begin, ...ids, ...end];
    const [bos] = this.edge("bos_token");
    while (bos !== undefined && all[0] === bos && all[1] === bos) all.shift();
    return all;
  }

  /**
   * The id of a special token, if there is one.
   * @param {string} name
   */
  edge(name) {
    const id = name in this.special ? this.backend.token_to_id(this.special[name]) : undefined;
    return id === undefined ? [] : [id];
  }

  /**
   * Text of token ids; those that the tokenizer does not know are left out.
   * @param {readonly number[]} tokens
   * @param {object} [options]
   * @param {boolean} [options.skipSpecial] leave special tokens out (default)
   */
  decode(tokens, { skipSpecial = true } = {}) {
    const known = tokens.filter((token) => this.backend.id_to_token(token) !== undefined);
    return known.length ? this.backend.decode(known, { skip_special_tokens: skipSpecial }) : "";
  }

  /**
   * The text of a conversation, up to where the answer starts.
   * @param {readonly Message[]} messages
   * @param {TemplateOptions} [options]
   */
  renderChat(messages, { tools, template, continueFinalMessage = false, variables } = {}) {
    const all = {
      ...this.special, add_generation_prompt: !continueFinalMessage, documents: null, ...variables, tools: tools ?? null,
    };
    return render(this.template(template, Boolean(tools)), messages, this.where, all, continueFinalMessage);
  }

  /**
   * Token ids of a conversation, as `renderChat` writes it.
   * @param {readonly Message[]} messages
   * @param {TemplateOptions} [options]
   */
  encodeChat(messages, options) {
    return this.encode(this.renderChat(messages, options), { special: false }); // the template writes special tokens
  }

  /**
   * @param {string | undefined} given
   * @param {boolean} tools whether there are any
   */
  template(given, tools) {
    const name = given ?? (tools && this.templates.has("tool_use") ? "tool_use" : "default");
    const found = this.templates.get(name);
    if (found !== undefined) return found;
    if (name.includes("{")) return name;
    if (!this.templates.size) {
      const hint = "give a text or token ids instead of messages";
      throw new DeepZigError("the model has no chat template", this.where, hint);
    }
    const names = [...this.templates.keys()].sort().join(", ");
    throw new DeepZigError(`no chat template is called '${name}'`, this.where, `choose from ${names}`);
  }
}

/**
 * @param {ReadonlyMap<string, Uint8Array>} files
 * @param {string} where
 */
function open(files, where) {
  const data = files.get(TOKENIZER);
  if (!data) {
    const hint = "give token ids, or compile a checkpoint with tokenizer.json";
    throw new DeepZigError("the artifact has no tokenizer", `${where}/${TOKENIZER}`, hint);
  }
  try {
    // without a config it does what tokenizer.json says and nothing more
    return new Backend(JSON.parse(text(data)), { clean_up_tokenization_spaces: false });
  } catch (error) {
    const what = `the tokenizer can't be read: ${/** @type {Error} */ (error).message}`;
    throw new DeepZigError(what, `${where}/${TOKENIZER}`, COMPILE_AGAIN);
  }
}

/**
 * @param {ReadonlyMap<string, Uint8Array>} files
 * @param {string} where
 * @returns {Record<string, any>}
 */
function readConfig(files, where) {
  const data = files.get(CONFIG);
  if (!data) return {};
  try {
    const config = JSON.parse(text(data));
    if (config && typeof config === "object" && !Array.isArray(config)) return config;
  } catch {
    // it is none
  }
  throw new DeepZigError("the tokenizer's config is not a JSON object", `${where}/${CONFIG}`, COMPILE_AGAIN);
}

/**
 * Name -> source of the chat templates. Files come before the config, as in transformers.
 * @param {ReadonlyMap<string, Uint8Array>} files
 * @param {Record<string, any>} config
 * @param {string} where
 * @returns {Map<string, string>}
 */
function readTemplates(files, config, where) {
  const found = [...files.keys()].flatMap((file) => {
    const name = file === TEMPLATE ? "default" : NAMED_TEMPLATE.exec(file)?.[1];
    return name === undefined ? [] : [/** @type {const} */ ([name, text(/** @type {Uint8Array} */ (files.get(file)))])];
  });
  if (found.length) return new Map(found);
  const template = config.chat_template;
  if (!Array.isArray(template)) return new Map(typeof template === "string" ? [["default", template]] : []);
  if (!template.every((entry) => typeof entry?.name === "string" && typeof entry.template === "string")) {
    const what = "the chat templates are not a list of name and template";
    throw new DeepZigError(what, `${where}/${CONFIG}`, COMPILE_AGAIN);
  }
  return new Map(template.map(({ name, template: source }) => [name, source]));
}

/** @param {Uint8Array} data */
function text(data) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(data);
}
