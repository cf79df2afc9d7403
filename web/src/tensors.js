/** Element types by the names of the manifest: bytes, the code of DLPack, and JavaScript's array of them. */
export const DTYPES = Object.freeze({
  f32: { bytes: 4, code: 2, array: Float32Array },
  i32: { bytes: 4, code: 0, array: Int32Array },
  u32: { bytes: 4, code: 1, array: Uint32Array },
  bf16: { bytes: 2, code: 1, array: Uint16Array }, // floats of two bytes travel as their bits
  f16: { bytes: 2, code: 1, array: Uint16Array },
  i8: { bytes: 1, code: 0, array: Int8Array },
});

/**
 * @typedef {keyof typeof DTYPES} DType
 * @typedef {Float32Array | Int32Array | Uint32Array | Uint16Array | Int8Array} Elements
 * @typedef {Uint8Array<ArrayBuffer>} Bytes
 */

/** Bytes between addresses of tensors: kernels load whole lines of the cache. */
export const ALIGNMENT = 64;

/** @param {number} bytes */
export const aligned = (bytes) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** @param {readonly number[]} shape */
export const count = (shape) => shape.reduce((product, size) => product * size, 1);

/** A tensor in the memory of a device. */
export class Tensor {
  /**
   * @param {import("./memory.js").Memory} memory
   * @param {DType} dtype
   * @param {readonly number[]} shape
   * @param {number} address
   */
  constructor(memory, dtype, shape, address) {
    this.memory = memory;
    this.dtype = dtype;
    this.shape = shape;
    this.address = address;
  }

  /** Its size in bytes. */
  get bytes() {
    return count(this.shape) * DTYPES[this.dtype].bytes;
  }

  /**
   * A copy of its elements.
   * @returns {Promise<Elements>}
   */
  async read() {
    const data = await this.memory.read(this.address, this.bytes);
    return new (DTYPES[this.dtype].array)(data.buffer, data.byteOffset, count(this.shape));
  }

  /**
   * Replace its elements.
   * @param {Uint8Array} data
   */
  write(data) {
    this.memory.write(this.address, data);
  }
}
