// The page: what the address names, the server's health, the key, the theme, and keys of the keyboard.

import { API, call, key, keyEvents, setKey } from "./api.js";
import { cameras } from "./camera.js";
import { isOpen, keysDialog, snapshotsDialog } from "./dialogs.js";
import { bytes, errorLine, h, icon, plural, problem, say, span } from "./dom.js";
import { reconnect } from "./live.js";
import { newStreamPanel } from "./source.js";
import { StreamView } from "./stream.js";
import { Wall } from "./wall.js";

const SECOND = 1000, HIDDEN = 15 * SECOND, HEALTH = 10 * SECOND;
const RETRIES = [1, 2, 4].map((seconds) => seconds * SECOND);

const part = (id) => document.getElementById(id);
const page = { view: null, id: null, streams: [], known: false, counted: "", stopping: false, failures: 0, timer: 0, retryAt: 0, locked: false };

// What the address names: "#/" the wall, "#/stream/ID" a stream.

function go(id) {
  location.hash = id ? `#/stream/${encodeURIComponent(id)}` : "#/";
}

function route() {
  const found = /^#\/stream\/(.+)$/.exec(location.hash), id = found ? decodeURIComponent(found[1]) : null;
  if (page.view && page.id === id) return;
  const before = page.id;
  page.view?.remove();
  page.id = id;
  page.view = id ? new StreamView(id, go) : new Wall({ begin: () => begin() });
  part("main").replaceChildren(page.view.element);
  if (!id) document.title = "infinitevl";
  show();
  window.scrollTo(0, 0);
  if (id) page.view.focus();
  else if (before) page.view.focus(before);
}

function show() {
  if (!page.id) return page.known && page.view.update(page.streams);
  const stream = page.streams.find(({ id }) => id === page.id);
  if (stream) page.view.update(stream);
}

// Looking at the server, each second while the page is seen.

async function look() {
  clearTimeout(page.timer);
  let wait = document.hidden ? HIDDEN : SECOND;
  try {
    page.streams = (await call("GET", `${API}/streams`)).data;
    page.known = true;
    up();
    show();
    if (page.id && !page.streams.some(({ id }) => id === page.id)) await missing(page.id);
  } catch (error) {
    if (error.status === 401) return; // the key's field looks again
    wait = Math.max(down(error), wait);
  }
  clearTimeout(page.timer);
  page.timer = setTimeout(look, wait);
}

/** A stream that the list lacks may be newer than the list. */
async function missing(id) {
  try {
    const stream = await call("GET", `${API}/streams/${encodeURIComponent(id)}`);
    if (page.id === id) page.view.update(stream);
  } catch (error) {
    if (error.status === 404 && page.id === id) page.view.update(null);
    else if (error.status !== 404) throw error;
  }
}

function up() {
  unlock();
  if (page.failures) {
    health();
    reconnect();
  }
  page.failures = 0;
  part("banner").hidden = true;
  const held = page.streams.reduce((sum, { stats }) => sum + stats.state_bytes, 0);
  page.counted = page.streams.length ? `${plural(page.streams.length, "stream")}, ${bytes(held)} of memory` : "no streams";
  status("ok");
}

/** Tells that the server is gone, and when it is tried again; gives the wait. */
function down(error) {
  const wait = RETRIES[Math.min(page.failures, RETRIES.length - 1)];
  page.failures += 1;
  page.retryAt = Date.now() + wait;
  const banner = part("banner"), again = h("button", { type: "button", onclick: look }, "Try now");
  if (banner.hidden) banner.replaceChildren(h("span", {}), h("span", { class: "soft", "aria-hidden": "true" }), again);
  banner.hidden = false;
  say(banner.firstChild, `${error.message} What you see is as it was.`);
  retrying();
  status("down");
  return wait;
}

function retrying() {
  const left = Math.max(0, page.retryAt - Date.now()) / 1000;
  if (page.failures) say(part("banner").children[1], left > 0.5 ? `Trying again in ${span(left)}.` : "Trying again.");
}

function status(state) {
  const words = { ok: page.counted, down: "no answer", stopping: "going down", locked: "wants a key" };
  const now = state === "ok" && page.stopping ? "stopping" : state;
  part("server").querySelector(".dot").dataset.status = now;
  say(part("health"), words[now]);
}

