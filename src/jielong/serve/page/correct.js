// "Correct this answer": the wrong words and the subject are marked in an answer, the server edits the model and examines it, and what
// it says is shown: the figures before and after, or the refusal with two things to try. Every correction can be undone here.
import { call } from "/page/api.js";
import { CORRECT } from "/page/correct-words.js";
import { button, make } from "/page/dom.js";

const FIELDS = ["prompt", "subject", "old", "to"];
const PLAIN = ["bits_per_byte", "entropy"]; // no shares
let page = null, box = null, parts = {}, busy = false;
let last = null; // () => what the dialog says now, so that it can be said in the other language

const words = () => CORRECT[page.lang];
const shown = (name, value) => (PLAIN.includes(name) ? value.toFixed(4) : (value * 100).toFixed(1) + " %");

// page: { lang, refresh() }
export function beginCorrect(given) { page = given; }

export function openCorrect(text) {
  box = box || build();
  if (!busy) { // else what is being done stays in sight
    for (const name of FIELDS) parts[name].value = "";
    parts.answer.textContent = text;
    tell(null);
  }
  drawCorrect();
  list();
  box.showModal();
}

function build() {
  const dialog = make("dialog");
  dialog.id = "correct";
  dialog.setAttribute("aria-labelledby", "correct-title");
  const head = make("header"), form = make("form"), marks = make("div", "row"), send = make("div", "row"), title = make("h2");
  title.id = "correct-title";
  const label = (name, field) => {
    const node = make("label");
    parts[name + "Name"] = make("span");
    node.append(parts[name + "Name"], field);
    return node;
  };
  parts = { title, about: make("p", "soft"), answerName: make("p", "soft"), answer: make("blockquote"), held: make("h3"), list: make("ul") };
  for (const kind of ["old", "subject"]) {
    const node = parts[kind + "Mark"] = button("", () => mark(kind));
    node.onpointerdown = (e) => e.preventDefault(); // the selection stays
    marks.append(node);
  }
  for (const name of FIELDS) {
    const field = parts[name] = make("input");
    Object.assign(field, { type: "text", maxLength: 2000, autocomplete: "off", id: "correct-" + name });
    form.append(label(name, field));
  }
  parts.translate = make("input");
  Object.assign(parts.translate, { type: "checkbox", checked: true });
  const both = make("label", "check");
  both.append(parts.translate, parts.translateName = make("span"));
  parts.start = make("button", "main");
  parts.start.type = "submit";
  send.append(parts.start);
  form.append(both, send);
  form.onsubmit = (e) => { e.preventDefault(); correct({}); };
  for (const [name, cls, role] of [["trouble", "trouble", "alert"], ["status", "", "status"]]) {
    parts[name] = make("div", cls);
    parts[name].setAttribute("role", role);
  }
  const close = button("×", () => dialog.close());
  close.id = "correct-close";
  parts.held.hidden = true; // until the list is there
  head.append(title, close);
  dialog.append(head, parts.about, parts.answerName, parts.answer, marks, form, parts.trouble, parts.status, parts.held, parts.list);
  document.body.append(dialog);
  return dialog;
}

export function drawCorrect() {
  if (!box) return;
  const w = words();
  parts.title.textContent = w.title; parts.about.textContent = w.about; parts.answerName.textContent = w.answer;
  parts.oldMark.textContent = w.mark.old; parts.subjectMark.textContent = w.mark.subject;
  for (const name of FIELDS) parts[name + "Name"].textContent = w.fields[name];
  parts.translateName.textContent = w.translate; parts.start.textContent = w.start; parts.held.textContent = w.held;
  parts.start.disabled = busy;
  say();
}

function mark(kind) {
  const chosen = getSelection(), node = parts.answer.firstChild;
  const inside = node && chosen.anchorNode === node && chosen.focusNode === node;
  const [from, to] = inside ? [chosen.anchorOffset, chosen.focusOffset].sort((a, b) => a - b) : [0, 0];
  const text = node ? node.data : "", marked = text.slice(from, to).trim();
  if (!marked) return tell(() => ({ trouble: [words().select] }));
  tell(null);
  parts[kind].value = marked;
  if (kind === "subject") return parts.to.focus();
  const before = text.slice(0, from), ends = [...before.matchAll(/[.!?]\s+|[。！？\n]\s*/g)].pop();
  parts.prompt.value = before.slice(ends ? ends.index + ends[0].length : 0).trim();
  if (!parts.prompt.value) tell(() => ({ trouble: [words().begins] }));
}

