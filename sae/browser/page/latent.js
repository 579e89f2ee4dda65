// One latent: what it fires on, what it does, what goes with it, and what people say of it.
import { data, isExport } from "./data.js";
import { h, number, percent, grouped, visible, showTip, hideTip } from "./dom.js";
import { activationHistogram, logitHistogram } from "./charts.js";

const FIFTHS = ["Strongest", "Top fifth", "Second fifth", "Middle fifth", "Fourth fifth", "Weakest fifth"];
const NONE = 4294967295;

export function passage(vocabulary, ids, acts, largest, { peak = -1, onclick, tip, heat = "--heat" } = {}) {
  const values = new Map(acts);
  const spans = ids.map((id, at) => {
    const value = values.get(at) ?? 0, text = vocabulary[id] ?? `⟨${id}⟩`;
    const span = h("span", { class: (value > 0 ? "hot" : onclick ? "can" : "") + (at === peak ? " peak" : "") },
      text.includes("\n") ? text.split("\n").flatMap((part, line) => (line ? [h("span", { class: "ws" }, "↵"), part] : [part])) : text);
    if (value > 0) span.style.background = `rgb(var(${heat}) / ${(0.08 + 0.72 * Math.min(1, value / largest)).toFixed(2)})`;
    span.addEventListener("mousemove", (event) => showTip(event, tip ? tip(at, value) : `${visible(text)}\n${value > 0 ? number(value) : "does not fire"}`));
    span.addEventListener("mouseleave", hideTip);
    if (onclick) span.addEventListener("click", () => onclick(at));
    return span;
  });
  return h("div", { class: "text" }, spans);
}

export const legend = (largest, label = "activation", kind = "") => h("div", { class: "legend " + kind }, label, h("span", {}, "0"), h("i", {}), h("span", { class: "num" }, number(largest)));

