/**
 * Artifacts on WebGPU: kernels are shaders, which programs launch.
 *
 * @typedef {import("./executor.js").Kernels} Executable
 * @typedef {import("./executor.js").Calls} Calls
 * @typedef {import("./programs.js").Program} Program
 * @typedef {object} Code
 * @property {Record<string, number>} limits that kernels need
 * @property {Record<string, Program>} programs
 * @property {string[]} texts of shaders, with `$` for numbers
 * @property {Record<string, [number, ...number[]]>} shaders their texts, and the numbers
 * @typedef {{pipeline: GPUComputePipeline, group: GPUBindGroup, blocks: [number, number, number]}} Dispatch
 */

import { DeepZigError } from "./errors.js";
import { GpuMemory, message } from "./gpu_memory.js";
import { launches } from "./programs.js";
import { demand } from "./support.js";
import { aligned } from "./tensors.js";

const MOST_BLOCKS = 65535; // along an axis, on every adapter
const SLOT = 256; // bytes from one uniform block to the next: minUniformBufferOffsetAlignment at its most
const OTHER = "update the browser and the GPU's driver, or compile with --target wasm";

/**
 * The kernels of an artifact on a device.
 * @implements {Executable}
 */
export class GpuKernels {
  /**
   * @param {GpuMemory} memory
   * @param {Record<string, Program>} programs
   * @param {Map<string, GPUComputePipeline>} pipelines
   */
  constructor(memory, programs, pipelines) {
    this.memory = memory;
    this.programs = programs;
    this.pipelines = pipelines;
  }

  /**
   * Compile all shaders, side by side.
   * @param {GpuMemory} memory
   * @param {Code} code
   * @param {string} where for errors
   */
  static async compile(memory, { programs, texts, shaders }, where) {
    const { device } = memory;
    const made = Object.entries(shaders).map(async ([label, [text, ...numbers]]) => {
      const code = texts[text].replace(/\$/g, () => String(numbers.shift()));
      const module = device.createShaderModule({ code, label });
      try {
        const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module }, label });
        return /** @type {[string, GPUComputePipeline]} */ ([label, pipeline]);
      } catch (error) {
        throw new DeepZigError(`the browser refuses the kernel ${label}: ${message(error)}`, where, OTHER);
      }
    });
    return new GpuKernels(memory, programs, new Map(await Promise.all(made)));
  }

  /**
   * @param {readonly import("./executor.js").PlannedCall[]} calls
   * @param {readonly import("./executor.js").Place[]} tensors
   */
  prepare(calls, tensors) {
    return new GpuCalls(this, calls, tensors);
  }

  /**
   * What a kernel launches for arguments of these shapes.
   * @param {string} name
   * @param {readonly (readonly number[])[]} shapes
   */
  launches(name, shapes) {
    const { sizes, body } = this.programs[name];
    const named = Object.entries(sizes).map(([size, [argument, axis]]) => [size, shapes[argument][axis]]);
    return [...launches(body, Object.fromEntries(named))];
  }
}

/**
 * Calls of kernels for tensors that stay where they are. Their dispatches are made anew when shapes change; what is
 * bound to them stays.
 * @implements {Calls}
 */
class GpuCalls {
  /**
   * @param {GpuKernels} kernels
   * @param {readonly import("./executor.js").PlannedCall[]} calls
   * @param {readonly import("./executor.js").Place[]} tensors
   */
  constructor(kernels, calls, tensors) {
    this.kernels = kernels;
    this.calls = calls;
    this.resources = tensors.map(({ address }) => kernels.memory.find(address));
    /** @type {(readonly number[])[]} */
    this.shapes = tensors.map(() => []);
    /** @type {Dispatch[][] | undefined} of each call */
    this.dispatches = undefined;
    /** @type {Map<string, GPUBindGroup>} */
    this.groups = new Map();
    /** @type {GPUBuffer | undefined} the numbers that dispatches are given, a slot for each */
    this.numbers = undefined;
  }

  /**
   * @param {number} tensor
   * @param {readonly number[]} shape
   */
  shape(tensor, shape) {
    this.shapes[tensor] = shape;
    this.dispatches = undefined;
  }

