// Small helpers for the page's nodes. Text enters as textContent only, so it never becomes markup.
export const $ = (id) => document.getElementById(id);

export function make(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}
export function button(text, action, cls) {
  const node = make("button", cls, text);
  node.type = "button";
  node.onclick = action;
  return node;
}
export function drawn(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
// A thumb, drawn here because many a small system has no font with 👍; the other one is the same, turned over.
export function thumb() {
  const icon = drawn("svg", { viewBox: "0 0 24 24", class: "thumb", "aria-hidden": "true" });
  icon.append(drawn("path", { d: "M3 11h3.5v9.5H3z" }), drawn("path", { d: "M9.5 11.2 13 3.6c1.6 0 2.7 1.1 2.5 2.8L15 10h4.6c1.2 0 2 1 1.8 2.2l-1.1 6.6c-.2 1-1 1.7-2 1.7H9.5z" }));
  return icon;
}
