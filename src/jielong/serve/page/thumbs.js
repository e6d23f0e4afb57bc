// Under an answer: thumbs with reasons and a comment, the answer as it should have been, and what became of a comparison.
import { button, make, thumb } from "/page/dom.js";
import { say, settle, waits, word } from "/page/feedback.js";
import { textOf } from "/page/tokens.js";

const PAUSE = 800; // ms for choosing another reason before they are sent
export const REASONS = { // what is sent; its words are words.reasons
  up: ["correct", "polite", "short", "well_written"],
  down: ["wrong", "made_up", "too_long", "repeats_itself", "wrong_language", "impolite"],
};
const drafts = new Map(); // answer id → a lesson that is being written
const views = new Map(); // answer id → () => its view shows what is stored
let asking = "", teaching = ""; // the answer whose reasons, whose lesson is open

export function update() { for (const view of views.values()) view(); }
export function clear() { views.clear(); }
export function close() { asking = teaching = ""; update(); }

export function press(id, value) {
  const { want, lost } = word(id, "thumb");
  if (want?.value === value) {
    asking = "";
    say(id, "thumb", null);
  } else {
    asking = id;
    say(id, "thumb", { value, reasons: [], text: want?.text ?? lost?.text ?? "" });
  }
}
export function teach(id) {
  teaching = teaching === id ? "" : id;
  update();
}

// → { buttons, box }: for the row of tools, and for below it. `undoCompare` takes the turn back to its former answer.
export function judged(side, words, undoCompare) {
  const { id } = side;
  const thumbs = ["up", "down"].map((value) => {
    const node = button("", () => press(id, value), `icon ${value}`);
    node.append(thumb());
    return [value, named(node, words[value], value === "up" ? "+ u" : "- d")];
  });
  const pencil = named(button("✎ " + words.teach, () => teach(id), "teach"), words.teachHint, "t");
  const more = named(button("…", () => { asking = id; update(); }, "more"), words.why);
  const box = make("div", "judged"), reasons = make("div", "reasons"), lesson = make("div", "lesson");
  const own = make("p", "own"), compared = make("p", "own"), status = make("p", "status");
  status.setAttribute("role", "status");
  reasons.setAttribute("role", "group");
  reasons.setAttribute("aria-label", words.why);
  box.append(reasons, lesson, own, compared, status);

  function show() {
    const t = word(id, "thumb"), l = word(id, "teach"), c = side.compared ? word(side.compared.id, "compare") : {};
    for (const [value, node] of thumbs) node.setAttribute("aria-pressed", t.want?.value === value);
    more.hidden = !t.want || asking === id;
    pencil.setAttribute("aria-expanded", teaching === id);
    become(reasons, t.want && asking === id ? t.want.value : "", (value) => rowOf(id, value, words));
    for (const chip of reasons.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", t.want.reasons.includes(chip.dataset.reason));
    if (become(lesson, teaching === id ? "open" : "", () => lessonOf(side, words))) lesson.querySelector("textarea").focus();
    become(own, l.want?.text || "", (text) => [make("span", "", words.yours(text)), undoing(words, words.yours(text), () => say(id, "teach", null))]);
    const there = side.compared && (!side.compared.old || id.startsWith(side.compared.id)); // no other branch is shown
    become(compared, (there && c.want?.value) || "", (value) => {
      const text = words.compared[value === "tie" || value === "neither" ? value : "better"];
      return [make("span", "", text), undoing(words, text, undoCompare)];
    });
    const said = [t, l, c].map((w) => (waits(w) ? words.waiting : w.trouble ? words.refused[w.trouble.status] || w.trouble.message : ""));
    become(status, [...new Set(said.filter(Boolean))].join(" "), (text) => [text]);
    status.classList.toggle("trouble", [t, l, c].some((w) => w.trouble));
  }
  views.set(id, show);
  show();
  return { buttons: [...thumbs.map(([, node]) => node), more, pencil], box };
}

// Rebuild a node only where what it shows has changed, so that nobody is interrupted while writing. → is it new?
function become(node, what, children) {
  if (node.what === what) return false;
  node.what = what;
  node.hidden = !what;
  node.replaceChildren(...(what ? children(what) : []));
  return !!what;
}
export function named(node, name, keys = "") {
  node.setAttribute("aria-label", name);
  node.title = keys ? `${name} (${keys})` : name;
  return node;
}
function undoing(words, what, action) {
  const node = button(words.undo, action, "undo");
  node.setAttribute("aria-label", `${words.undo}: ${what}`);
  return node;
}

function rowOf(id, value, words) {
  const now = () => word(id, "thumb").want;
  const chips = REASONS[value].map((reason) => {
    const chip = button(words.reasons[reason], () => {
      const { reasons } = now();
      say(id, "thumb", { ...now(), reasons: reasons.includes(reason) ? reasons.filter((r) => r !== reason) : [...reasons, reason] }, PAUSE);
    }, "chip");
    chip.dataset.reason = reason;
    return chip;
  });
  const comment = make("input", "comment");
  Object.assign(comment, { type: "text", maxLength: 2000, placeholder: words.comment, value: now().text, autocomplete: "off" });
  comment.setAttribute("aria-label", words.comment);
  const send = () => { const text = comment.value.trim(); if (now() && text !== now().text) say(id, "thumb", { ...now(), text }); };
  comment.onchange = send;
  comment.onkeydown = (e) => {
    if ((e.key !== "Enter" && e.key !== "Escape") || e.isComposing) return;
    if (e.key === "Enter") send();
    close();
  };
  const done = button("×", () => { send(); close(); }, "close");
  done.setAttribute("aria-label", words.close);
  return [...chips, comment, done];
}

function lessonOf(side, words) {
  const { id } = side, { want, lost } = word(id, "teach");
  const field = make("textarea");
  Object.assign(field, { rows: 3, maxLength: 20_000, value: drafts.get(id) ?? want?.text ?? lost?.text ?? textOf(side) });
  field.setAttribute("aria-label", words.teachHint);
  const save = button(words.save, () => {
    if (!field.value.trim()) return field.focus();
    drafts.delete(id);
    teaching = "";
    say(id, "teach", { text: field.value.trim() });
  }, "main");
  const leave = button(words.cancel, () => { drafts.delete(id); settle(id, "teach"); close(); });
  field.oninput = () => drafts.set(id, field.value);
  field.onkeydown = (e) => {
    if (e.isComposing) return;
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) save.click();
    else if (e.key === "Escape") leave.click();
  };
  const row = make("div", "row");
  row.append(save, leave);
  return [field, row];
}
