export { DeepZigError } from "./errors.js";
export { forget, load } from "./fetch.js";
export { Model, loadFrom } from "./model.js";
export { missing } from "./support.js";
