// The wall: a card for every stream, which arrow keys walk over.

import { bytes, clock, count, h, icon, milliseconds, say, svg } from "./dom.js";
import { cameras } from "./camera.js";
import { Thumbnail } from "./thumbnail.js";

const KEPT = 60; // values of a sparkline
const UPLOAD = "upload"; // the address of videos that were uploaded

const PLACES = {
  slot: ["live", "In the accelerator's memory, ready for the next frame"],
  host: ["parked on host", "Parked in the host's memory; it comes back when it is needed"],
  disk: ["on disk", "Parked on disk; it comes back when it is needed"],
};

/** The badge that tells where a stream's memory lies. */
export function badge() {
  const element = h("span", { class: "badge" });
  return [element, (place) => {
    const [text, title] = PLACES[place] || [place, ""];
    element.dataset.place = place;
    element.title = title;
    say(element, text);
  }];
}

/** The line that tells what a stream watches, and how that goes. */
export function sourceLine() {
  const status = h("span", { class: "status" }), text = h("span", { class: "cut" });
  const element = h("p", { class: "source" }, h("span", { class: "dot" }), status, " ", text);
  return [element, (stream) => {
    const [state, label, line] = fortune(stream);
    element.dataset.status = state;
    say(status, label);
    say(text, line);
    text.title = line;
  }];
}

function fortune({ id, source, stats }) {
  const camera = cameras.get(id);
  if (camera) return camera.error ? ["failed", "refused", camera.error] : ["playing", "camera", "of this tab"];
  if (!source) return stats.fps > 0 ? ["playing", "pushed", "by a client"] : ["none", "no source", ""];
  return [source.status, source.status, source.error || (source.url === UPLOAD ? "an uploaded video" : source.url)];
}

/** A line of numbers over time, from 0 up: what does not grow is flat. */
function sparkline() {
  const line = svg("polyline", { class: "line" });
  const element = svg("svg", { class: "spark", viewBox: "0 0 60 16", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  return [element, (values) => {
    const top = Math.max(1, ...values) * 2, step = 60 / Math.max(1, values.length - 1);
    const points = values.length > 1 ? values : [values[0], values[0]];
    line.setAttribute("points", points.map((value, i) => `${(i * (values.length > 1 ? step : 60)).toFixed(1)},${(16 - (16 * value) / top).toFixed(2)}`).join(" "));
  }];
}

class Card {
  memory = [];

  constructor(stream) {
    this.thumbnail = new Thumbnail(stream.id, stream.name);
    const [place, setPlace] = badge();
    const [source, setSource] = sourceLine();
    const [spark, setSpark] = sparkline();
    Object.assign(this, { setPlace, setSource, setSpark });
    this.name = h("a", { class: "name cut", href: `#/stream/${encodeURIComponent(stream.id)}` });
    this.values = Object.fromEntries(["clock", "fps", "lag", "dropped", "tokens", "memory"].map((key) => [key, h("dd")]));
    const pair = (key, ...more) => h("div", { class: key }, h("dt", {}, key), this.values[key], ...more);
    this.element = h("li", { class: "card" },
      h("div", { class: "frame" }, this.thumbnail.element),
      h("div", { class: "body" }, h("div", { class: "row" }, h("h2", {}, this.name), place), source,
        h("dl", { class: "numbers" }, pair("clock"), pair("fps"), pair("lag"), pair("dropped"), pair("tokens"), pair("memory", spark))));
    this.update(stream);
  }

  update(stream) {
    const { stats } = stream;
    say(this.name, stream.name || stream.id);
    this.thumbnail.rename(stream.name || stream.id);
    this.setPlace(stream.place);
    this.setSource(stream);
    say(this.values.clock, clock(stats.seconds));
    say(this.values.fps, stats.fps.toFixed(1));
    say(this.values.lag, stats.fps > 0 ? milliseconds(stats.lag_ms) : "–");
    say(this.values.dropped, count(stats.dropped));
    this.values.dropped.classList.toggle("warn", stats.dropped > 0);
    say(this.values.tokens, count(stats.tokens));
    say(this.values.memory, bytes(stats.state_bytes));
    this.memory = [...this.memory, stats.state_bytes].slice(-KEPT);
    this.setSpark(this.memory);
    this.thumbnail.refresh(stats);
  }

  remove() {
    this.thumbnail.remove();
    this.element.remove();
  }
}

export class Wall {
  #cards = new Map();
  #begun = false;

  constructor({ begin }) {
    this.list = h("ul", { class: "wall", role: "list", onkeydown: (event) => this.#walk(event) });
    this.empty = h("div", { class: "empty", hidden: true },
      h("h2", {}, "No streams yet"),
      h("p", {}, "A stream is an endless video that the model watches and remembers in constant memory. Ask about it at any time."),
      h("button", { type: "button", class: "primary", onclick: begin }, icon("plus"), "New stream"));
    this.element = h("section", { "aria-labelledby": "wall-title" }, h("h1", { id: "wall-title", class: "hidden" }, "Streams"), this.list, this.empty);
  }

  update(streams) {
    const there = new Set(streams.map((stream) => stream.id));
    for (const [id, card] of this.#cards) if (!there.has(id)) this.#take(id, card);
    for (const stream of streams) {
      if (this.#cards.has(stream.id)) this.#cards.get(stream.id).update(stream);
      else this.#put(stream);
    }
    this.list.style.setProperty("--count", streams.length); // few streams get large cards
    this.empty.hidden = streams.length > 0;
    this.#begun = true;
  }

  #put(stream) {
    const card = new Card(stream);
    if (this.#begun) card.element.classList.add("fresh");
    this.#cards.set(stream.id, card);
    this.list.append(card.element);
  }

  #take(id, card) {
    const next = card.element.contains(document.activeElement) && (card.element.nextElementSibling || card.element.previousElementSibling);
    this.#cards.delete(id);
    card.remove();
    if (next) next.querySelector("a").focus();
  }

  /** Moves the focus to a stream's card, or to the first one. */
  focus(id) {
    const card = this.#cards.get(id) || this.#cards.values().next().value;
    card?.name.focus();
  }

  remove() {
    for (const card of this.#cards.values()) card.remove();
    this.element.remove();
  }

  #walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#columns(), ArrowDown: this.#columns(), Home: -Infinity, End: Infinity }[event.key];
    const links = [...this.list.querySelectorAll("a.name")], at = links.indexOf(document.activeElement);
    if (!step || at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = Number.isFinite(step) ? at + step : step < 0 ? 0 : links.length - 1;
    if (links[to]) {
      links[to].focus();
      links[to].closest("li").scrollIntoView({ block: "nearest" });
    }
    event.preventDefault();
  }

  #columns() {
    return getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
  }
}
