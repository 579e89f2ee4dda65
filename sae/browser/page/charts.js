// The few kinds of pictures, drawn by hand: bars, and a cloud of points.
import { h, svg, number, percent, showTip, hideTip, grouped } from "./dom.js";

export function bars(counts, label, { height = 96, tip, kind = "bar", logarithmic = false } = {}) {
  const width = 320, scale = (value) => (logarithmic ? Math.log1p(value) : value);
  const top = Math.max(1e-9, ...counts.map(scale)), step = width / counts.length;
  const found = counts.map((count, at) => {
    const tall = count ? Math.max(1.5, (height * scale(count)) / top) : 0;
    const bar = svg("rect", { class: kind, x: at * step + 0.5, y: height - tall, width: Math.max(1, step - 1), height: tall, rx: 1 });
    const area = svg("rect", { x: at * step, y: 0, width: step, height, fill: "transparent" });
    area.addEventListener("mousemove", (event) => showTip(event, tip(at, count)));
    area.addEventListener("mouseleave", hideTip);
    return [bar, area];
  });
  const [left, right] = label;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${left} to ${right}` },
    svg("line", { x1: 0, x2: width, y1: height, y2: height }), found);
  picture.style.height = height + "px";
  return h("div", {}, picture, h("div", { class: "axis num" }, h("span", {}, left), h("span", {}, right)));
}

export function activationHistogram(latent) {
  const { histogram, max } = latent;
  const edge = (at) => number((max * at) / histogram.length);
  return bars(histogram, ["0", number(max)], { tip: (at, count) => `${edge(at)} – ${edge(at + 1)}: ${grouped(count)} tokens`, logarithmic: true });
}

export function logitHistogram(latent) {
  const { logit_histogram: counts, logit_range: [low, high] } = latent;
  const edge = (at) => number(low + ((high - low) * at) / counts.length, 2);
  return bars(counts, [number(low, 2), number(high, 2)], { kind: "base", tip: (at, count) => `${edge(at)} – ${edge(at + 1)}: ${grouped(count)} tokens`, logarithmic: true });
}

export function densityHistogram(columns, shown, choose) {
  const low = -6, bins = 24, counts = new Array(bins).fill(0);
  for (const latent of shown) {
    const density = columns.density[latent];
    if (density > 0) counts[Math.max(0, Math.min(bins - 1, Math.floor(((Math.log10(density) - low) / -low) * bins)))] += 1;
  }
  const edge = (at) => percent(10 ** (low - (low * at) / bins));
  return bars(counts, ["density 0.0001 %", "100 %"], { height: 142, kind: "base", tip: (at, count) => `${edge(at)} – ${edge(at + 1)}: ${grouped(count)} latents` });
}

// Density against maximum, both logarithmic. A click opens the nearest latent.
export function scatter(columns, shown, open) {
  const canvas = h("canvas", { "aria-label": "density against largest activation", role: "img" });
  const points = [];
  const draw = () => {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    context.scale(ratio, ratio);
    let low = Infinity, high = -Infinity;
    for (const latent of shown) if (columns.max[latent] > 0) { low = Math.min(low, columns.max[latent]); high = Math.max(high, columns.max[latent]); }
    const range = Math.log(high / low) || 1;
    points.length = 0;
    context.fillStyle = `rgb(${style.getPropertyValue("--cool")} / ${shown.length > 20000 ? 0.25 : 0.5})`;
    for (const latent of shown) {
      if (!(columns.density[latent] > 0)) continue;
      const x = 4 + (width - 8) * Math.max(0, (Math.log10(columns.density[latent]) + 6) / 6);
      const y = height - 18 - (height - 26) * (Math.log(columns.max[latent] / low) / range);
      points.push([x, y, latent]);
      context.fillRect(x - 1.25, y - 1.25, 2.5, 2.5);
    }
    context.fillStyle = style.getPropertyValue("--soft");
    context.font = "11px system-ui";
    context.fillText("density 0.0001 %", 0, height - 3);
    context.textAlign = "right"; context.fillText("100 %", width, height - 3);
    context.textAlign = "left"; if (points.length) context.fillText("max " + number(high), 0, 10);
  };
  const nearest = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = null, least = 144;
    for (const point of points) { const far = (point[0] - x) ** 2 + (point[1] - y) ** 2; if (far < least) { least = far; best = point[2]; } }
    return best;
  };
  canvas.addEventListener("mousemove", (event) => {
    const latent = nearest(event);
    canvas.style.cursor = latent === null ? "default" : "pointer";
    if (latent === null) hideTip(); else showTip(event, `latent ${latent}\ndensity ${percent(columns.density[latent])}, max ${number(columns.max[latent])}`);
  });
  canvas.addEventListener("mouseleave", hideTip);
  canvas.addEventListener("click", (event) => { const latent = nearest(event); if (latent !== null) open(latent); });
  new ResizeObserver(draw).observe(canvas);
  return canvas;
}
