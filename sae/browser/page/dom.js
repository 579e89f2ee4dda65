// Elements from plain values. Every text goes in as text: data sets and names are strangers'.
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.flat(Infinity));
  return element;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

export function percent(value) {
  if (!value) return "0 %";
  return value < 1e-5 ? (100 * value).toExponential(1) + " %" : Number((100 * value).toPrecision(2)) + " %";
}

export const grouped = (value) => value.toLocaleString("en-US");

// Spaces and line breaks that would not be seen are shown.
export function visible(text) {
  return text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ /, "␣").replace(/ $/, "␣");
}

const tip = () => document.getElementById("tip");

export function showTip(event, text) {
  const box = tip();
  box.textContent = text;
  box.hidden = false;
  const width = Math.min(280, box.offsetWidth);
  box.style.left = Math.max(8, Math.min(innerWidth - width - 8, event.clientX - width / 2)) + "px";
  box.style.top = (event.clientY > 60 ? event.clientY - box.offsetHeight - 14 : event.clientY + 18) + "px";
}

export const hideTip = () => { tip().hidden = true; };
