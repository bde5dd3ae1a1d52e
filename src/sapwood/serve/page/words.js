/* Numbers as people read them. */

/** A fraction in per cent: few digits, none that pretend. */
export function percent(fraction, digits = null) {
  if (fraction === null || fraction === undefined) return "–";
  const value = 100 * fraction;
  const shown = digits ?? (value > 0 && value < 10 ? 1 : 0);
  if (value > 0 && value < 0.05) return "<\u00a00.1\u00a0%";
  if (value < 100 && value >= 99.5 && shown === 0) return ">\u00a099\u00a0%";
  return `${value.toFixed(shown).replace("-", "\u2212")}\u00a0%`;
}

/** Per cent without the sign, as in a table. */
export const cell = (fraction) => (100 * fraction).toFixed(1).replace("-", "\u2212");

export function size(bytes) {
  let value = bytes;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000 || unit === "GB") return unit === "B" ? `${value} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
  return "";
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "not recorded";
  if (seconds < 1) return `${Math.max(1, Math.round(1000 * seconds))} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${Math.round(seconds) % 60} s`;
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

export function moment(text) {
  const time = new Date(text);
  return Number.isNaN(time.getTime())
    ? text
    : time.toLocaleString("en-GB", { day: "numeric", month: "long", year: "numeric", hour: "2-digit", minute: "2-digit" });
}
