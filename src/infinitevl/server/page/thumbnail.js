// The newest picture of a stream, fetched again only while it can be seen and there are new frames.

import { call, streamPath } from "./api.js";
import { h } from "./dom.js";

const SMALL = 160; // pixels: a model's small pictures are shown as they are, with sharp edges

const owners = new WeakMap();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) owners.get(target).seen(isIntersecting);
});

export class Thumbnail {
  #frames = null; // of the picture that is shown
  #busy = false;
  #seen = false;
  #stats = null;
  #ended = new AbortController();

  constructor(id, name) {
    this.id = id;
    this.image = h("img", { alt: "", hidden: true, draggable: "false" });
    this.none = h("span", { class: "none" }, "no picture yet");
    this.element = h("div", { class: "picture" }, this.none, this.image);
    this.image.addEventListener("load", () => this.#shown());
    this.rename(name);
    owners.set(this.element, this);
    seen.observe(this.element);
  }

  seen(now) {
    this.#seen = now;
    if (this.#stats) this.refresh(this.#stats);
  }

  rename(name) {
    this.image.alt = `Newest frame of ${name}`;
  }

  /** To be called often: fetches the picture if `stats` has frames that it does not show yet. */
  async refresh(stats) {
    this.#stats = stats;
    const news = stats.frames + stats.dropped;
    if (this.#busy || document.hidden || !this.#seen || this.#frames === news || !news) return;
    this.#busy = true;
    try {
      this.#show(await call("GET", streamPath(this.id, "/picture"), { as: "blob", signal: this.#ended.signal }));
      this.#frames = news;
    } catch (error) {
      if (error.status === 404) this.#frames = news; // none before the next frame
    } finally {
      this.#busy = false;
    }
  }

  #show(blob) {
    if (this.#ended.signal.aborted) return;
    const old = this.image.src;
    this.image.src = URL.createObjectURL(blob); // the picture before stays until this one is there
    if (old) URL.revokeObjectURL(old);
  }

  #shown() {
    this.image.classList.toggle("small", Math.max(this.image.naturalWidth, this.image.naturalHeight) <= SMALL);
    this.image.hidden = false;
    this.none.hidden = true;
  }

  remove() {
    this.#ended.abort();
    seen.unobserve(this.element);
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.element.remove();
  }
}
