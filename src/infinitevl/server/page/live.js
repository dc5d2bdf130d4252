// One WebSocket for a stream, shared by all in this page that use it, opened again when it is lost.

import { Failure, key, keyEvents, streamPath } from "./api.js";

const WAITS = [500, 1000, 2000, 4000, 8000];
const open = new Map();

/** The connection of a stream; give it back with `release()` as often as it was taken. */
export function take(id) {
  if (!open.has(id)) open.set(id, new Live(id));
  const live = open.get(id);
  live.users += 1;
  return live;
}

/** The server is back: connections that wait are opened at once. */
export function reconnect() {
  for (const live of open.values()) live.hurry();
}

/** Events: "state" when `state` changes, and the server's messages as CustomEvents by their type, see docs/protocol.md. */
class Live extends EventTarget {
  users = 0;
  state = "connecting"; // "open", "lost" (will be tried again), "refused" (the key), "gone" (the stream)
  hello = null; // the stream as it was when the connection opened
  #socket = null;
  #tries = 0;
  #timer = 0;

  constructor(id) {
    super();
    this.id = id;
    this.again = () => this.state !== "open" && this.#connect();
    keyEvents.addEventListener("changed", this.again);
    window.addEventListener("online", this.again);
    this.#connect();
  }

  release() {
    this.users -= 1;
    if (this.users) return;
    open.delete(this.id);
    clearTimeout(this.#timer);
    keyEvents.removeEventListener("changed", this.again);
    window.removeEventListener("online", this.again);
    this.#drop();
  }

  /** Sends a message: an object as JSON, a Blob as a picture. Throws Failure where there is no connection. */
  send(message) {
    if (this.state !== "open") throw new Failure(0, "Not connected to this stream; trying again.");
    this.#socket.send(message instanceof Blob ? message : JSON.stringify(message));
  }

  /** Tries again now, unless it is trying. */
  hurry() {
    if (this.#socket?.readyState !== WebSocket.CONNECTING) this.again();
  }

  #drop() {
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#drop();
    const url = new URL(streamPath(this.id, "/live"), location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = key() ? ["infinitevl.v1", `bearer.${key()}`] : ["infinitevl.v1"];
    try {
      this.#socket = new WebSocket(url, protocols);
    } catch { // the key has signs which no subprotocol can have, so it is none of this server's
      return this.#become("refused");
    }
    this.#socket.onmessage = (event) => this.#receive(JSON.parse(event.data));
    this.#socket.onclose = (event) => this.#closed(event.code);
  }

  #receive(message) {
    if (message.type === "hello") {
      this.hello = message.stream;
      this.#tries = 0;
      this.#become("open");
    }
    this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
  }

  #closed(code) {
    this.#socket = null;
    if (code === 4401) return this.#become("refused");
    if (code === 4404) return this.#become("gone");
    this.#timer = setTimeout(() => this.#connect(), WAITS[Math.min(this.#tries, WAITS.length - 1)]);
    this.#tries += 1;
    this.#become("lost");
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state"));
  }
}
