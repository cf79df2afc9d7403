export { DeepZigError } from "./errors.js";
export { Model, loadFrom } from "./model.js";
