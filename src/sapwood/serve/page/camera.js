/* Pictures from a camera, where there is one. */

import { find } from "./dom.js";
import { count } from "./words.js";

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Opens the camera until the reader is done; `taken(file)` gets every picture. */
export async function openCamera(taken) {
  const dialog = find("camera-dialog");
  const view = find("camera-view");
  const status = find("camera-status");
  const shot = find("camera-shot");
  let number = 0;
  let stream = null;
  const shoot = async () => {
    const canvas = new OffscreenCanvas(view.videoWidth, view.videoHeight);
    canvas.getContext("2d").drawImage(view, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
    number += 1;
    taken(new File([blob], `camera-${Date.now()}.jpg`, { type: "image/jpeg" }));
    status.textContent = `${count(number, "picture")} taken`;
  };
  shot.disabled = true;
  status.textContent = "Waiting for the camera …";
  dialog.showModal();
  const closed = new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  shot.addEventListener("click", shoot);
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    view.srcObject = stream;
    if (dialog.open) await view.play();
    shot.disabled = false;
    status.textContent = "Take several, from different sides and at different distances.";
    shot.focus();
  } catch (error) {
    if (dialog.open) status.textContent = words(error);
  }
  await closed;
  shot.removeEventListener("click", shoot);
  view.srcObject = null;
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function words(error) {
  if (error.name === "NotAllowedError") return "The browser may not use the camera. Allow it for this page, then try again.";
  if (error.name === "NotFoundError") return "No camera was found.";
  return "The camera cannot be used; perhaps another program has it.";
}