async function health() {
  try {
    const { model, status: is } = await call("GET", "/healthz");
    page.stopping = is === "stopping";
    say(part("model"), model);
    part("model").title = model;
  } catch (error) {
    page.stopping = error.status === 503;
  }
}

// The key.

keyEvents.addEventListener("wanted", ({ detail }) => lock(detail));

function lock(message) {
  const was = page.locked, line = errorLine();
  page.locked = true;
  status("locked");
  if (was) return problem(document.querySelector(".lock .error"), key() ? message : null);
  clearTimeout(page.timer);
  page.view?.remove();
  page.view = null;
  const input = h("input", { type: "password", autocomplete: "off", required: true, spellcheck: "false", pattern: "[A-Za-z0-9_\\-]+", title: "Letters, digits, - and _" });
  const enter = (event) => { event.preventDefault(); setKey(input.value.trim()); look(); };
  part("main").replaceChildren(h("form", { class: "lock", onsubmit: enter },
    h("h1", {}, "This server wants a key"), h("p", { class: "soft" }, "It is kept until this tab is closed, and goes to this server only."),
    h("label", {}, "Key", input), line, h("button", { class: "primary" }, "Enter")));
  problem(line, key() ? message : null);
  for (const id of ["new", "snapshots"]) part(id).hidden = true;
  part("key").hidden = true;
  input.focus();
}

function unlock() {
  part("key").hidden = !key();
  if (!page.locked) return;
  page.locked = false;
  for (const id of ["new", "snapshots"]) part(id).hidden = false;
  route();
}

function forgetKey() {
  for (const camera of [...cameras.values()]) camera.stop();
  page.streams = [];
  setKey(null);
  look();
}

// The header, and keys of the keyboard.

function begin(file) {
  if (!page.locked) newStreamPanel((stream) => go(stream.id), file);
}

function turnTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches, root = document.documentElement;
  const next = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  root.dataset.theme = next;
  try {
    if ((next === "dark") === dark) localStorage.removeItem("infinitevl.theme"); // follow the system again
    else localStorage.setItem("infinitevl.theme", next);
  } catch {} // it lasts as long as the page then
}

const KEYS = {
  "/": () => ask(),
  n: () => begin(),
  t: turnTheme,
  "?": keysDialog,
  f: () => page.view?.fork?.(),
  s: () => page.view?.snapshot?.(),
};

/** Focuses the ask box; on the wall, that of the stream in focus, or of the first. */
function ask() {
  if (page.view?.focusAsk) return page.view.focusAsk();
  const link = document.activeElement?.closest?.(".card")?.querySelector("a") || document.querySelector(".card a");
  if (!link) return;
  location.hash = link.hash;
  addEventListener("hashchange", () => page.view.focusAsk?.(), { once: true });
}

function pressed(event) {
  if (isOpen() || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && page.id) return go(null);
  const writes = event.target.matches("textarea, select, input:not([type=checkbox], [type=radio])");
  if (writes || page.locked || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
}

function dropped(event) {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file && !isOpen()) begin(file);
}

function start() {
  part("new").append(icon("plus"), h("span", {}, "New stream"));
  part("snapshots").append(icon("save"), h("span", {}, "Snapshots"));
  part("key").append("Forget key");
  part("theme").append(icon("theme"));
  part("help").append("?");
  for (const [id, label] of [["theme", "Light or dark"], ["help", "Keys of the keyboard"]]) {
    part(id).setAttribute("aria-label", label);
    part(id).title = label;
  }
  const acts = { new: () => begin(), snapshots: () => snapshotsDialog((stream) => go(stream.id)), key: forgetKey, theme: turnTheme, help: keysDialog };
  for (const [id, act] of Object.entries(acts)) part(id).addEventListener("click", act);
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); part("main").focus(); });
  addEventListener("hashchange", route);
  addEventListener("keydown", pressed);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", dropped);
  addEventListener("online", look);
  document.addEventListener("visibilitychange", () => !page.locked && look());
  setInterval(() => document.hidden || health(), HEALTH);
  setInterval(retrying, SECOND);
  health();
  route();
  look();
}

start();
