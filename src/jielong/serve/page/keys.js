// Keys for giving feedback, where no field has the focus that takes text.
const THUMBS = { "+": "up", u: "up", "-": "down", d: "down" };
const PLACES = { 1: "left", 2: "right", 0: "tie", 9: "neither" };
const writes = (node) => node?.matches?.("input:not([type=checkbox]), textarea, select, [contenteditable]");

// act: { thumb(value), choose(place) → was there a choice, compare(), teach(), undo() }
export function keys(act) {
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || e.repeat || writes(e.target) || document.querySelector("dialog[open]")) return;
    const key = e.key.toLowerCase();
    if (THUMBS[key]) act.thumb(THUMBS[key]);
    else if (PLACES[key]) act.choose(PLACES[key]);
    else if (key === "c") act.compare();
    else if (key === "t") act.teach();
    else if (key === "z") act.undo();
    else return;
    e.preventDefault();
  });
}
