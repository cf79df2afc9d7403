export { DeepZigError } from "./errors.js";
export { load } from "./fetch.js";
export { Model, loadFrom } from "./model.js";
