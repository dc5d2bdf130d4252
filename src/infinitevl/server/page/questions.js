// The ask box of a stream, and the history of its questions with the times they are about.

import { call, streamPath } from "./api.js";
import { clock, errorLine, h, milliseconds, plural, problem, say, span } from "./dom.js";

const drafts = new Map(); // what stands in the ask box of a stream that is left, by its id
const FEW = 6; // answers that are shown at first; style.css knows it too
const ENDS = { length: "cut at its limit", cancelled: "cancelled", error: "failed" };

let numbers = 0;

class Item {
  constructor(question) {
    this.time = h("span", { class: "time" });
    this.age = h("span", { class: "soft" });
    this.text = h("p", { class: "answer", "aria-live": "polite" });
    this.about = h("p", { class: "about soft" });
    this.element = h("li", {}, h("div", { class: "when" }, this.time, this.age),
      h("div", {}, h("p", { class: "question" }, question), this.text, this.about));
    this.question = question;
  }

  begin(seconds) {
    this.element.classList.add("writing");
    this.text.setAttribute("aria-busy", "true"); // read out once it is whole
    this.seconds = seconds;
    say(this.time, clock(seconds, true));
    say(this.age, "now");
  }

  add(piece) {
    this.text.append(piece);
  }

  end(answer) {
    this.answer = answer;
    this.seconds = answer.time;
    this.element.classList.remove("writing");
    this.element.classList.toggle("failed", answer.finish_reason === "error");
    this.text.removeAttribute("aria-busy");
    say(this.text, answer.answer || "–");
    say(this.time, clock(answer.time, true));
    say(this.about, this.#facts().filter(Boolean).join(" · "));
  }

  #facts() {
    const { finish_reason: reason, error, first_token_ms: first, ms, usage, frames } = this.answer;
    return [error || ENDS[reason], `after ${plural(frames, "frame")}`, first !== null && `first word in ${milliseconds(first)}`,
      `all in ${milliseconds(ms)}`, usage && plural(usage.completion_tokens, "token")];
  }

  /** What came is all that will. */
  fail(message) {
    this.element.classList.remove("writing");
    this.element.classList.add("failed");
    this.text.removeAttribute("aria-busy");
    say(this.about, message);
  }

  grow(now) {
    if (!this.element.classList.contains("writing") && this.seconds !== null && this.seconds !== undefined)
      say(this.age, now - this.seconds < 0.5 ? "now" : `${span(now - this.seconds)} ago`);
  }
}

export class Questions {
  #items = new Map(); // by the answer's id
  #pending = new Map(); // by our own id
  #now = 0;
  #recalled = -1;
  #eager = false;

