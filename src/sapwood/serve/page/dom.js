/* Elements without markup: text is only ever text, so that no name of a class or file can become part of the page. */

export const find = (id) => document.getElementById(id);

/** A new element. Properties that start with "on" listen, those with "-" or "role" are attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for" || name === "list") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A bar that is filled to a share in 0..1; what it says is said in text beside it. */
export function bar(share) {
  const element = make("span", { className: "bar", "aria-hidden": "true" });
  element.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
  return element;
}

/** Text for screen readers alone. */
export const aside = (text) => make("span", { className: "aside" }, text);

export function show(element, visible = true) {
  element.hidden = !visible;
}

let numbers = 0;

/** An id that nothing else on the page has. */
export const unique = (stem) => `${stem}-${++numbers}`;
