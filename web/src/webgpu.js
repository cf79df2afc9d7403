/**
 * Kernels for WebGPU: pipelines of an artifact's shaders, and the programs that launch them.
 *
 * @typedef {number | string | [string, Expression, Expression]} Expression
 * @typedef {any[]} Statement `targets/gpu/programs.py` says what there is
 * @typedef {{sizes: Record<string, [number, number]>, body: Statement[]}} Program
 * @typedef {{programs: Record<string, Program>, shaders: Record<string, string>}} Code
 * @typedef {{buffer: GPUBuffer, shape: readonly number[]}} Placed a tensor: in a buffer of its own
 * @typedef {{pipeline: GPUComputePipeline, group: GPUBindGroup, blocks: [number, number, number]}} Dispatch
 */

const MOST_BLOCKS = 65535; // along an axis, on every adapter

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

/** The kernels of an artifact on a device. */
export class Kernels {
  /**
   * @param {GPUDevice} device
   * @param {Record<string, Program>} programs
   * @param {Map<string, GPUComputePipeline>} pipelines
   */
  constructor(device, programs, pipelines) {
    this.device = device;
    this.programs = programs;
    this.pipelines = pipelines;
  }

  /**
   * Compile all shaders, side by side.
   * @param {GPUDevice} device
   * @param {Code} code
   */
  static async compile(device, { programs, shaders }) {
    const made = Object.entries(shaders).map(async ([name, text]) => {
      const module = device.createShaderModule({ code: text, label: name });
      const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module }, label: name });
      return /** @type {[string, GPUComputePipeline]} */ ([name, pipeline]);
    });
    return new Kernels(device, programs, new Map(await Promise.all(made)));
  }

  /**
   * The dispatches of a function for tensors that stay where they are and keep their shapes.
   * @param {string} name
   * @param {readonly Placed[]} tensors
   * @returns {Dispatch[]}
   */
  prepare(name, tensors) {
    const { sizes, body } = this.programs[name];
    const named = Object.entries(sizes).map(([size, [argument, axis]]) => [size, tensors[argument].shape[axis]]);
    const found = [...launches(body, Object.fromEntries(named))];
    return found.map(([kernel, places, numbers, x, y]) => {
      const pipeline = /** @type {GPUComputePipeline} */ (this.pipelines.get(kernel));
      const buffers = [...places.map((i) => tensors[i].buffer), this.numbers([...numbers, x - 1])];
      const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
      const group = this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
      return { pipeline, group, blocks: [Math.min(x, MOST_BLOCKS), y, Math.ceil(x / MOST_BLOCKS)] };
    });
  }

  /**
   * A uniform block.
   * @param {number[]} values
   */
  numbers(values) {
    const size = Math.ceil(values.length / 4) * 16;
    const buffer = this.device.createBuffer({ size, usage: GPUBufferUsage.UNIFORM, mappedAtCreation: true });
    new Int32Array(buffer.getMappedRange()).set(values);
    buffer.unmap();
    return buffer;
  }

  /**
   * Start dispatches, one after the other.
   * @param {readonly Dispatch[]} dispatches
   */
  run(dispatches) {
    const encoder = this.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const { pipeline, group, blocks } of dispatches) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...blocks);
    }
    pass.end();
    this.device.queue.submit([encoder.finish()]);
  }
}
