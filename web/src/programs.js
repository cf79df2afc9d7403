/**
 * What a host does for a kernel, as data: `targets/gpu/programs.py` says what there is.
 *
 * @typedef {number | string | [string, any, any]} Expression
 * @typedef {any[]} Statement
 * @typedef {{sizes: Record<string, [number, number]>, body: Statement[]}} Program
 */

/** @type {Record<string, (a: number, b: number) => number>} */
const OPERATORS = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => Math.floor(a / b),
  "%": (a, b) => a % b,
  min: Math.min,
  max: Math.max,
  "<": (a, b) => Number(a < b),
  "<=": (a, b) => Number(a <= b),
  ">": (a, b) => Number(a > b),
  ">=": (a, b) => Number(a >= b),
  "==": (a, b) => Number(a === b),
  and: (a, b) => Number(a && b),
  or: (a, b) => Number(a || b),
};

/**
 * @param {Expression} expression
 * @param {Record<string, number>} variables
 * @returns {number}
 */
function evaluate(expression, variables) {
  if (typeof expression === "number") return expression;
  if (typeof expression === "string") return variables[expression];
  const [name, a, b] = expression;
  return OPERATORS[name](evaluate(a, variables), evaluate(b, variables));
}

/**
 * The launches of a program, as [kernel, arguments, numbers, blocks along x, blocks along y].
 * @param {Statement[]} body
 * @param {Record<string, number>} variables
 * @returns {Generator<[string, number[], number[], number, number]>}
 */
export function* launches(body, variables) {
  for (const [kind, ...rest] of body) {
    if (kind === "let") {
      variables[rest[0]] = evaluate(rest[1], variables);
    } else if (kind === "if") {
      if (evaluate(rest[0], variables)) yield* launches(rest[1], variables);
    } else if (kind === "for") {
      const count = evaluate(rest[1], variables);
      for (let i = 0; i < count; i++) yield* launches(rest[2], { ...variables, [rest[0]]: i });
    } else {
      const [kernel, places, numbers, [x, y]] = rest;
      const values = numbers.map((/** @type {Expression} */ number) => evaluate(number, variables));
      yield [kernel, places, values, evaluate(x, variables), evaluate(y, variables)];
    }
  }
}
