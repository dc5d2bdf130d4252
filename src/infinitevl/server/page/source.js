// The panel that begins a stream, or gives a stream that is there something to watch.

import { API, Failure, call, streamPath, upload } from "./api.js";
import { Camera, cameras, listCameras, openCamera } from "./camera.js";
import { openForm } from "./dialogs.js";
import { bytes, clock, h, plural, say } from "./dom.js";

const FPS = 2;
const REMEMBERED = "infinitevl.fps";

const KINDS = {
  file: ["File", filePart],
  camera: ["Webcam", cameraPart],
  address: ["Address", addressPart],
  snapshot: ["Snapshot", snapshotPart],
  empty: ["Empty", emptyPart],
};

/** A new stream. done: called with it. file: one that was dropped on the page. */
export function newStreamPanel(done, file) {
  panel("New stream", ["file", "camera", "address", "snapshot", "empty"], null, done, file);
}

/** Another source for a stream. */
export function sourcePanel(stream, done) {
  panel(`Source of ${stream.name || stream.id}`, ["file", "camera", "address"], stream, done);
}

function panel(title, kinds, stream, done, file) {
  const ended = new AbortController();
  const name = h("input", { name: "name", maxlength: 100, autocomplete: "off", placeholder: "a name of your choice" });
  const fps = h("input", { name: "fps", type: "number", min: 0.1, max: 60, step: "any", value: rememberedFps(), placeholder: "every frame" });
  const hint = h("p", { class: "soft" });
  const common = h("div", { class: "pair" }, h("label", {}, "Name", name), h("label", {}, "Frames a second", fps));
  const place = h("div", { class: "part" });
  const button = h("button", { class: "primary" });
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  let part = null;
  const choose = (kind) => {
    part = KINDS[kind][1]({ stream, file, name });
    place.replaceChildren(...part.fields);
    say(hint, part.hint);
    say(button, part.label || (stream ? "Watch" : "Start"));
    fps.closest("label").hidden = kind === "snapshot";
  };
  const choices = h("fieldset", { class: "segments" }, h("legend", { class: "hidden" }, "What to watch"),
    kinds.map((kind, i) => h("label", {}, h("input", { type: "radio", name: "kind", value: kind, checked: i === 0, autofocus: i === 0, onchange: () => choose(kind) }), h("span", {}, KINDS[kind][0]))));
  const dialog = openForm(title, async () => {
    const wanted = { name: name.value.trim() || undefined, fps: fps.value ? Number(fps.value) : null };
    rememberFps(fps.value);
    done(await part.begin(wanted, ended.signal));
  }, [choices, place, hint, stream ? null : common].filter(Boolean), [cancel, button]);
  dialog.addEventListener("close", () => ended.abort());
  dialog.classList.add("panel");
  choose(kinds[0]);
}

function rememberedFps() {
  try { return localStorage.getItem(REMEMBERED) ?? FPS; } catch { return FPS; }
}

function rememberFps(value) {
  try { localStorage.setItem(REMEMBERED, value); } catch {}
}

const create = (body) => call("POST", `${API}/streams`, { json: body });

/** Makes a stream and runs `act` with it; a stream whose first act failed is taken away again. */
async function createAnd(stream, wanted, act) {
  const made = stream || (await create(wanted));
  try {
    await act(made);
  } catch (error) {
    if (!stream) await call("DELETE", streamPath(made.id)).catch(() => {}); // the first failure is what to tell
    throw error;
  }
  return made;
}

function filePart({ stream, file, name }) {
  const input = h("input", { type: "file", accept: "video/*,.mkv,.ts,.avi,.gif", required: !file });
  const chosen = () => input.files[0] || file;
  const own = h("input", { type: "checkbox", checked: true });
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Sent" }), sent = h("span", { class: "soft", role: "status" });
  const propose = () => { if (chosen() && !name.value) name.value = chosen().name.replace(/\.[^.]+$/, "").slice(0, 64); };
  input.addEventListener("change", propose);
  propose();
  const limits = call("GET", `${API}/info`).then((info) => info.limits, () => ({}));
  const show = (share) => { bar.value = share; say(sent, share < 1 ? `${Math.floor(share * 100)} % sent` : "Sent; the server begins to watch."); };
  return {
    fields: [h("label", {}, file ? `Video (${file.name}, or another one)` : "Video", input), h("label", { class: "check" }, own, "At the video's own speed"), h("div", { class: "progress" }, bar, sent)],
    hint: "Without its own speed the server watches as fast as it can, and drops no frame.",
    async begin(wanted, signal) {
      const { max_upload: most = Infinity } = await limits, { size } = chosen();
      if (size > most) throw new Failure(413, `The video has ${bytes(size)}; this server takes ${bytes(most)}.`); // before it is sent for nothing
      bar.hidden = false;
      return createAnd(stream, wanted, ({ id }) => upload(streamPath(id, `/video?realtime=${own.checked}`), chosen(), show, signal));
    },
  };
}

function cameraPart({ stream }) {
  const select = h("select", {}, h("option", { value: "" }, "The browser's choice"));
  listCameras().then((found) => select.append(...found.map(({ deviceId, label }, i) => h("option", { value: deviceId }, label || `Camera ${i + 1}`))));
  return {
    fields: [h("label", {}, "Camera", select)],
    hint: "Pictures go to this server while this page is open, never more than 2 ahead of what it has seen.",
    async begin(wanted) {
      const media = await openCamera(select.value);
      const stop = () => media.getTracks().forEach((track) => track.stop());
      try {
        const made = await createAnd(stream, wanted, async () => {});
        cameras.get(made.id)?.stop();
        new Camera(made.id, media, made.fps);
        return made;
      } catch (error) {
        stop();
        throw error;
      }
    },
  };
}

function addressPart({ stream }) {
  const url = h("input", { type: "text", inputmode: "url", required: true, placeholder: "rtsp://camera.local/1", autocomplete: "off", spellcheck: "false" });
  return {
    fields: [h("label", {}, "Address", url)],
    hint: "rtsp:// or http(s)://. Only what the server was started to allow is opened.",
    begin(wanted) {
      const source = { url: url.value.trim(), realtime: true };
      return stream ? call("PUT", streamPath(stream.id, "/source"), { json: source }) : create({ ...wanted, source });
    },
  };
}

function snapshotPart({ name }) {
  const select = h("select", { required: true }, h("option", { value: "" }, "…"));
  call("GET", `${API}/snapshots`).then(({ data }) => {
    select.options[0].textContent = data.length ? `${plural(data.length, "snapshot")}: choose one` : "There are no snapshots yet";
    select.append(...data.map((snapshot) => h("option", { value: snapshot.name }, snapshot.seconds === undefined ? snapshot.name : `${snapshot.name} (${clock(snapshot.seconds)})`)));
  }, (error) => (select.options[0].textContent = error.message));
  return {
    fields: [h("label", {}, "Snapshot", select)],
    hint: "The stream goes on exactly where the snapshot was taken; give it a source afterwards.",
    begin: (wanted) => create({ name: wanted.name || select.value, snapshot: select.value }),
  };
}

function emptyPart() {
  return {
    fields: [],
    hint: "For programs that push frames: POST /v1/streams/ID/frames, or its WebSocket.",
    label: "Make",
    begin: create,
  };
}
