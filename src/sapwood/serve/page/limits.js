/* What the server takes, said before anything is sent. */

import { count } from "./words.js";

// The server's own words count in these units.
const mebibytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(3)).toLocaleString("en")} MiB`;

/** Why a picture cannot be sent, or null. */
export function tooLarge(file, limits) {
  if (file.size <= limits.upload_bytes - 2 ** 10) return null; // its form takes a little too
  return `${file.name || "The picture"} has ${mebibytes(file.size)}; a picture may have ${mebibytes(limits.upload_bytes)} at most. Make it smaller.`;
}

/** The first entries, as many as one request may hold. */
export function fitting(entries, limits, most) {
  let bytes = 0;
  const end = entries.findIndex(({ file }, index) => {
    bytes += file.size + 2 ** 10;
    return index > 0 && (index >= Math.min(most, limits.pictures) || bytes > limits.upload_bytes);
  });
  return end < 0 ? entries.length : end;
}

/** Why a lesson cannot be sent, or null. */
export function tooMuch(files, limits) {
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (files.length > limits.teach_pictures) return `These are ${count(files.length, "picture")}; ${limits.teach_pictures.toLocaleString("en")} may be sent at a time. Leave some out, or teach them in parts.`;
  if (bytes > limits.teach_bytes - 2 ** 10) return `This has ${mebibytes(bytes)}; ${mebibytes(limits.teach_bytes)} may be sent at a time. Teach it in parts.`;
  return null;
}
