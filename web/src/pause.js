/**
 * Let others have a turn: a browser paints, and messages arrive.
 * @type {() => Promise<unknown>}
 */
export const pause = choose();

function choose() {
  const { setImmediate, scheduler } = /** @type {any} */ (globalThis);
  if (setImmediate) return () => new Promise((resolve) => setImmediate(resolve)); // node
  if (scheduler?.yield) return () => scheduler.yield();
  const { port1, port2 } = new MessageChannel(); // its messages are tasks, and don't wait as timers do
  /** @type {(() => void)[]} */
  const waiting = [];
  port1.onmessage = () => waiting.shift()?.();
  return () =>
    new Promise((resolve) => {
      waiting.push(() => resolve(undefined));
      port2.postMessage(null);
    });
}
