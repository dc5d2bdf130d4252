// The memory's chart: the norm of every Gated DeltaNet layer's memory over the stream's time.

import { call, streamPath } from "./api.js";
import { bytes, clock, count, errorLine, h, plural, problem, say, svg } from "./dom.js";

const UNIT = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16; // larger on the largest screens
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [220, 40, 12, 10, 24].map((pixels) => pixels * UNIT);
const POINTS = 400; // of a line, at most
const NEAR = 14; // pixels from a line that count as pointing at it
const LOGARITHMIC = 12; // times the smallest of the newest norms that the largest must be
const HUES = [45, 320]; // of the first and the last layer, all equally light

/** Round numbers that divide 0..top in 3 to 5 parts. */
function ticks(top) {
  const raw = top / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
}

const powers = (low, high) => Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, i) => low * 10 ** i);

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

function timeTicks(from, to, width) {
  const most = Math.max(2, Math.floor(width / (90 * UNIT))), step = STEPS.find((value) => (to - from) / value <= most) ?? Math.ceil((to - from) / most / 86400) * 86400;
  const first = Math.ceil(from / step) * step;
  return Array.from({ length: Math.max(0, Math.floor((to - first) / step) + 1) }, (_, i) => first + i * step);
}

/** Where values lie on the picture: x of a time, y of a norm, and the marks of y. */
function scales({ times, norms }, width) {
  const from = times[0], to = Math.max(times.at(-1), from + 1), inner = HEIGHT - TOP - BOTTOM;
  const last = norms.at(-1).filter((norm) => norm > 0), all = norms.flat().filter((norm) => norm > 0);
  const x = (time) => LEFT + ((time - from) / (to - from)) * (width - LEFT - RIGHT);
  if (last.length && Math.max(...last) > LOGARITHMIC * Math.min(...last)) {
    const low = 10 ** Math.floor(Math.log10(Math.min(...last))), high = 10 ** Math.ceil(Math.log10(all.reduce((a, b) => Math.max(a, b))));
    const y = (norm) => TOP + inner * (1 - Math.log(Math.max(norm, low) / low) / Math.log(high / low));
    return { x, y, from, to, marks: powers(low, high), logarithmic: true };
  }
  const top = (all.reduce((a, b) => Math.max(a, b), 0) || 1) * 1.04;
  return { x, y: (norm) => TOP + inner * (1 - norm / top), from, to, marks: ticks(top), logarithmic: false };
}

const short = (norm) => (norm >= 100 ? count(Math.round(norm)) : norm >= 10 || norm === 0 ? norm.toFixed(1) : norm.toPrecision(3));

function thin({ layers, times, norms }) {
  const step = Math.ceil(times.length / POINTS), keep = (_, i) => (times.length - 1 - i) % step === 0;
  return { layers, times: times.filter(keep), norms: norms.filter(keep) };
}

export class Memory {
  #data = null;
  #scale = null;
  #at = null; // index of the time under the cursor, null: the newest
  #marked = null; // index of the layer that is pointed at
  #width = 0;

