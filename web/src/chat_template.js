import { Template } from "@huggingface/jinja";

import { DeepZigError } from "./errors.js";

/**
 * @typedef {{role: string, content?: unknown, [name: string]: unknown}} Message with what the template reads beside
 *     `role` and `content`, such as `tool_calls` or `reasoning_content`
 *
 * @typedef {object} TemplateOptions
 * @property {Record<string, unknown>[]} [tools] JSON schemas of the functions that the model may call
 * @property {string} [template] the name of one of the model's templates, or a template; by default `tool_use` if there
 *     are tools and such a template, else `default`
 * @property {boolean} [continueFinalMessage] the text ends where the last message does, for the model to go on
 * @property {Record<string, unknown>} [variables] what the template understands beside it, such as `enable_thinking`
 */

/** Names under which clients pass the reasoning of a message; templates read the first, some of them the second. */
const REASONING = ["reasoning_content", "thinking", "reasoning"];
const END = "<deepzig-continue-here> "; // a template that trims its text takes the last space away
const MEND = "mend it and compile the model again";

/**
 * The text of a conversation, as Python's `render_chat` writes it.
 * @param {string} source the template
 * @param {readonly Message[]} messages
 * @param {string} where the template comes from, for errors
 * @param {Record<string, unknown>} variables what else the template sees
 * @param {boolean} [resume] whether the text ends where the last message does
 */
export function render(source, messages, where, variables, resume = false) {
  if (resume && variables.add_generation_prompt) {
    const what = "a message can't be continued and followed by a new one";
    throw new DeepZigError(what, "option variables", "leave add_generation_prompt out with continueFinalMessage");
  }
  const chat = messages.map((message) => withReasoning(withoutNulls(message)));
  const said = resume ? markEnd(chat) : "";
  if (resume && !source.includes("content")) {
    throw new DeepZigError("the chat template reads no content", where, "don't ask it to continue a message");
  }
  const template = attempt(() => new Template(source), "is wrong", where, MEND);
  const text = attempt(
    () => template.render({ ...variables, messages: chat }), "refuses the messages", where, "check roles and contents",
  );
  return resume ? cut(text, said, where) : text;
}

/**
 * @template Result
 * @param {() => Result} work
 * @param {string} what the template does if it fails
 * @param {string} where
 * @param {string} hint
 */
function attempt(work, what, where, hint) {
  try {
    return work();
  } catch (error) {
    throw new DeepZigError(`the chat template ${what}: ${/** @type {Error} */ (error).message}`, where, hint);
  }
}

/** @param {Message} message */
function withoutNulls(message) {
  const kept = Object.entries(message).filter(([, value]) => value !== null && value !== undefined);
  return /** @type {Message} */ (Object.fromEntries(kept));
}

/**
 * @param {Message} message
 * @returns {Message}
 */
function withReasoning(message) {
  const name = REASONING.find((one) => one in message);
  if (!name) return message;
  return { thinking: message[name], ...message, reasoning_content: message[name] };
}

/**
 * Mark the end of the last message: its text.
 * @param {Message[]} chat
 */
function markEnd(chat) {
  const last = chat.at(-1);
  if (last && typeof last.content === "string") {
    const said = last.content;
    last.content += END;
    return said;
  }
  const content = Array.isArray(last?.content) ? last.content : [];
  const at = content.findLastIndex((block) => block && typeof block === "object" && "text" in block);
  if (!last || at < 0) throw new DeepZigError("the last message has no text to continue", "messages", "give it a content");
  const said = String(content[at].text);
  last.content = content.map((block, i) => (i === at ? { ...block, text: said + END } : block));
  return said;
}

/**
 * @param {string} text
 * @param {string} said
 * @param {string} where
 */
function cut(text, said, where) {
  const at = text.lastIndexOf(END.trim());
  if (at < 0 || !text.includes(said.trim())) {
    throw new DeepZigError("the chat template does not show all of the last message", where, "continue another message");
  }
  return text.startsWith(END, at) ? text.slice(0, at) : text.slice(0, at).trimEnd();
}
