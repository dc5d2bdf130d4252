// Standing questions: asked again and again, they speak up when the answer is another.

import { call, streamPath } from "./api.js";
import { clock, count, errorLine, h, icon, plural, problem, say } from "./dom.js";

const EVERY = 10; // seconds of stream time

class Row {
  constructor(watch, forget) {
    this.answer = h("p", { class: "answer", "aria-live": "polite" });
    this.time = h("span", { class: "time" });
    this.about = h("p", { class: "about soft" });
    this.element = h("li", {}, h("div", { class: "when" }, this.time),
      h("div", {}, h("p", { class: "question" }, watch.question), this.answer, this.about),
      h("button", { type: "button", class: "square quiet", "aria-label": `Delete the standing question ${watch.question}`, title: "Delete", onclick: () => forget(watch.id) }, icon("close")));
  }

  update({ answer, time, every, asked, changed }) {
    say(this.answer, answer ?? "not asked yet");
    this.answer.classList.toggle("soft", answer === null);
    say(this.time, clock(time, true));
    say(this.about, `every ${count(every)} s · asked ${plural(asked, "time")} · ${plural(changed, "change")}`);
  }

  flash(before) {
    if (before !== null) this.answer.title = `before: ${before}`;
    this.element.classList.remove("changed");
    void this.element.offsetWidth; // so that the animation begins again
    this.element.classList.add("changed");
  }
}

export class Watches {
  #rows = new Map();
  #watches = new Map();

  constructor(id, live) {
    Object.assign(this, { id, live });
    this.question = h("input", { placeholder: "How many things are there?", "aria-label": "Standing question", required: true, autocomplete: "off", maxlength: 10000 });
    this.every = h("input", { type: "number", min: 0.5, step: "any", value: EVERY, required: true, "aria-label": "Seconds of stream time between two answers" });
    this.line = errorLine();
    this.list = h("ul", { class: "answers standing", role: "list" });
    this.element = h("section", { class: "watches", "aria-labelledby": "watches-title" },
      h("h2", { id: "watches-title" }, "Standing questions"),
      h("form", { class: "watch", onsubmit: (event) => this.#add(event) }, this.question,
        h("label", { class: "every soft" }, "every", this.every, "s"), h("button", {}, "Add")),
      this.line, this.list);
    this.heard = (event) => this.#changed(event.detail);
    live.addEventListener("watch", this.heard);
  }

  async load(signal) {
    const { data } = await call("GET", streamPath(this.id, "/watches"), { signal });
    const there = new Set(data.map((watch) => watch.id));
    for (const [id, row] of this.#rows) {
      if (there.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    for (const watch of data) this.#put(watch);
  }

  remove() {
    this.live.removeEventListener("watch", this.heard);
  }

  #put(watch) {
    this.#watches.set(watch.id, watch);
    if (!this.#rows.has(watch.id)) {
      this.#rows.set(watch.id, new Row(watch, (id) => this.#forget(id)));
      this.list.append(this.#rows.get(watch.id).element);
    }
    this.#rows.get(watch.id).update(watch);
  }

  #changed({ watch: id, answer, before, time }) {
    const watch = this.#watches.get(id);
    if (!watch) return this.load().catch(() => {}); // polled again soon
    this.#put({ ...watch, answer, time, asked: watch.asked + 1, changed: watch.changed + 1 }); // until it is read again
    this.#rows.get(id).flash(before);
  }

  async #add(event) {
    event.preventDefault();
    await this.#attempt(async () => {
      const json = { question: this.question.value.trim(), every: Number(this.every.value) };
      this.#put(await call("POST", streamPath(this.id, "/watches"), { json }));
      this.question.value = "";
    });
  }

  #forget(id) {
    return this.#attempt(async () => {
      await call("DELETE", streamPath(this.id, `/watches/${encodeURIComponent(id)}`));
      await this.load();
    });
  }

  async #attempt(act) {
    problem(this.line);
    try { await act(); } catch (error) { problem(this.line, error); }
  }
}