  constructor(id) {
    this.id = id;
    this.size = h("p", { class: "soft" });
    this.line = errorLine();
    this.caption = h("p", { class: "caption soft" });
    this.plot = svg("svg", { class: "plot", height: HEIGHT, tabindex: 0, role: "img", hidden: true,
      onpointermove: (event) => this.#point(event), onpointerdown: (event) => this.#point(event), onpointerleave: () => this.#mark(null, null), onkeydown: (event) => this.#key(event), onblur: () => this.#mark(null, null) });
    this.grid = svg("g"); this.lines = svg("g", { class: "lines" }); this.cursor = svg("g", { class: "cursor" });
    this.plot.append(this.grid, this.lines, this.cursor);
    this.when = h("p", { class: "reading", "aria-live": "off" });
    this.legend = h("ul", { class: "legend", role: "list" });
    this.readout = h("div", { class: "readout", hidden: true }, this.when, this.legend);
    this.none = h("p", { class: "soft hint" }, "The chart begins with the first frames.");
    this.element = h("section", { class: "memory-view", "aria-labelledby": "memory-title" },
      h("div", { class: "title" }, h("h2", { id: "memory-title" }, "Memory"), this.size), this.line, this.none, this.caption, this.plot, this.readout);
    this.resized = new ResizeObserver(([entry]) => this.#resize(entry.contentRect.width));
    this.resized.observe(this.element);
  }

  async load(signal) {
    try {
      this.#take(thin(await call("GET", streamPath(this.id, "/memory"), { signal })));
      problem(this.line);
    } catch (error) {
      if (error.status) problem(this.line, error); // a server that is gone is told of at the top
    }
  }

  tell(stats) {
    say(this.size, `${bytes(stats.state_bytes)}, the same at every frame: ${plural(stats.frames, "frame")}, ${plural(stats.tokens, "token")} so far`);
  }

  remove() {
    this.resized.disconnect();
  }

  #take(data) {
    const other = this.#data?.layers.join() !== data.layers.join();
    this.#data = data;
    if (this.#at !== null) this.#at = Math.min(this.#at, data.times.length - 1);
    this.none.hidden = data.times.length > 0;
    this.plot.toggleAttribute("hidden", !data.times.length);
    this.readout.hidden = !data.times.length;
    if (other) this.#layers();
    this.#draw();
  }

  /** Lines and legend, once for all: layers do not change. */
  #layers() {
    const { layers } = this.#data;
    const hue = (i) => HUES[0] + ((HUES[1] - HUES[0]) * i) / Math.max(1, layers.length - 1);
    const coloured = (element, i) => (element.style.setProperty("--hue", hue(i).toFixed(1)), element);
    this.lines.replaceChildren(...layers.map((_, i) => coloured(svg("path", {}), i)));
    this.legend.replaceChildren(...layers.map((layer, i) => coloured(h("li", { onpointerenter: () => this.#mark(this.#at, i), onpointerleave: () => this.#mark(this.#at, null) },
      h("span", { class: "swatch" }), h("span", { class: "soft" }, `layer ${layer}`), h("span", { class: "value" })), i)));
  }

  #resize(width) {
    if (Math.abs(width - this.#width) < 1) return;
    this.#width = width;
    this.plot.setAttribute("width", width);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#draw();
  }

  #draw() {
    if (!this.#data?.times.length || !this.#width) return;
    const { times, norms } = this.#data, scale = scales(this.#data, this.#width);
    this.#scale = scale;
    [...this.lines.children].forEach((path, j) =>
      path.setAttribute("d", "M" + times.map((time, i) => `${scale.x(time).toFixed(1)} ${scale.y(norms[i][j]).toFixed(1)}`).join("L")));
    this.#axes();
    this.#cursor();
    this.plot.setAttribute("aria-label", `Norm of the memory of ${norms[0].length} Gated DeltaNet layers, from ${clock(times[0])} to ${clock(times.at(-1))} of the stream. Arrow keys read values.`);
  }

  #axes() {
    const { x, y, from, to, marks, logarithmic } = this.#scale, width = this.#width;
    this.grid.replaceChildren(
      ...marks.flatMap((mark) => [svg("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }), svg("text", { x: LEFT - 8 * UNIT, y: y(mark) + 4 * UNIT, "text-anchor": "end" }, String(Number(mark.toPrecision(3))))]),
      ...timeTicks(from, to, width - LEFT - RIGHT).map((time) => svg("text", { x: Math.min(x(time), width - 16 * UNIT), y: HEIGHT - 6 * UNIT, "text-anchor": "middle" }, clock(time))));
    say(this.caption, `Norm of each Gated DeltaNet layer's memory${logarithmic ? ", on a logarithmic scale," : ""} over the stream's time`);
  }

  /** The rule at the chosen time, its points, and the legend's values there. */
  #cursor() {
    const { times, norms } = this.#data, at = this.#at ?? times.length - 1, { x, y } = this.#scale;
    say(this.when, this.#at === null ? `newest, at ${clock(times[at], true)}` : `at ${clock(times[at], true)}`);
    [...this.legend.children].forEach((item, j) => say(item.querySelector(".value"), short(norms[at][j])));
    const hues = [...this.lines.children].map((path) => path.style.getPropertyValue("--hue"));
    const dots = norms[at].map((norm, j) => {
      const dot = svg("circle", { cx: x(times[at]), cy: y(norm), r: (j === this.#marked ? 4 : 2.5) * UNIT });
      dot.style.setProperty("--hue", hues[j]);
      return dot;
    });
    const rule = this.#at === null ? [] : [svg("line", { x1: x(times[at]), x2: x(times[at]), y1: TOP, y2: HEIGHT - BOTTOM })];
    this.cursor.replaceChildren(...rule, ...dots);
    for (const group of [this.lines, this.legend]) {
      group.classList.toggle("one", this.#marked !== null);
      [...group.children].forEach((element, j) => element.classList.toggle("marked", j === this.#marked));
    }
  }

  #mark(at, layer) {
    this.#at = at;
    this.#marked = layer;
    if (this.#scale) this.#cursor();
  }

  #point(event) {
    const { times, norms } = this.#data, { x, y } = this.#scale, box = this.plot.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const at = times.reduce((best, time, i) => (Math.abs(x(time) - px) < Math.abs(x(times[best]) - px) ? i : best), 0);
    const far = norms[at].map((norm) => Math.abs(y(norm) - py)), nearest = far.indexOf(Math.min(...far));
    this.#mark(at, far[nearest] < NEAR ? nearest : null);
  }

  #key(event) {
    const last = this.#data.times.length - 1, layers = this.#data.layers.length, at = this.#at ?? last;
    const step = Math.max(1, Math.round(last / 60)), layer = this.#marked ?? -1;
    const to = { ArrowLeft: [at - step, layer], ArrowRight: [at + step, layer], Home: [0, layer], End: [last, layer], ArrowUp: [at, layer + 1], ArrowDown: [at, layer < 0 ? layers - 1 : layer - 1] }[event.key];
    if (!to) return;
    event.preventDefault();
    this.when.setAttribute("aria-live", "polite");
    this.#mark(Math.max(0, Math.min(last, to[0])), to[1] >= 0 && to[1] < layers ? to[1] : null);
    if (this.#marked !== null) say(this.when, `${this.when.textContent}: layer ${this.#data.layers[this.#marked]}, ${short(this.#data.norms[this.#at][this.#marked])}`);
  }
}
