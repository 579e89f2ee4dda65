// Where the data comes from: this machine's server, or, in an export, files beside the page that are scripts.
const arrays = { f32: Float32Array, u32: Uint32Array, u8: Uint8Array };
const kept = new Map();
export const isExport = Boolean(window.saeExport);

function once(key, make) {
  if (!kept.has(key)) {
    if (kept.size > 400) kept.delete(kept.keys().next().value);
    kept.set(key, make().catch((error) => { kept.delete(key); throw error; }));
  }
  return kept.get(key);
}

async function ask(path, options) {
  let answer;
  try { answer = await fetch(path, options); } catch (error) { throw new Error("The server has ended. Start sae browse again."); }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error || "The server refused.");
}

const json = async (path, options) => (await ask(path, options)).json();
const send = (path, method, body) => json(path, { method, body: JSON.stringify(body) });

function script(name) {
  return once("script " + name, () => new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = "data/" + name + ".js";
    element.onload = () => resolve(window.saeData[name]);
    element.onerror = () => reject(new Error("data/" + name + ".js is missing in this export."));
    document.head.append(element);
  }));
}

function unpack(buffer, latents, kinds) {
  const found = {};
  let at = 0;
  for (const [name, kind] of Object.entries(kinds)) {
    found[name] = new arrays[kind](buffer, at, latents);
    at += Math.ceil(found[name].byteLength / 4) * 4;
  }
  return found;
}

const fromServer = {
  index: () => once("index", () => json("api/index")),
  vocabulary: () => once("vocabulary", () => json("api/vocabulary")),
  columns: (index, place) => once("columns " + place, async () =>
    unpack(await (await ask(`api/place/${place}/columns`)).arrayBuffer(), index.places[place].latents, index.columns)),
  latent: (place, latent) => once(`latent ${place} ${latent}`, () => json(`api/place/${place}/latent/${latent}`)),
  related: (place, latent) => once(`related ${place} ${latent}`, () => json(`api/place/${place}/latent/${latent}/related`)),
  context: (place, latent, position) => json(`api/place/${place}/latent/${latent}/context/${position}`),
  active: (place, position) => json(`api/place/${place}/active/${position}`),
  search: (place, text) => json(`api/place/${place}/search?text=${encodeURIComponent(text)}`),
  notes: (place) => json(`api/place/${place}/notes`),
  note: (place, latent, changes) => send(`api/place/${place}/latent/${latent}/note`, "PUT", changes),
  explanations: (place, lines) => json(`api/place/${place}/explanations`, { method: "POST", body: lines }),
  read: (place, text) => send("api/try", "POST", { place, text }),
  steer: (body) => send("api/steer", "POST", body),
};

const fromFiles = {
  index: () => script("index"),
  vocabulary: () => once("vocabulary", async () => {
    const texts = await script("vocabulary");
    return new Proxy({}, { get: (none, token) => texts[token] });
  }),
  columns: (index, place) => once("columns " + place, async () => {
    const text = atob(await script("place" + place));
    return unpack(Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer, index.places[place].latents, index.columns);
  }),
  latent: async (place, latent) => (await fromFiles.shard(place, latent)).latent,
  related: async (place, latent) => (await fromFiles.shard(place, latent)).related,
  shard: async (place, latent) => {
    const index = await script("index");
    if (index.exported && !index.exported.includes(latent)) throw new Error("This latent is not in this export.");
    return (await script(`place${place}-${Math.floor(latent / index.shard)}`))[latent];
  },
  notes: async (place) => (await script("notes"))[place] || {},
};

export const data = isExport ? fromFiles : fromServer;
