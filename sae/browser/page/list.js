// The list of latents: a table of any length of which only the rows in sight exist.
import { data, isExport } from "./data.js";
import { h, number, percent, grouped, visible } from "./dom.js";
import { densityHistogram, scatter } from "./charts.js";

const ROW = 36, NONE = 4294967295;
const COLUMNS = [
  ["latent", "Latent", ""], ["density", "Density", "right"], ["max", "Max", "right"], ["token", "Fires on", ""],
  ["up", "Promotes", ""], ["alignment", "Enc·dec", "right"], ["flags", "Flags", ""],
];
// Of a dictionary that writes several hookpoints: how much of a latent is at the last one, or in the second of two models.
const columnsOf = ({ ends }) => ends.length ? COLUMNS.map((column) => column[0] === "alignment" ? ["last", ends.at(-1).startsWith("b:") ? "In b" : "At " + ends.at(-1), "right"] : column) : COLUMNS;
const remembered = new Map();

export async function listPage(state, keys) {
  const { index, place, go } = state;
  const [columns, vocabulary, notes] = await Promise.all([data.columns(index, place), data.vocabulary(), data.notes(place)]);
  const number_of = index.places[place].latents;
  const view = remembered.get(place) || { sort: "density", down: true, text: "", kind: "token", flag: "alive", matches: null, scroll: 0 };
  remembered.set(place, view);
  const token = (id) => (id === NONE ? "" : visible(vocabulary[id] ?? ""));
  const flagNames = (bits) => index.flags.filter((name, bit) => (bits >> bit) & 1);
  let shown = [];

  const body = h("div", { class: "rows" }), head = h("div", { class: "head", role: "row" });
  const table = h("div", { class: "table", role: "table", tabindex: "0", "aria-label": "latents", onscroll: () => { view.scroll = table.scrollTop; paint(); } }, head, body);
  const count = h("span", { class: "soft small num", "aria-live": "polite" });
  const pictures = h("div", { class: "pair" });
  const search = h("input", { type: "search", class: "grow", "aria-label": "search", value: view.text, oninput: () => { view.text = search.value; later(); }, onkeydown: (event) => {
    if (event.key === "Enter" && view.kind === "text") find();
    else if (event.key === "Enter" && shown.length) go(`#/${place}/${shown[0]}`);
  } });
  const kinds = { token: "Fires on token", logit: "Promotes token", note: "Notes", number: "Number", ...(isExport ? {} : { text: "Text in contexts" }) };
  const kind = h("select", { "aria-label": "search in", onchange: () => { view.kind = kind.value; view.matches = null; hint(); update(); } },
    Object.entries(kinds).map(([name, label]) => h("option", { value: name, selected: name === view.kind }, label)));
  const flag = h("select", { "aria-label": "which latents", onchange: () => { view.flag = flag.value; update(); } },
    ["alive", "all", "bookmarked", "explained", ...index.flags].map((name) => h("option", { value: name, selected: name === view.flag }, name)));
  const hint = () => { search.placeholder = view.kind === "text" ? "A text, then Enter: what fires where it stands" : "Search"; };
  hint();

  let waiting = 0;
  const later = () => { clearTimeout(waiting); if (view.kind === "text") { if (!view.text) { view.matches = null; update(); } return; } waiting = setTimeout(update, 120); };
  async function find() {
    if (!view.text) return;
    count.textContent = "searching …";
    try { view.matches = (await data.search(place, view.text)).map((match) => match[0]); update(); } catch (error) { count.textContent = error.message; }
  }

  function matches() {
    const wanted = view.text.toLowerCase(), bits = index.flags.indexOf(view.flag), found = [];
    if (view.kind === "text" && view.text && view.matches) return view.matches;
    const texts = new Map();
    const has = (id) => {
      if (!texts.has(id)) texts.set(id, id !== NONE && (vocabulary[id] ?? "").toLowerCase().includes(wanted));
      return texts.get(id);
    };
    const only = index.exported ? new Set(index.exported) : null;
    for (let latent = 0; latent < number_of; latent += 1) {
      if (only && !only.has(latent)) continue;
      const note = notes[latent];
      if (view.flag === "alive" ? columns.flags[latent] & 1 : view.flag === "bookmarked" ? !note?.bookmarked : view.flag === "explained" ? !note?.explanation : bits >= 0 && !((columns.flags[latent] >> bits) & 1)) continue;
      if (wanted && view.kind === "token" && !has(columns.token[latent])) continue;
      if (wanted && view.kind === "logit" && !(has(columns.up[latent]) || has(columns.up2[latent]) || has(columns.up3[latent]))) continue;
      if (wanted && view.kind === "number" && !String(latent).startsWith(wanted)) continue;
      if (wanted && view.kind === "note" && !`${note?.note ?? ""} ${note?.explanation ?? ""}`.toLowerCase().includes(wanted)) continue;
      found.push(latent);
    }
    const keys = view.sort === "latent" ? null : columns[view.sort], sign = view.down ? -1 : 1;
    if (view.sort === "token" || view.sort === "up") found.sort((a, b) => sign * token(keys[a]).localeCompare(token(keys[b])) || a - b);
    else if (keys) found.sort((a, b) => sign * ((Number.isNaN(keys[a]) ? -2 : keys[a]) - (Number.isNaN(keys[b]) ? -2 : keys[b])) || a - b);
    else if (view.down) found.reverse();
    return found;
  }

  function line(at) {
    const latent = shown[at], up = [columns.up[latent], columns.up2[latent], columns.up3[latent]];
    const note = notes[latent], flags = flagNames(columns.flags[latent]);
    const row = h("a", { class: "line", role: "row", href: `#/${place}/${latent}` },
      h("span", { class: "id num" }, (note?.bookmarked ? "★ " : "") + latent),
      h("span", { class: "right num" }, percent(columns.density[latent])), h("span", { class: "right num" }, number(columns.max[latent])),
      h("span", {}, columns.token[latent] !== NONE && [h("span", { class: "tok" }, token(columns.token[latent])), h("span", { class: "soft small num" }, " " + Math.round(100 * columns.share[latent]) + " %")]),
      h("span", {}, note?.explanation ? h("span", { title: note.explanation }, note.explanation) : up.filter((id) => id !== NONE).map((id) => h("span", { class: "tok" }, token(id)))),
      h("span", { class: "right num" }, index.places[place].ends.length ? percent(columns.last[latent]) : number(columns.alignment[latent], 2)), h("span", {}, flags.map((name) => h("span", { class: "flag" }, name))));
    row.style.top = at * ROW + "px";
    return row;
  }

  // Rows that stay in sight stay as they are: a frame of scrolling makes one or two.
  const drawn = new Map();
  function paint(anew = false) {
    const first = Math.max(0, Math.floor(table.scrollTop / ROW) - 8), last = Math.min(shown.length, first + Math.ceil(table.clientHeight / ROW) + 18);
    for (const [at, row] of drawn) if (anew || at < first || at >= last) { row.remove(); drawn.delete(at); }
    const lowest = Math.min(...drawn.keys()), above = [], below = [];
    for (let at = first; at < last; at += 1) {
      if (drawn.has(at)) continue;
      const row = line(at);
      drawn.set(at, row);
      (at < lowest && lowest !== Infinity ? above : below).push(row);
    }
    body.prepend(...above);
    body.append(...below);
  }

  function update() {
    shown = matches();
    if (state.place === place) state.order = shown;
    body.style.cssText = `position:relative;height:${shown.length * ROW}px`;
    count.textContent = `${grouped(shown.length)} of ${grouped(number_of)} latents`;
    head.replaceChildren(...columnsOf(index.places[place]).map(([name, label, side]) => h("button", {
      class: side, type: "button", "aria-sort": view.sort === name ? (view.down ? "descending" : "ascending") : "none",
      onclick: () => { view.down = view.sort === name ? !view.down : name !== "latent" && name !== "token" && name !== "up"; view.sort = name; table.scrollTop = 0; update(); },
    }, label + (view.sort === name ? (view.down ? " ↓" : " ↑") : ""))));
    paint(true);
    pictures.replaceChildren(
      h("div", { class: "panel" }, h("h2", {}, "How often latents fire"), densityHistogram(columns, shown)),
      h("div", { class: "panel" }, h("h2", {}, "Density and largest activation"), scatter(columns, shown, (latent) => go(`#/${place}/${latent}`))));
  }

  const about = index.places[place];
  const sinks = about.massive ? `${grouped(about.massive)} massive tokens (attention sinks and the like) are left out of all lists.` : "";
  const page = h("div", { class: "stack" },
    h("div", {}, h("h1", {}, about.name),
      h("p", { class: "soft small" }, `${grouped(number_of)} latents on ${grouped(index.tokens)} tokens of ${(index.about.dataset || "the data").split("/").pop()}. `, sinks, about.path === "direct" ? "" : " Logit effects: direct path only.", index.why_no_logits ? ` No logit effects: ${index.why_no_logits}.` : "")),
    pictures,
    h("div", { class: "panel" }, h("div", { class: "row" }, search, kind, flag, count), table));
  queueMicrotask(() => { update(); table.scrollTop = view.scroll; paint(); });
  new ResizeObserver(() => paint()).observe(table);
  keys.focusSearch = () => search.focus();
  return page;
}
