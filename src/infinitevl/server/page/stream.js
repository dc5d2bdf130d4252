// One stream: its picture, questions and answers, standing questions, memory, and what can be done with it.

import { API, call, download, streamPath } from "./api.js";
import { cameras } from "./camera.js";
import { confirmDialog, fileName, nameDialog } from "./dialogs.js";
import { clock, count, errorLine, h, icon, milliseconds, plural, problem, say, span } from "./dom.js";
import { take } from "./live.js";
import { Memory } from "./memory.js";
import { Questions } from "./questions.js";
import { sourcePanel } from "./source.js";
import { Thumbnail } from "./thumbnail.js";
import { badge, sourceLine } from "./wall.js";
import { Watches } from "./watches.js";

const PICTURE = 400, MEMORY = 3000, HISTORY = 5000; // milliseconds between two looks
const SNAPSHOT = { pattern: "[A-Za-z0-9_\\-]{1,64}", maxlength: 64, title: "Letters, digits, - and _" };
const NUMBERS = ["clock", "fps", "lag", "frames", "tokens", "dropped", "waiting", "saved"];

export class StreamView {
  #ended = new AbortController();
  #timers = [];
  stream = null;

  /** go: called with the id of a stream to show, or null for the wall. */
  constructor(id, go) {
    Object.assign(this, { id, go, live: take(id) });
    this.questions = new Questions(id, this.live);
    this.watches = new Watches(id, this.live);
    this.memory = new Memory(id);
    this.thumbnail = new Thumbnail(id, "this stream");
    this.element = h("article", { class: "stream", "aria-labelledby": "stream-title" }, this.#header(), this.#columns());
    this.live.addEventListener("state", this.#connection);
    this.#every(PICTURE, () => this.stream && this.thumbnail.refresh(this.stream.stats));
    this.#every(MEMORY, (signal) => this.memory.load(signal));
    this.#every(HISTORY, async (signal) => { await this.questions.load(signal); await this.watches.load(signal); });
    if (this.live.hello) this.update(this.live.hello);
    this.#connection();
  }

  /** Shows the stream as the server describes it; null: it is there no longer. */
  update(stream) {
    if (!stream) return this.#gone();
    const { stats } = (this.stream = stream), title = stream.name || stream.id;
    say(this.title, title);
    document.title = `${title} · infinitevl`;
    this.thumbnail.rename(title);
    this.setPlace(stream.place);
    this.setSource(stream);
    this.stopButton.hidden = !stream.source && !cameras.has(this.id);
    const saved = stream.saved && `${span(Date.now() / 1000 - stream.saved.at)} ago`;
    const limit = stream.fps === null ? "every frame" : `of ${count(stream.fps)}`;
    const values = { clock: clock(stats.seconds), fps: `${stats.fps.toFixed(1)}`, lag: stats.fps > 0 ? milliseconds(stats.lag_ms) : "–", frames: count(stats.frames), tokens: count(stats.tokens), dropped: count(stats.dropped), waiting: count(stats.waiting), saved: saved || "not yet" };
    for (const key of NUMBERS) say(this.values[key], values[key]);
    this.values.fps.append(h("small", { class: "soft" }, ` ${limit}`));
    this.values.saved.title = stream.saved ? `up to frame ${count(stream.saved.frames)}` : "";
    this.values.dropped.classList.toggle("warn", stats.dropped > 0);
    this.questions.tick(stats.seconds);
    this.memory.tell(stats);
  }

  focus() {
    this.title.focus();
  }

  focusAsk() {
    this.questions.box.focus();
  }

  remove() {
    this.#ended.abort();
    for (const timer of this.#timers) clearInterval(timer);
    this.live.removeEventListener("state", this.#connection);
    for (const part of [this.questions, this.watches, this.memory, this.thumbnail]) part.remove();
    this.live.release();
    this.element.remove();
  }

  #header() {
    const [place, setPlace] = badge(), [source, setSource] = sourceLine();
    Object.assign(this, { setPlace, setSource });
    this.title = h("h1", { id: "stream-title", tabindex: -1 });
    const button = (name, label, act, attributes = {}) => h("button", { type: "button", onclick: act, ...attributes }, icon(name), label);
    this.stopButton = button("close", "Stop source", () => this.#attempt(() => this.#stopSource()), { hidden: true });
    this.actions = h("div", { class: "buttons", role: "group", "aria-label": "This stream" },
      button("fork", "Fork", () => this.fork(), { "aria-keyshortcuts": "f", title: "A second stream with the same memory" }),
      button("save", "Snapshot", () => this.snapshot(), { "aria-keyshortcuts": "s", title: "Keep this memory on disk" }),
      button("source", "Source", () => this.stream && sourcePanel(this.stream, (stream) => this.update(stream))), this.stopButton,
      button("trash", "Delete", () => this.#delete(), { class: "quiet" }));
    this.line = errorLine();
    this.done = h("p", { class: "done", role: "status", hidden: true });
    return h("header", { class: "head" },
      h("div", { class: "naming" }, h("a", { class: "back", href: "#/", "aria-label": "Back to all streams", title: "Back (Esc)" }, icon("back")), h("div", {}, h("div", { class: "title" }, this.title, place), source)),
      this.actions, this.line, this.done);
  }

  #columns() {
    this.values = Object.fromEntries(NUMBERS.map((key) => [key, h("dd")]));
    const numbers = h("dl", { class: "numbers wide" }, NUMBERS.map((key) => h("div", {}, h("dt", {}, key), this.values[key])));
    return h("div", { class: "columns" },
      h("div", { class: "seen" }, h("div", { class: "frame large" }, this.thumbnail.element), numbers),
      h("div", { class: "asked" }, this.questions.element, this.watches.element), this.memory.element);
  }

  #every(wait, act) {
    const run = async () => {
      if (document.hidden || this.#ended.signal.aborted) return;
      try { await act(this.#ended.signal); } catch {} // the page's own poll tells of a server that is gone
    };
    run();
    this.#timers.push(setInterval(run, wait));
  }

  #connection = () => {
    this.element.dataset.live = this.live.state;
    if (this.live.state === "gone") this.#gone();
  };

  #gone() {
    if (this.#ended.signal.aborted || this.element.classList.contains("gone")) return;
    this.element.classList.add("gone");
    for (const timer of this.#timers) clearInterval(timer);
    say(this.title, this.stream?.name || "No such stream");
    this.element.append(h("div", { class: "empty", role: "alert" }, h("h2", {}, "This stream is not there"), h("p", {}, "It was deleted, or it belongs to another key."), h("a", { class: "button", href: "#/" }, "All streams")));
  }

  async #attempt(act) {
    problem(this.line);
    try { await act(); } catch (error) { problem(this.line, error); }
  }

  async #stopSource() {
    cameras.get(this.id)?.stop();
    if (this.stream.source) this.update(await call("DELETE", streamPath(this.id, "/source")));
    else this.update(this.stream);
  }

  fork() {
    if (!this.stream) return;
    const text = `A second stream with the memory of ${clock(this.stream.stats.seconds)}, and no source yet.`;
    nameDialog("Fork", text, `${this.title.textContent} fork`.slice(0, 100), {}, [["", "Fork"]], async (name) => this.go((await call("POST", streamPath(this.id, "/fork"), { json: { name } })).id));
  }

  snapshot() {
    if (!this.stream) return;
    const { stats } = this.stream, proposal = `${this.title.textContent.slice(0, 48)}-${clock(stats.seconds)}`.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
    const buttons = [["", "Save"], ["download", "Save and download"]];
    nameDialog("Snapshot", `The memory as it is now, ${plural(stats.frames, "frame")}, to go on from at any time.`, proposal, SNAPSHOT, buttons, async (as, then) => {
      const path = `${API}/snapshots/${encodeURIComponent(as)}`;
      await call("POST", streamPath(this.id, "/snapshots"), { json: { name: as }, timeout: 0 });
      const save = () => this.#attempt(() => download(path, fileName(as)));
      this.done.replaceChildren(`Saved as ${as}. `, h("button", { type: "button", class: "link", onclick: save }, "Download"));
      this.done.hidden = false;
      if (then) await save();
    });
  }

  #delete() {
    const text = `Its memory of ${clock(this.stream?.stats.seconds)} is lost, unless a snapshot has it.`;
    confirmDialog(`Delete ${this.stream?.name || "this stream"}?`, text, "Delete", async () => {
      await call("DELETE", streamPath(this.id));
      this.go(null);
    });
  }
}
