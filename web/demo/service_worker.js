/** Serves the page when there is no network. What the network has is always preferred, so nothing gets stale. */

const NAME = "deepzig-demo";

async function fill() {
  const { files } = await (await fetch("site.json", { cache: "no-cache" })).json();
  const cache = await caches.open(NAME);
  await cache.addAll(["./", "site.json", ...files]);
  await self.skipWaiting();
}

/** @param {Request} request */
async function answer(request) {
  const cache = await caches.open(NAME);
  const kept = await cache.match(request);
  try {
    const response = await fetch(request);
    if (kept && response.ok) await cache.put(request, response.clone()); // of the model only the manifest is kept here
    return response;
  } catch (error) {
    if (kept) return kept;
    throw error;
  }
}

self.addEventListener("install", (event) => event.waitUntil(fill()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});