export async function latentPage(state, keys) {
  const { index, place, latent, go } = state;
  const name = index.places[place].name;
  const [about, vocabulary, notes] = await Promise.all([data.latent(place, latent), data.vocabulary(), data.notes(place)]);
  const token = (id) => h("span", { class: "tok" }, visible(vocabulary[id] ?? `⟨${id}⟩`));
  const note = { ...notes[latent] };

  const fact = (label, value) => h("div", {}, h("span", { class: "k" }, label), h("span", { class: "v" }, value));
  const star = h("button", { "aria-pressed": String(Boolean(note.bookmarked)), title: "Bookmark (b)", disabled: isExport, onclick: async () => {
    note.bookmarked = !note.bookmarked;
    star.setAttribute("aria-pressed", String(note.bookmarked)); star.textContent = note.bookmarked ? "★ Bookmarked" : "☆ Bookmark";
    await keep({ bookmarked: note.bookmarked });
  } }, note.bookmarked ? "★ Bookmarked" : "☆ Bookmark");
  keys.bookmark = () => star.click();
  const copy = h("button", { onclick: async () => {
    try { await navigator.clipboard.writeText(location.href); copy.textContent = "Copied"; } catch (error) { prompt("The link to this latent", location.href); }
    setTimeout(() => { copy.textContent = "Copy link"; }, 1200);
  } }, "Copy link");
  const total = index.places[place].latents, order = state.order;
  const step = (by) => {
    const at = order ? order.indexOf(latent) : -1;
    const next = at >= 0 ? order[at + by] : latent + by;
    if (next !== undefined && next >= 0 && next < total) go(`#/${place}/${next}`);
  };
  keys.step = step;

  const head = h("div", { class: "panel" },
    h("div", { class: "row" }, h("a", { href: `#/${place}`, class: "small" }, "← " + name), h("span", { class: "grow" }),
      h("button", { onclick: () => step(-1), title: "Previous (k or ←)" }, "←"), h("button", { onclick: () => step(1), title: "Next (j or →)" }, "→"), star, copy),
    h("div", { class: "row" }, h("h1", {}, "Latent ", String(latent)), about.flags.map((flag) => h("span", { class: "flag" }, flag))),
    note.explanation && h("p", {}, note.explanation),
    h("div", { class: "facts" }, fact("density", percent(about.density)), fact("tokens", grouped(about.count)), fact("largest", number(about.max)), fact("mean when active", number(about.mean)),
      fact("encoder · decoder", number(about.alignment, 2)), fact("places in sequence", about.first === null ? "–" : `${about.first} – ${about.last}`),
      about.massive_count > 0 && fact("on massive tokens", grouped(about.massive_count) + " (left out)")));

  const shown = h("div", {}), tabs = h("div", { class: "tabs", role: "tablist" });
  const under = h("div", {});
  const what = async (context, at, element) => {
    if (isExport) return;
    under.remove();
    element.after(under);
    const position = context.at - context.peak + at;
    under.replaceChildren(h("p", { class: "soft small" }, "…"));
    const active = await data.active(place, position);
    under.replaceChildren(h("div", { class: "row small" }, h("span", { class: "soft" }, "Active on"), token(context.ids[at]), active.length ? active.slice(0, 24).map(([other, value]) => h("a", { href: `#/${place}/${other}`, class: "flag num" }, `${other} · ${number(value)}`)) : h("span", { class: "soft" }, "nothing (an excluded token)")));
  };
  const row = (context) => {
    const draw = (one) => passage(vocabulary, one.ids, one.acts, about.max, { peak: one.peak, onclick: isExport ? null : (at) => what(one, at, element) });
    const value = context.acts.find(([at]) => at === context.peak)?.[1] ?? 0;
    const more = !isExport && h("button", { title: "More of the text", onclick: async () => { element.children[1].replaceWith(draw(await data.context(place, latent, context.at))); more.remove(); } }, "more");
    const element = h("div", { class: "context" }, h("span", { class: "value" }, number(value)), draw(context), more);
    return element;
  };
  const groups = [about.top, ...about.fifths];
  const choose = (at) => {
    tabs.replaceChildren(...groups.map((group, each) => group.length ? h("button", { role: "tab", "aria-selected": String(each === at), onclick: () => choose(each) }, FIFTHS[each]) : ""));
    const range = at > 0 ? h("p", { class: "soft small num" }, `Passages whose largest activation is between ${number(about.edges[at])} and ${number(about.edges[at - 1])}`) : "";
    shown.replaceChildren(range, ...groups[at].map(row));
  };
  choose(0);
  const never = about.count === 0;
  const contexts = h("section", { class: "panel" },
    h("div", { class: "row" }, h("h2", {}, "What it fires on"), h("span", { class: "grow" }), !never && legend(about.max)),
    never ? h("p", { class: "soft" }, about.massive_count ? "It fires on massive tokens (attention sinks and the like) alone, which are left out." : `It never fires on these ${grouped(index.tokens)} tokens.`)
      : [h("p", { class: "soft small" }, `${grouped(about.contexts)} passages; each counts once, repeated ones are shown once.` + (isExport ? "" : " Click a token to see all latents on it.")), tabs, shown]);

  const pairs = (list, format) => h("div", { class: "list" }, list.map(([id, value]) => h("div", {}, token(id), h("span", { class: "num" }, format(value)))));
  const sides = h("div", { class: "stack" },
    about.ends.length > 0 && h("section", { class: "panel" }, h("h2", {}, "Where it writes: shares of its norm"), h("div", { class: "list" },
      index.places[place].ends.map((hookpoint, at) => h("div", {}, h("span", {}, hookpoint), h("meter", { min: 0, max: 1, value: about.ends[at], "aria-label": hookpoint }), h("span", { class: "num" }, percent(about.ends[at])))))),
    !never && h("section", { class: "panel" }, h("h2", {}, "Activations (logarithmic)"), activationHistogram(about)),
    !never && h("section", { class: "panel" }, h("h2", {}, "Tokens by share of its activations"), pairs(about.share, (value) => Math.round(100 * value) + " %"),
      about.by_mean.length > 0 && [h("h2", { class: "next" }, "Tokens by mean activation"), pairs(about.by_mean, (value) => number(value))]),
    about.up.length > 0 && about.up[0][0] !== NONE && h("section", { class: "panel" }, h("h2", {}, "Effect on the logits" + (index.places[place].path === "direct" ? "" : " (direct path only)")),
      h("div", { class: "pair" }, pairs(about.up, (value) => "+" + number(value, 2)), pairs(about.down, (value) => number(value, 2))),
      h("h2", { class: "next" }, "On all tokens (logarithmic)"), logitHistogram(about)));

  const status = h("span", { class: "soft small", "aria-live": "polite" });
  async function keep(changes) {
    status.textContent = "saving …";
    try { await data.note(place, latent, changes); status.textContent = "saved"; } catch (error) { status.textContent = error.message; }
  }
  let waiting = 0;
  const area = (field, label, rows) => h("textarea", { rows, "aria-label": label, placeholder: label, readOnly: isExport, oninput: (event) => {
    const value = event.target.value;
    clearTimeout(waiting); status.textContent = "…"; waiting = setTimeout(() => keep({ [field]: value }), 400);
  } }, note[field] ?? "");
  const writing = h("section", { class: "panel stack" }, h("div", { class: "row" }, h("h2", {}, "Notes"), h("span", { class: "grow" }), status),
    area("explanation", "Explanation: what it stands for, in a sentence", 2), area("note", "Note", 3));

  const related = h("section", { class: "panel" }, h("h2", {}, "What goes with it"), h("p", { class: "soft small" }, "…"));
  const page = h("div", { class: "stack" }, head, h("div", { class: "columns" }, h("div", { class: "stack" }, contexts, related, (!isExport || note.note || note.explanation) && writing), sides));
  goesWith().catch((error) => related.replaceChildren(h("p", { class: "warn" }, error.message)));

  async function goesWith() {
    const found = await data.related(place, latent);
    const columns = await Promise.all([...new Set([place, ...found.neighbours.map((each) => each[0])])].map(async (at) => [at, await data.columns(index, at)]));
    const of = new Map(columns);
    const link = (at, other, value) => h("a", { href: `#/${at}/${other}` }, h("span", { class: "name" }, h("b", { class: "num" }, String(other)), at === place ? "" : ` ${index.places[at].name}`, of.get(at).token[other] !== NONE && token(of.get(at).token[other])), h("span", { class: "num" }, value));
    related.replaceChildren(h("div", { class: "pair" },
      h("div", {}, h("h2", {}, "Decoder points the same way"), h("div", { class: "list" }, found.neighbours.map(([at, other, cosine]) => link(at, other, number(cosine, 2))))),
      h("div", {}, h("h2", {}, "Fires together"), found.coactive.length ? h("div", { class: "list" }, found.coactive.map(([other, correlation]) => link(place, other, number(correlation, 2)))) : h("p", { class: "soft small" }, "Nothing correlates with it."))));
  }
  return page;
}
