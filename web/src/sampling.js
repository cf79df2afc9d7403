import { DeepZigError } from "./errors.js";

/**
 * How tokens are drawn, as in Python's `SamplingOptions`.
 * @typedef {object} SamplingOptions
 * @property {number} [maxTokens] the most tokens to generate; as many as fit, if not given
 * @property {number} [temperature] 0 takes the likeliest token (default)
 * @property {number} [topP] keep the likeliest tokens whose probabilities reach this sum
 * @property {number} [topK] keep the k likeliest tokens; 0 for all
 * @property {number} [minP] keep tokens at least this likely, relative to the likeliest
 * @property {number | bigint} [seed] the same seed gives the same answer; a new one every time, if not given
 * @property {number[]} [stopTokenIds] tokens that end the answer, beside the model's own
 * @property {boolean} [ignoreEos] don't end at the model's end token
 */

/** Name -> default, least and greatest value, and whether it is a whole number. */
const NUMBERS = Object.freeze({
  maxTokens: { usual: Infinity, least: 1, most: Infinity, whole: true },
  temperature: { usual: 0, least: 0, most: 2, whole: false },
  topP: { usual: 1, least: 0, most: 1, whole: false },
  topK: { usual: 0, least: 0, most: 2 ** 31 - 1, whole: true },
  minP: { usual: 0, least: 0, most: 1, whole: false },
});

/**
 * The options with their defaults.
 * @param {SamplingOptions} given
 */
export function parseOptions(given) {
  const options = { stopTokenIds: given.stopTokenIds ?? [], ignoreEos: given.ignoreEos ?? false, key: key(given.seed) };
  /** @type {Record<string, number>} */
  const numbers = {};
  for (const [name, { usual, least, most, whole }] of Object.entries(NUMBERS)) {
    const value = /** @type {any} */ (given)[name] ?? usual;
    const right = typeof value === "number" && value >= least && value <= most;
    if (!right || (whole && Number.isFinite(value) && !Number.isInteger(value))) {
      const hint = `give a ${whole ? "whole " : ""}number from ${least}${most < Infinity ? ` to ${most}` : ""}`;
      throw new DeepZigError(`${name} is ${value}`, `option ${name}`, hint);
    }
    numbers[name] = value;
  }
  return { ...options, .../** @type {Record<keyof typeof NUMBERS, number>} */ (numbers) };
}

/**
 * The key of the random numbers: the low and the high word of the seed.
 * @param {number | bigint} [seed]
 */
function key(seed) {
  if (seed === undefined) return crypto.getRandomValues(new Int32Array(2));
  if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
    throw new DeepZigError(`seed is ${seed}`, "option seed", "give a whole number");
  }
  return new Int32Array(new BigUint64Array([BigInt.asUintN(64, BigInt(seed))]).buffer);
}
