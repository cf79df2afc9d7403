/** An error with three lines: what is wrong, where, and how to mend it. */
export class DeepZigError extends Error {
  /**
   * @param {string} what
   * @param {string} where
   * @param {string} hint
   */
  constructor(what, where, hint) {
    super(`${what}\n  at: ${where}\n  fix: ${hint}`);
    this.name = "DeepZigError";
    this.what = what;
    this.where = where;
    this.hint = hint;
  }
}
