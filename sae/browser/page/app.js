// The page: which view the address names, the keys, and what stands on top of every view.
import { data, isExport } from "./data.js";
import { h, hideTip } from "./dom.js";
import { listPage } from "./list.js";
import { latentPage } from "./latent.js";
import { tryPage } from "./try.js";

const state = { go: (address) => { location.hash = address; } };
const main = document.getElementById("main");
let turn = 0;

// #/place, #/place/latent or #/place/try; places are numbers, so that no name is part of an address.
function parse() {
  const [, place = "0", what = ""] = location.hash.split("/");
  const number = Number(place);
  return { place: Number.isInteger(number) && state.index.places[number] ? number : 0, what };
}

function drawTop() {
  const { index, place, what } = state;
  const hookpoint = h("select", { "aria-label": "hookpoint", onchange: () => state.go(`#/${hookpoint.value}${what === "try" ? "/try" : ""}`) },
    index.places.map((each, at) => h("option", { value: String(at), selected: at === place }, each.name)));
  const jump = h("input", { type: "number", min: "0", placeholder: "latent", "aria-label": "go to latent", onchange: () => { if (jump.value) state.go(`#/${place}/${jump.value}`); } });
  jump.style.width = "96px";
  const nav = [["", "Latents"], ...(isExport ? [] : [["try", "Try"]])].map(([name, label]) => h("a", { href: `#/${place}${name && "/" + name}`, "aria-current": what === name || (name === "" && what !== "try") ? "page" : null }, label));
  document.getElementById("top").replaceChildren(h("div", { class: "bar" }, h("a", { class: "brand", href: "#/0" }, "sae"), h("nav", {}, nav), h("span", { class: "grow" }), hookpoint, jump));
}

async function draw() {
  if (!state.index) return;
  const mine = ++turn;
  Object.assign(state, parse());
  hideTip();
  drawTop();
  const isLatent = state.what !== "" && state.what !== "try";
  state.latent = isLatent ? Number(state.what) : undefined;
  if (isLatent) state.last = state.latent;
  // What keys do on a page comes with it: a page that is overtaken by the next one while it loads has no say.
  const keys = {};
  state.keys = {};
  const before = state.order_of === state.place ? state.order : undefined;
  state.order = before; state.order_of = state.place;
  document.title = isLatent ? `${state.latent} · ${state.index.places[state.place].name}` : state.index.places[state.place].name;
  let page;
  try {
    page = await (isLatent ? latentPage : state.what === "try" ? tryPage : listPage)(state, keys);
  } catch (error) {
    page = h("div", { class: "panel error", role: "alert" }, h("p", {}, error.message), h("p", {}, h("a", { href: `#/${state.place}` }, "To the list")));
  }
  if (mine !== turn) return;
  state.keys = keys;
  main.replaceChildren(page);
  if (isLatent) scrollTo(0, 0);
}

addEventListener("hashchange", draw);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (["j", "ArrowRight"].includes(event.key)) state.keys?.step?.(1);
  else if (["k", "ArrowLeft"].includes(event.key)) state.keys?.step?.(-1);
  else if (event.key === "b") state.keys?.bookmark?.();
  else if (event.key === "/" && state.keys?.focusSearch) { event.preventDefault(); state.keys.focusSearch(); }
  else if (event.key === "Escape" && state.latent !== undefined) state.go(`#/${state.place}`);
});

data.index().then((index) => { state.index = index; return draw(); })
  .catch((error) => main.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message)));
