/** @typedef {(tokens: readonly number[]) => string} Decode */

const UNFINISHED = "\ufffd"; // what a decoder gives for bytes that don't make a character yet

/**
 * Turns tokens into pieces of text that never split a character.
 *
 * Decodes a short window of tokens, since what a token adds may depend on those before it: the tokens of the last
 * piece, whole characters, and what came since. Text that ends in an unfinished character is held back.
 */
export class Detokenizer {
  /** @param {Decode} decode */
  constructor(decode) {
    this.decode = decode;
    /** @type {number[]} */
    this.tokens = [];
    this.known = 0;
    this.shown = "";
  }

  /**
   * The text that a token completes.
   * @param {number} token
   */
  push(token) {
    this.tokens.push(token);
    let text = this.decode(this.tokens);
    if (text.endsWith(UNFINISHED)) return "";
    const piece = text.slice(this.shown.length);
    const added = this.decode(this.tokens.slice(this.known));
    if (added) {
      // tokens without text say nothing of what a decoder does after them
      this.tokens.splice(0, this.known);
      text = added;
    }
    this.known = this.tokens.length;
    this.shown = text;
    return piece;
  }

  /** What is held back, when no more tokens come. */
  flush() {
    const text = this.decode(this.tokens);
    const piece = text.slice(this.shown.length);
    this.shown = text;
    return piece;
  }
}

/**
 * Finds stop texts in a stream of pieces, holding back what may become one.
 *
 * @typedef {{text: string, found: boolean}} Shown what may be shown, and whether a stop text was found after it
 */
export class StopFinder {
  /** @param {readonly string[]} stops */
  constructor(stops) {
    this.stops = stops;
    this.held = "";
  }

  /**
   * @param {string} piece
   * @returns {Shown}
   */
  push(piece) {
    this.held += piece;
    const found = this.stops.map((stop) => this.held.indexOf(stop)).filter((at) => at >= 0);
    const end = found.length ? Math.min(...found) : this.held.length - this.overlap();
    const text = this.held.slice(0, end);
    this.held = found.length ? "" : this.held.slice(end);
    return { text, found: found.length > 0 };
  }

  /**
   * As `push`, for the last piece: nothing is held back.
   * @param {string} piece
   * @returns {Shown}
   */
  last(piece) {
    const { text, found } = this.push(piece);
    const held = this.held;
    this.held = "";
    return { text: text + held, found };
  }

  /** The length of the longest end of what is held that a stop text starts with. */
  overlap() {
    const longest = Math.max(0, ...this.stops.map((stop) => stop.length - 1));
    for (let length = Math.min(longest, this.held.length); length > 0; length -= 1) {
      const end = this.held.slice(-length);
      if (this.stops.some((stop) => stop.length > length && stop.startsWith(end))) return length;
    }
    return 0;
  }
}
