// Try: a text of one's own, the latents on each of its tokens, and the model with latents changed.
import { data } from "./data.js";
import { h, number, visible } from "./dom.js";
import { passage, legend } from "./latent.js";

const NONE = 4294967295;
const kept = { text: "", edits: [], length: 30 };

export async function tryPage(state) {
  const { index, place } = state;
  const [vocabulary, columns] = await Promise.all([data.vocabulary(), data.columns(index, place)]);
  const fires = (latent) => (columns.token[latent] === NONE ? "" : visible(vocabulary[columns.token[latent]] ?? ""));
  const link = (latent, value) => h("a", { class: "flag num", href: `#/${place}/${latent}`, title: fires(latent) && `fires mostly on ${fires(latent)}` },
    h("b", {}, latent), fires(latent) && h("span", { class: "tok" }, fires(latent)), number(value));
  const text = h("textarea", { rows: 4, "aria-label": "text", placeholder: "Type a text. The first time the language model is loaded, which takes a few seconds.", oninput: () => { kept.text = text.value; } }, kept.text);
  const out = h("div", { class: "stack" }), below = h("div", {}), steered = h("div", { class: "stack" });
  const busy = (button, work) => async () => {
    button.disabled = true; const label = button.textContent; button.textContent = "…";
    try { await work(); } catch (error) { out.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message)); }
    button.disabled = false; button.textContent = label;
  };

  async function read() {
    const found = await data.read(place, text.value);
    const strength = found.latents.map((each) => each[0]?.[1] ?? 0), order = [...strength].sort((a, b) => a - b);
    const largest = order[Math.floor(order.length * 0.85)] || 1;
    const show = (at) => below.replaceChildren(h("div", { class: "row" }, h("span", { class: "tok" }, visible(vocabulary[found.ids[at]] ?? "")), found.latents[at].map(([latent, value]) => link(latent, value))));
    out.replaceChildren(h("div", { class: "row" }, h("h2", {}, "The strongest latent of each token; click a token for all"), h("span", { class: "grow" }), legend(largest)),
      passage(vocabulary, found.ids, strength.map((value, at) => [at, value]), largest, { onclick: show, tip: (at) => found.latents[at].slice(0, 5).map(([latent, value]) => `${latent} · ${number(value)}`).join("\n") || "nothing fires" }), below);
    show(found.ids.length - 1);
  }

  const edits = h("div", { class: "stack" });
  function drawEdits() {
    edits.replaceChildren(...kept.edits.map((edit, at) => {
      const shown = h("span", { class: "num small" }, edit.strength === null ? "ablated" : `${number(edit.strength, 2)} × max`);
      const slider = h("input", { type: "range", min: "-5", max: "5", step: "0.25", value: String(edit.strength ?? 0), "aria-label": `strength of latent ${edit.latent}`, disabled: edit.strength === null, oninput: () => { edit.strength = Number(slider.value); shown.textContent = `${number(edit.strength, 2)} × max`; } });
      return h("div", { class: "edit" },
        h("input", { type: "number", min: "0", max: String(index.places[place].latents - 1), value: String(edit.latent), "aria-label": "latent", oninput: (event) => { edit.latent = Number(event.target.value); } }),
        slider, shown, h("span", { class: "row" }, h("button", { "aria-pressed": String(edit.strength === null), onclick: () => { edit.strength = edit.strength === null ? 1 : null; drawEdits(); } }, "ablate"), h("button", { "aria-label": "remove", onclick: () => { kept.edits.splice(at, 1); drawEdits(); } }, "×")));
    }));
  }
  const add = h("button", { onclick: () => { kept.edits.push({ latent: Number(state.latent ?? state.last ?? 0), strength: 2 }); drawEdits(); } }, "Change a latent");
  if (!kept.edits.length) add.click(); else drawEdits();

  async function steer() {
    const found = await data.steer({ text: text.value, place, edits: kept.edits, new_tokens: kept.length });
    const most = Math.max(...found.kl, 1e-6), words = (ids) => ids.map((id) => vocabulary[id] ?? "").join("").replace(/\n/g, "↵");
    steered.replaceChildren(
      h("div", { class: "pair" }, h("div", {}, h("h2", {}, "Clean"), h("div", { class: "text" }, words(found.clean) || "–")), h("div", {}, h("h2", {}, "Steered"), h("div", { class: "text" }, words(found.steered) || "–"))),
      h("div", { class: "row" }, h("h2", {}, "How far the next-token predictions move (KL, nats)"), h("span", { class: "grow" }), legend(most, "KL", "kl")),
      passage(vocabulary, found.ids, found.kl.map((value, at) => [at, value]), most, { heat: "--cool", tip: (at, value) => `KL ${number(value)}` }));
  }

  const reading = h("button", { class: "main" }, "Show latents"), steering = h("button", { class: "main" }, "Compare");
  reading.addEventListener("click", busy(reading, read));
  steering.addEventListener("click", busy(steering, steer));
  return h("div", { class: "stack" },
    h("div", {}, h("h1", {}, "Try a text"), h("p", { class: "soft small" }, `At ${index.places[place].name}.`)),
    h("section", { class: "panel stack" }, text, h("div", { class: "row" }, reading), out),
    index.places[place].crosscoder ? h("p", { class: "soft small" }, "Latents of a crosscoder say what several hookpoints hold. A text can be read here, and not be steered.") :
    h("section", { class: "panel stack" }, h("h2", {}, "Steer: add to a latent on every token, in units of its largest activation, or ablate it"), edits, h("div", { class: "row" }, add, steering), steered));
}
