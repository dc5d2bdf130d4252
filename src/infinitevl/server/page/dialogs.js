// Dialogs: the browser's own <dialog>, which keeps the focus inside and closes with Escape.

import { API, call, download } from "./api.js";
import { bytes, clock, errorLine, h, icon, problem } from "./dom.js";

let titles = 0;

/** Shows a dialog with these contents until it is closed; the focus then goes back to where it was. */
function openDialog(title, ...contents) {
  const id = `dialog-${(titles += 1)}`;
  const close = h("button", { type: "button", class: "square quiet", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  const dialog = h("dialog", { "aria-labelledby": id },
    h("header", {}, h("h2", { id }, title), close), ...contents);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export const isOpen = () => Boolean(document.querySelector("dialog[open]"));

/** A form in a dialog: `act(value of the button)` runs when it is sent; a failure shows in it, success closes it. */
export function openForm(title, act, fields, buttons) {
  const line = errorLine(), sending = buttons.filter((button) => button.type === "submit");
  const form = h("form", { onsubmit: submit }, ...fields, line, h("footer", {}, ...buttons));
  const dialog = openDialog(title, form);
  async function submit(event) {
    event.preventDefault();
    problem(line);
    for (const button of sending) button.disabled = true;
    try {
      await act(event.submitter?.value);
      dialog.close();
    } catch (error) {
      problem(line, error);
    } finally {
      for (const button of sending) button.disabled = false;
    }
  }
  return dialog;
}

export function confirmDialog(title, text, label, act) {
  const cancel = h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel");
  const dialog = openForm(title, act, [h("p", {}, text)], [cancel, h("button", { class: "danger" }, label)]);
  return dialog;
}

/** Asks for a name, of which `rules` are attributes of its field. act(name, value of the button). */
export function nameDialog(title, text, name, rules, buttons, act) {
  const input = h("input", { name: "name", value: name, required: true, maxlength: 100, autocomplete: "off", autofocus: true, ...rules });
  const made = buttons.map(([value, label], i) => h("button", { value, class: i ? null : "primary" }, label));
  openForm(title, (value) => act(input.value.trim(), value), [h("p", { class: "soft" }, text), h("label", {}, "Name", input)], made);
  input.select();
}

const KEYS = [
  ["/", "ask about the stream"], ["Enter", "ask; Shift + Enter for a new line"], ["↑ ↓", "in the ask box: earlier questions"],
  ["← → ↑ ↓", "walk over the wall, or along the memory's chart"], ["n", "new stream"], ["f", "fork the stream"],
  ["s", "snapshot of the stream"], ["t", "light or dark"], ["Esc", "close, or back to the wall"], ["?", "these keys"],
];

export function keysDialog() {
  openDialog("Keys", h("dl", { class: "keys" }, KEYS.flatMap(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])));
}

/** The snapshots, to begin streams from, to download, to delete. started: called with the new stream. */
export function snapshotsDialog(started) {
  const line = errorLine(), list = h("ul", { class: "rows", role: "list" }), none = h("p", { class: "soft", hidden: true }, "None yet. A stream's Snapshot button makes one.");
  const attempt = async (act) => {
    problem(line);
    try { await act(); } catch (error) { problem(line, error); }
  };
  async function show() {
    const { data } = await call("GET", `${API}/snapshots`);
    none.hidden = data.length > 0;
    list.replaceChildren(...data.map((snapshot) => row(snapshot, attempt, show, begin)));
  }
  async function begin(snapshot) {
    const stream = await call("POST", `${API}/streams`, { json: { snapshot: snapshot.name, name: snapshot.name } });
    dialog.close();
    started(stream);
  }
  const dialog = openDialog("Snapshots", line, none, list);
  attempt(show);
}

function row(snapshot, attempt, show, begin) {
  const path = `${API}/snapshots/${encodeURIComponent(snapshot.name)}`;
  let sure = false;
  const forget = h("button", { type: "button", class: "quiet", onclick: () => {
    if (sure) return attempt(async () => { await call("DELETE", path); await show(); });
    sure = true;
    forget.classList.add("danger");
    forget.textContent = "Really delete";
  } }, "Delete");
  return h("li", {},
    h("div", {}, h("strong", {}, snapshot.name), h("span", { class: "soft" }, about(snapshot))),
    h("div", { class: "buttons" },
      h("button", { type: "button", onclick: () => attempt(() => begin(snapshot)) }, "New stream"),
      h("button", { type: "button", onclick: () => attempt(() => download(path, fileName(snapshot.name))) }, "Download"), forget));
}

function about({ created, bytes: size, frames, seconds }) {
  const when = created && new Date(created * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return [seconds !== undefined && `${clock(seconds)} on its clock`, frames !== undefined && seconds === undefined && `${frames} frames`, size && bytes(size), when].filter(Boolean).join(" · ");
}

export const fileName = (name) => `${name}.safetensors`;
