/* Choosing pictures: by dropping, by pasting, by a file dialog. */

import { make, unique } from "./dom.js";

const PICTURES = "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff,.jpg,.jpeg,.png,.webp,.gif,.bmp,.tif,.tiff";
export const ARCHIVES = ".zip,application/zip";

/** A field that pictures are dropped on; `chosen(files)` gets them. */
export function picker({ title, hint, button, tone = "primary", accept = PICTURES, multiple = true, chosen, extra = [], compact = false }) {
  const id = unique("files");
  const input = make("input", {
    type: "file",
    id,
    accept,
    multiple,
    className: "aside",
    "aria-describedby": `${id}-hint`,
    onchange: () => {
      if (input.files.length) chosen([...input.files]);
      input.value = ""; // so that the same file can be chosen again
    },
  });
  const zone = make(
    "div",
    { className: compact ? "drop compact" : "drop" },
    make("p", { className: "drop-title" }, title),
    make("p", { className: "muted", id: `${id}-hint` }, hint),
    make("div", { className: "row middle" }, input, make("label", { for: id, className: `button ${tone}` }, button), extra),
  );
  let depth = 0; // dragenter and dragleave come from every child
  const over = (inside) => zone.classList.toggle("over", inside);
  zone.addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    over(true);
  });
  zone.addEventListener("dragleave", () => {
    depth -= 1;
    over(depth > 0);
  });
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    over(false);
    const files = await dropped(event.dataTransfer);
    if (files.length) chosen(multiple ? files : files.slice(0, 1));
  });
  return zone;
}

/** Files among what was dropped; folders are looked into. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    for (const child of some) found.push(...(await inside(child)));
  }
  return found.filter((file) => !file.name.startsWith("."));
}

/** Pictures pasted anywhere on the page. */
export function onPaste(chosen) {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      chosen(files);
    }
  });
}

/** A small view of a picture; a form that browsers do not show gets its ending instead. */
export function thumbnail(file, alt = "") {
  const frame = make("span", { className: "thumb" });
  const image = make("img", { alt, decoding: "async" });
  const address = URL.createObjectURL(file);
  image.addEventListener("load", () => {
    frame.classList.toggle("small", image.naturalWidth <= 96);
    URL.revokeObjectURL(address);
  });
  image.addEventListener("error", () => {
    URL.revokeObjectURL(address);
    image.replaceWith(make("span", { className: "ending" }, (file.name.split(".").pop() || "?").slice(0, 5).toUpperCase()));
  });
  image.src = address;
  frame.append(image);
  return frame;
}