// settings: what is asked for beside the fact (a method, a λ)
async function correct(settings) {
  if (busy) return;
  const body = Object.fromEntries(FIELDS.map((name) => [name, parts[name].value.trim()]));
  working(true);
  try {
    const found = await (await call("/v1/edit", { ...body, translate: parts.translate.checked, ...settings })).json();
    tell(() => ({ status: [make("p", "", words().done(found.model)), ...facts(found), table(found), undoing(found.id)] }));
    parts.status.scrollIntoView({ block: "nearest" });
    await page.refresh();
  } catch (problem) {
    tell(() => ({ trouble: refusal(problem, settings) }));
  } finally {
    working(false);
    list();
  }
}
async function undo(id) {
  if (busy) return;
  working(true);
  try {
    const { model } = await (await call("/v1/undo", { id })).json();
    tell(() => ({ status: [words().undone(model)] }));
    await page.refresh();
  } catch (problem) {
    tell(() => ({ trouble: refusal(problem, {}) }));
  } finally {
    working(false);
    list();
  }
}
function working(now) {
  busy = now;
  if (now) tell(() => ({ status: [words().working] }));
  box.classList.toggle("working", now);
  for (const node of box.querySelectorAll("button:not(#correct-close)")) node.disabled = now;
}
function tell(what) { last = what; say(); }
function say() {
  const { trouble = [], status = [] } = last ? last() : {};
  parts.trouble.replaceChildren(...trouble);
  parts.status.replaceChildren(...status);
}

function facts(found) {
  const { fact } = found;
  if (!fact) return [];
  const said = [fact, ...(fact.also || [])].map((f) => make("p", "soft", words().said(f)));
  return fact.also?.length ? said : [...said, make("p", "", words().alone)];
}
function table({ before, after }) {
  const w = words(), node = make("table"), row = (tag, cells) => { const r = make("tr"); r.append(...cells.map((c) => make(tag, "", c))); return r; };
  node.append(row("th", w.columns));
  for (const name of Object.keys(w.figures)) {
    if (name in after) node.append(row("td", [w.figures[name], name in before ? shown(name, before[name]) : "", shown(name, after[name])]));
  }
  return node;
}
function undoing(id) {
  const node = button(words().undo, () => undo(id), "undo");
  node.disabled = busy;
  return node;
}
// The server's answer in the page's language: a list of nodes.
function refusal(problem, settings) {
  const w = words();
  if (problem instanceof TypeError) return [w.lost];
  if (problem.code !== "refused") {
    const said = w.mistakes[problem.code]?.(problem.values || {}) || w.other(problem.message);
    return problem.code === "unknown_subject" ? [said, " ", trying(w.anyway, { ...settings, new_subject: true })] : [said];
  }
  const { broken, next } = problem.values, rows = make("ul"), tries = make("div", "row");
  rows.append(...broken.map((b) => {
    const form = (v) => (b.percent ? (v * 100).toFixed(1) + " %" : v.toFixed(4));
    return make("li", "", w.broken(w.figures[b.name] || b.name, b.now === null ? "?" : form(b.now), b.before === null ? "" : form(b.before), form(b.bound), b.least));
  }));
  const spares = !["efficacy", "earlier"].includes(broken[0].name);
  tries.append(...next.map((step) => trying(step.method ? w.steps.method(step.method) : spares ? w.steps.spare : w.steps.insist, { ...settings, ...step })));
  return [make("p", "", w.refused), rows, make("p", "", w.next), tries];
}
function trying(name, settings) {
  const node = button(name, () => correct(settings), "step");
  node.disabled = busy;
  return node;
}

async function list() {
  let found = { changes: [], in_use: [] };
  try { found = await (await call("/v1/changes")).json(); } catch (problem) { return tell(() => ({ trouble: refusal(problem, {}) })); }
  const edits = new Map(found.changes.flatMap((entry) => (entry.edits || []).map((e) => [e.id, e])));
  const rows = found.in_use.filter((id) => edits.has(id)).map((id) => {
    const row = make("li"), edit = edits.get(id);
    row.append(make("span", "", words().said(edit)), undoing(id));
    row.lastChild.setAttribute("aria-label", `${words().undo}: ${words().said(edit)}`);
    return row;
  });
  parts.held.hidden = !rows.length;
  parts.list.replaceChildren(...rows);
}
