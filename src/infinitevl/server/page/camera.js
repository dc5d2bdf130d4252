// This device's camera as a stream: pictures over the stream's connection, never more than 2 without an answer.

import { Failure } from "./api.js";
import { take } from "./live.js";

const UNANSWERED = 2;
const LONGEST = 640; // pixels of a picture's longer side: the server makes it smaller anyway
const QUALITY = 0.85;
const FASTEST = 10; // frames a second where the stream takes every frame

export const cameras = new Map(); // by the stream's id

/** Asks for the camera. Throws Failure with what to do about it. */
export async function openCamera(device) {
  if (!navigator.mediaDevices?.getUserMedia)
    throw new Failure(0, "The browser gives the camera to pages of https:// and localhost only.");
  const video = device ? { deviceId: { exact: device } } : { facingMode: "environment" };
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { ...video, width: { ideal: LONGEST } }, audio: false });
  } catch (error) {
    throw new Failure(0, WHY[error.name] || `The camera cannot be used: ${error.message}`);
  }
}

const WHY = {
  NotAllowedError: "The camera is not allowed for this page; the browser's address bar is where to change that.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is in use by another program.",
};

/** The names of the cameras, as far as the browser tells them. */
export async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices.filter((device) => device.kind === "videoinput" && device.deviceId);
}

/** Sends what the camera sees until `stop()`. Counts: sent, seen, held (not sent, as 2 had no answer yet). */
export class Camera {
  sent = 0;
  seen = 0;
  held = 0;
  error = null; // why the newest frame was refused
  unanswered = 0;

  constructor(id, media, fps) {
    this.id = id;
    this.media = media;
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: media });
    this.video.play().catch(() => {}); // it plays as soon as it may
    this.canvas = document.createElement("canvas");
    this.live = take(id);
    this.live.addEventListener("frame", this.#answered);
    this.live.addEventListener("state", this.#changed);
    media.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    this.timer = setInterval(() => this.#shoot(), 1000 / (fps || FASTEST));
    cameras.set(id, this);
  }

  stop() {
    if (!cameras.delete(this.id)) return;
    clearInterval(this.timer);
    this.live.removeEventListener("frame", this.#answered);
    this.live.removeEventListener("state", this.#changed);
    this.live.release();
    for (const track of this.media.getTracks()) track.stop();
    this.video.srcObject = null;
  }

  #answered = ({ detail }) => {
    this.unanswered = Math.max(0, this.unanswered - 1);
    if (detail.result === "seen") this.seen += 1;
    this.error = detail.result === "refused" ? detail.message : null;
  };

  #changed = () => {
    this.unanswered = 0; // those of a lost connection are never answered
    if (this.live.state === "gone") this.stop();
  };

  #shoot() {
    if (this.live.state !== "open" || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    if (this.unanswered >= UNANSWERED) { this.held += 1; return; }
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    this.unanswered += 1;
    this.canvas.toBlob((picture) => this.#send(picture), "image/jpeg", QUALITY);
  }

  #send(picture) {
    try {
      this.live.send(picture);
      this.sent += 1;
    } catch { // lost since the picture was taken; the connection comes back, the picture does not
      this.unanswered = 0;
    }
  }
}