  /**
   * @param {number} begin
   * @param {number} end
   */
  run(begin, end) {
    const { memory } = this.kernels;
    memory.check();
    this.dispatches ??= this.arrange();
    const wanted = this.dispatches.slice(begin, end).flat();
    memory.encode((encoder) => {
      const pass = encoder.beginComputePass();
      for (const { pipeline, group, blocks } of wanted) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(...blocks);
      }
      pass.end();
    });
  }

  /** The dispatches of each call for the shapes that are set. */
  arrange() {
    const { device } = this.kernels.memory;
    const found = this.calls.map(({ kernel, arguments: tensors }) =>
      this.kernels.launches(kernel, tensors.map((i) => this.shapes[i])),
    );
    const size = Math.max(SLOT * found.flat().length, SLOT);
    if (!this.numbers || this.numbers.size < size) {
      this.numbers?.destroy();
      this.numbers = device.createBuffer({ size, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
      this.groups.clear();
    }
    const numbers = new Int32Array(size / 4);
    let slot = 0;
    const dispatches = found.map((list, call) =>
      list.map(([kernel, places, values, x, y]) => {
        numbers.set([...values, x - 1], (slot * SLOT) / 4);
        const tensors = places.map((place) => this.calls[call].arguments[place]);
        const group = this.group(kernel, tensors, slot, values.length + 1);
        slot += 1;
        const pipeline = /** @type {GPUComputePipeline} */ (this.kernels.pipelines.get(kernel));
        return { pipeline, group, blocks: /** @type {[number, number, number]} */ (grid(x, y)) };
      }),
    );
    device.queue.writeBuffer(this.numbers, 0, numbers);
    return dispatches;
  }

  /**
   * @param {string} kernel
   * @param {readonly number[]} tensors
   * @param {number} slot of its numbers
   * @param {number} count of its numbers
   */
  group(kernel, tensors, slot, count) {
    const key = `${slot} ${kernel} ${tensors}`;
    const known = this.groups.get(key);
    if (known) return known;
    const buffer = /** @type {GPUBuffer} */ (this.numbers);
    const block = { buffer, offset: SLOT * slot, size: Math.ceil(count / 4) * 16 };
    const resources = [...tensors.map((i) => this.resources[i]), block];
    const entries = resources.map((resource, binding) => ({ binding, resource }));
    const layout = /** @type {GPUComputePipeline} */ (this.kernels.pipelines.get(kernel)).getBindGroupLayout(0);
    const made = this.kernels.memory.device.createBindGroup({ layout, entries });
    this.groups.set(key, made);
    return made;
  }
}

/**
 * A grid as WebGPU takes it: shaders put x together again.
 * @param {number} x
 * @param {number} y
 */
const grid = (x, y) => [Math.min(x, MOST_BLOCKS), y, Math.ceil(x / MOST_BLOCKS)];

/**
 * The kernels of an artifact on the GPU that the browser takes, and its memory.
 * @param {import("./tensors.js").Bytes} data the part that is the code
 * @param {string} where for errors
 * @param {number} largest bytes of the largest buffer
 */
export async function openGpu(data, where, largest) {
  /** @type {Code} */
  const code = JSON.parse(new TextDecoder().decode(data));
  const memory = new GpuMemory(await openDevice({ ...code.limits, ...sizes(largest) }, where));
  return { kernels: await GpuKernels.compile(memory, code, where), memory };
}

/** @param {number} largest */
const sizes = (largest) => ({ maxBufferSize: aligned(largest), maxStorageBufferBindingSize: aligned(largest) });

/**
 * @param {Record<string, number>} limits that it has to have
 * @param {string} where for errors
 */
async function openDevice(limits, where) {
  demand(["webgpu"]);
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new DeepZigError("the browser has no GPU for WebGPU", where, OTHER);
  for (const [name, least] of Object.entries(limits)) {
    const most = /** @type {Record<string, any>} */ (adapter.limits)[name];
    if (!(most >= least)) {
      const hint = "load with a smaller cacheTokens, or compile with --target webgpu:limits=FILE for this GPU";
      throw new DeepZigError(`the GPU's ${name} is ${most}, and ${least} is needed`, where, hint);
    }
  }
  try {
    return await adapter.requestDevice({ requiredLimits: limits });
  } catch (error) {
    throw new DeepZigError(`the GPU can't be used: ${message(error)}`, where, OTHER);
  }
}
