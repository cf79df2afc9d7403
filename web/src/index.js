export { DeepZigError } from "./errors.js";
export { forget, load } from "./fetch.js";
export { Model, loadFrom } from "./model.js";
export { missing } from "./support.js";

/**
 * @typedef {import("./model.js").ChatOptions} ChatOptions
 * @typedef {import("./model.js").StreamOptions} StreamOptions
 * @typedef {import("./model.js").GenerateOptions} GenerateOptions
 * @typedef {import("./model.js").FinishReason} FinishReason
 * @typedef {import("./model.js").Message} Message
 * @typedef {import("./fetch.js").UrlOptions} LoadOptions
 * @typedef {import("./engine.js").Progress} Progress
 */
