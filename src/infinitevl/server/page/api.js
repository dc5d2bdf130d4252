// The server's HTTP part: keys, errors of one form, uploads with progress.

export const API = "/v1";
const KEY = "infinitevl.key";

/** What went wrong. status: 0 where the server did not answer. message: one line to show as it is. */
export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const keyEvents = new EventTarget(); // "wanted": a request was answered with 401; "changed"

let remembered = null; // where the browser keeps nothing for pages

export function key() {
  try { return sessionStorage.getItem(KEY); } catch { return remembered; }
}

export function setKey(value) {
  remembered = value || null;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {} // it lasts as long as the page then
  keyEvents.dispatchEvent(new Event("changed"));
}

export const streamPath = (id, rest = "") => `${API}/streams/${encodeURIComponent(id)}${rest}`;

/** The parsed answer of a request (null for 204), or what `as` names: "blob". Throws Failure; AbortError is let through. */
export async function call(method, path, { json, signal, as = "json", timeout = 20000 } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (json !== undefined) headers["content-type"] = "application/json";
  const limit = timeout ? AbortSignal.timeout(timeout) : null;
  const signals = [signal, limit].filter(Boolean);
  try {
    const body = json === undefined ? undefined : JSON.stringify(json);
    const response = await fetch(path, { method, headers, body, signal: signals.length ? AbortSignal.any(signals) : null });
    if (!response.ok) throw failure(response.status, await response.text());
    if (response.status === 204) return null;
    return as === "blob" ? await response.blob() : await response.json();
  } catch (error) {
    if (error instanceof Failure || signal?.aborted) throw error;
    throw new Failure(0, limit?.aborted ? "The server did not answer in time." : "The server does not answer.");
  }
}

function failure(status, text) {
  let message = `The server answered with status ${status}.`;
  try { message = JSON.parse(text).error.message || message; } catch {} // a proxy's page, say
  if (status === 401) keyEvents.dispatchEvent(new CustomEvent("wanted", { detail: message }));
  return new Failure(status, message);
}

/** Sends a file as the body of a POST. progress: called with the share that is sent, 0 to 1. */
export function upload(path, file, progress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells nothing of progress
    request.open("POST", path);
    if (key()) request.setRequestHeader("authorization", `Bearer ${key()}`);
    request.setRequestHeader("content-type", file.type || "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () => (request.status < 300 ? resolve() : reject(failure(request.status, request.responseText)));
    request.onerror = () => reject(new Failure(0, "The connection was lost while the file was sent."));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}

/** Saves what is at a path, which may need the key, as a file of the user's. */
export async function download(path, name) {
  const url = URL.createObjectURL(await call("GET", path, { as: "blob", timeout: 0 }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
