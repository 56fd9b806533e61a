// Builds elements. Text is always set as text, so nothing from a catalogue can become markup.

export const $ = (id) => document.getElementById(id);

/** An element: h("li", {class: "x", onclick: f}, "text", child). */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Paragraphs of text in which `this` is code. */
export function prose(text) {
  return text.split(/\n\s*\n/).filter(Boolean).map((paragraph) => h("p", {}, ...inline(paragraph)));
}

/** A line of text in which `this` is code. */
export function inline(text) {
  return text.replace(/\s+/g, " ").split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** JSON with two spaces; short arrays of strings stay on one line. */
export function pretty(value) {
  return JSON.stringify(value, null, 2).replace(/\[\s+("[^"\n]*"(?:,\s+"[^"\n]*"){0,2})\s+\]/g, (_, inner) =>
    `[${inner.replace(/\s+/g, " ")}]`);
}
