// Building elements, and writing numbers. Text goes in as text nodes only: names and answers are not trusted.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Keys of `attributes`: onX listens, false and null are left out, known properties are set as such. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Sets text only where it changes, so that selections and screen readers are left alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const ICONS = {
  plus: "M8 3v10M3 8h10",
  back: "M9.5 3.5 5 8l4.5 4.5",
  close: "m4 4 8 8M12 4l-8 8",
  fork: "M4 2.5v11M4 9.5c5 0 8-1 8-5M10 5.5l2-2.5 2 2.5",
  save: "M8 2.5v7M5 7l3 3 3-3M3 13h10",
  trash: "M3 4.5h10M6.5 4V2.5h3V4M4.5 4.5l.5 9h6l.5-9",
  source: "M2.5 4.5h8v7h-8zM10.5 7.5l3.5-2v5l-3.5-2",
  theme: "M8 2a6 6 0 1 0 0 12zM8 2a6 6 0 0 1 0 12",
};

export function icon(name) {
  return svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, class: `icon icon-${name}`, "aria-hidden": "true" },
    svg("path", { d: ICONS[name] }));
}

/** Shows in one line what went wrong; `problem(line)` clears it. */
export function problem(line, error) {
  line.hidden = !error;
  say(line, error ? error.message || String(error) : "");
}

export function errorLine() {
  return h("p", { class: "error", role: "alert", hidden: true });
}

/** Seconds of a stream's clock: 12:03, 3:04:05; precisely, 0:07.5. */
export function clock(seconds, precise = false) {
  if (seconds === null || seconds === undefined) return "–";
  const tenths = Math.round(seconds * 10), whole = precise ? Math.floor(tenths / 10) : Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const start = hours ? `${count(hours)}:${two(minutes)}` : minutes;
  return `${start}:${two(whole % 60)}${precise ? `.${tenths % 10}` : ""}`;
}

/** How long, in one unit: 8 s, 3 min, 5 h, 12 days. */
export function span(seconds) {
  if (seconds < 99.5) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 99.5 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${count(Math.round(seconds / 86400))} days`;
}

export function bytes(number) {
  let unit = 0;
  while (number >= 1000 && unit < 4) { number /= 1024; unit += 1; }
  return `${number >= 100 || !unit ? Math.round(number) : number.toPrecision(3)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

export const count = (number) => number.toLocaleString("en");

export const milliseconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