  constructor(id, live) {
    Object.assign(this, { id, live });
    this.box = h("textarea", { id: "ask", rows: 1, placeholder: "Ask about what it has seen", "aria-label": "Question", "aria-keyshortcuts": "/", maxlength: 10000, enterkeyhint: "send",
      onkeydown: (event) => this.#key(event), oninput: () => { this.#recalled = -1; this.#eager = false; problem(this.line); } });
    this.box.value = drafts.get(id) || "";
    this.remember = h("input", { type: "checkbox" });
    this.send = h("button", { class: "primary" }, "Ask");
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.cancel() }, "Stop");
    this.line = errorLine();
    this.list = h("ol", { class: "answers", role: "list", "aria-label": "Answers, newest first" });
    this.list.classList.add("few");
    this.more = h("button", { type: "button", class: "quiet more", onclick: () => { this.list.classList.remove("few"); this.#show(); } });
    this.none = h("p", { class: "soft hint" }, "Answers appear here, with the moment of the stream that they are about.");
    this.element = h("section", { class: "questions", "aria-labelledby": "questions-title" }, h("h2", { id: "questions-title", class: "hidden" }, "Questions"),
      h("form", { class: "ask", onsubmit: (event) => { event.preventDefault(); this.ask(); } },
        h("div", { class: "box" }, this.box, this.stop, this.send),
        h("label", { class: "check soft", title: "Question and answer become part of the stream's memory" }, this.remember, "Remember question and answer")),
      this.line, this.none, this.list, this.more);
    this.heard = { delta: (e) => this.#delta(e.detail), answer: (e) => this.#answered(e.detail), error: (e) => this.#failed(e.detail), state: () => this.#connection() };
    for (const [type, hear] of Object.entries(this.heard)) live.addEventListener(type, hear);
    this.#show();
  }

  /** Reads the history again, as other clients ask as well. */
  async load(signal) {
    const { data } = await call("GET", streamPath(this.id, "/answers"), { signal });
    for (const answer of data) if (!this.#items.has(answer.id)) this.#put(answer);
    this.tick(this.#now);
  }

  ask() {
    const question = this.box.value.trim();
    if (!question) return this.box.focus();
    problem(this.line);
    this.#eager = this.live.state === "connecting"; // asked when the connection opens
    if (this.#eager) return;
    const id = `q${(numbers += 1)}`;
    try {
      this.live.send({ type: "ask", id, question, remember: this.remember.checked });
    } catch (error) {
      return problem(this.line, error);
    }
    const item = new Item(question);
    item.begin(this.#now);
    this.#pending.set(id, item);
    this.list.prepend(item.element);
    this.box.value = "";
    this.#recalled = -1;
    this.#show();
  }

  cancel() {
    for (const id of this.#pending.keys()) this.live.send({ type: "cancel", id });
  }

  /** Moves the clock to which ages are told. */
  tick(now) {
    this.#now = now;
    for (const item of this.#items.values()) item.grow(now);
  }

  remove() {
    drafts.set(this.id, this.box.value);
    for (const [type, hear] of Object.entries(this.heard)) this.live.removeEventListener(type, hear);
  }

  #delta({ id, text }) {
    this.#pending.get(id)?.add(text);
  }

  #answered({ id, answer }) {
    const item = this.#pending.get(id);
    if (!item) return;
    this.#pending.delete(id);
    this.#items.get(answer.id)?.element.remove(); // the history was read while it came
    this.#items.set(answer.id, item);
    item.end(answer);
    item.grow(this.#now);
    this.#show();
  }

  #failed({ id, message }) {
    const item = this.#pending.get(id);
    if (item && item.text.textContent) item.fail(message);
    else if (item) this.#giveBack(item);
    this.#pending.delete(id);
    if (!item?.text.textContent) problem(this.line, message);
    this.#show();
  }

  /** A question that was not taken stands in the box again. */
  #giveBack(item) {
    item.element.remove();
    if (!this.box.value) this.box.value = item.question;
  }

  #connection() {
    if (this.live.state === "open") {
      problem(this.line);
      if (this.#eager) this.ask();
      return this.load().catch(() => {}); // polled again soon
    }
    for (const item of this.#pending.values()) item.fail("The connection was lost.");
    this.#pending.clear();
    this.#show();
  }

  #put(answer) {
    const item = new Item(answer.question);
    item.end(answer);
    item.text.removeAttribute("aria-live"); // old ones are not read out
    this.#items.set(answer.id, item);
    this.list.insertBefore(item.element, this.#after(answer));
    this.#show();
  }

  /** The element before which an answer stands: the newest of those that are older. Those being written come first. */
  #after(answer) {
    const older = [...this.#items.values()].filter((item) => item.answer !== answer && item.answer.created <= answer.created);
    return older.reduce((best, item) => (!best || best.compareDocumentPosition(item.element) & Node.DOCUMENT_POSITION_PRECEDING ? item.element : best), null);
  }

  #show() {
    this.stop.hidden = this.#pending.size === 0;
    const number = this.list.childElementCount;
    this.none.hidden = number > 0;
    this.more.hidden = number <= FEW || !this.list.classList.contains("few");
    say(this.more, plural(number - FEW, "earlier answer"));
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.ask();
    } else if ((event.key === "ArrowUp" || event.key === "ArrowDown") && (this.#recalled >= 0 || !this.box.value)) {
      event.preventDefault();
      this.#recall(event.key === "ArrowUp" ? 1 : -1);
    }
  }

  #recall(step) {
    const asked = [...new Set([...this.list.querySelectorAll(".question")].map((line) => line.textContent))];
    this.#recalled = Math.max(-1, Math.min(asked.length - 1, this.#recalled + step));
    this.box.value = asked[this.#recalled] ?? "";
  }
}
