/* Masks: an overlay of the picture whose opacity and classes the reader chooses. */

import { aside, bar, make, unique } from "./dom.js";
import { percent } from "./words.js";

const BACKGROUND = "background";
const LONGEST = 1600; // pixels of a drawing's longer side

/** The picture with its mask, and a legend of the classes in it. */
export async function maskAnswer(file, prediction, state) {
  const [picture, mask] = await Promise.all([bitmap(file), bitmap(pngBlob(prediction.mask))]);
  const [height, width] = prediction.size;
  const scale = Math.min(1, LONGEST / Math.max(height, width));
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(width * scale)),
    height: Math.max(1, Math.round(height * scale)),
    role: "img",
  });
  const shares = Object.entries(prediction.classes)
    .filter(([name, share]) => name !== BACKGROUND && share > 0)
    .sort((one, other) => other[1] - one[1]);
  canvas.setAttribute("aria-label", described(file.name, shares));
  const layers = split(mask, shares.map(([name]) => name), state);
  const hidden = new Set();
  const drawing = { opacity: 0.5, alone: null };
  const paint = () => {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    for (const [name, layer] of layers) {
      if (hidden.has(name)) continue;
      context.globalAlpha = drawing.alone === null || drawing.alone === name ? drawing.opacity : drawing.opacity * 0.2;
      context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    }
    context.globalAlpha = 1;
  };
  paint();
  const legend = make(
    "ul",
    { className: "legend" },
    shares.map(([name, share]) =>
      entry(name, share, state, {
        toggle: (shown) => {
          if (shown) hidden.delete(name);
          else hidden.add(name);
          paint();
        },
        alone: (inside) => {
          drawing.alone = inside ? name : null;
          paint();
        },
      }),
    ),
  );
  return make(
    "div",
    { className: "masked" },
    make("div", { className: "stage" }, canvas),
    make(
      "div",
      { className: "key" },
      opacityControl(drawing.opacity, (value) => {
        drawing.opacity = value;
        paint();
      }),
      shares.length ? legend : make("p", {}, "Nothing in it is like anything taught."),
    ),
  );
}

/** A slider from the bare picture to the bare mask. */
function opacityControl(value, changed) {
  const id = unique("opacity");
  const slider = make("input", { type: "range", id, min: 0, max: 100, step: 5, value: String(Math.round(100 * value)) });
  slider.addEventListener("input", () => changed(Number(slider.value) / 100));
  return make("div", { className: "opacity" }, make("label", { for: id }, "Opacity of the mask"), slider);
}

function entry(name, share, state, on) {
  const box = make("input", { type: "checkbox", checked: true, onchange: () => on.toggle(box.checked) });
  const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
  swatch.style.backgroundColor = `rgb(${colour(name, state).join(" ")})`;
  return make(
    "li",
    { onpointerenter: () => on.alone(true), onpointerleave: () => on.alone(false) },
    make(
      "label",
      {},
      box,
      swatch,
      make("span", { className: "name", title: name }, name),
      make("span", { className: "number" }, aside(", "), percent(share)),
    ),
    bar(share),
  );
}

const colour = (name, state) => state.palette[state.classes.indexOf(name)] ?? [128, 128, 128];

/** One drawing for each class, from the colours of the mask. */
function split(mask, names, state) {
  const source = new OffscreenCanvas(mask.width, mask.height).getContext("2d", { willReadFrequently: true });
  source.drawImage(mask, 0, 0);
  const pixels = source.getImageData(0, 0, mask.width, mask.height).data;
  const packed = new Uint32Array(mask.width * mask.height);
  for (let index = 0; index < packed.length; index++) {
    packed[index] = (pixels[4 * index] << 16) | (pixels[4 * index + 1] << 8) | pixels[4 * index + 2];
  }
  return names.map((name) => {
    const [red, green, blue] = colour(name, state);
    const wanted = (red << 16) | (green << 8) | blue;
    const layer = new OffscreenCanvas(mask.width, mask.height);
    const context = layer.getContext("2d");
    const image = context.createImageData(mask.width, mask.height);
    for (let index = 0; index < packed.length; index++) {
      if (packed[index] === wanted) image.data.set([red, green, blue, 255], 4 * index);
    }
    context.putImageData(image, 0, 0);
    return [name, layer];
  });
}

function described(name, shares) {
  const parts = shares.slice(0, 8).map(([label, share]) => `${label} ${percent(share)}`);
  return `${name || "The picture"} with its mask: ${parts.length ? parts.join(", ") : "nothing that was taught"}`;
}

function pngBlob(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

async function bitmap(blob) {
  try {
    // Colours as they stand in the file: those of a mask mean classes.
    return await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    return null; // a form that browsers do not show, TIFF for instance: the mask stands alone
  }
}
