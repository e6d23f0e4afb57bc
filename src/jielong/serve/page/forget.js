// "Forget something": look (what says it, what would be done), ask, follow the work, and read the ledger (/v1/forget, /v1/forgotten).
// What is to be forgotten stands in the form only until it is sent; it is not kept in the browser. An owner leaves in the same way.
import { call, events } from "/page/api.js";
import { $, button, make } from "/page/dom.js";
import { placed, readFiles } from "/page/forget-files.js";
import { FORGET } from "/page/forget-words.js";
import { textOf } from "/page/tokens.js";

const LISTS = ["examples", "retain", "others"]; // of files
const RANK = 8; // of an adapter
const PUSH = ["lr", "epochs"]; // how hard a method pushes; its own choice where empty
let page = null, box = null, parts = {};
let found = null; // what the last look found, while the form still says the same
let asked = {}, places = {}; // what it looked for; where in which file its rows stand
let seen = { state: "idle", events: [], unfinished: false };
let trouble = () => [], note = () => []; // said anew in the other language
let entries = [], owners = [], verdict = () => [], busy = "", following = false;
let spoken = []; // conversations of this page that say it

const words = () => FORGET[page.state.lang];
const fetched = async (path, body) => (await call(path, body)).json();
const last = (name) => seen.events.filter((e) => e.event === name).at(-1);

// page: { state, words, refresh(), remove(talks) }; run: what GET /v1/run told
export function beginForget(given, run) {
  page = given;
  $("forget-open").hidden = run.forget !== true;
  if (run.forget !== true) return;
  $("forget-open").onclick = open;
  drawForget();
  look().catch(() => {});
}
function open() {
  box = box || build();
  document.body.classList.remove("open");
  [trouble, note, verdict] = [() => [], () => [], () => []];
  box.showModal();
  drawForget();
  look().catch(complain);
  ledger();
}
function build() {
  const dialog = make("dialog"), head = make("header"), close = button("×", () => dialog.close()), marks = make("div", "row"), go = make("div", "row"), work = make("div", "row");
  dialog.id = "forget";
  dialog.setAttribute("aria-labelledby", "forget-title");
  close.id = "forget-close";
  const node = (name, tag, cls, id) => { const made = parts[name] = make(tag, cls); if (id) made.id = id; return made; };
  const label = (name, field) => { const made = parts[name + "Row"] = make("label"); made.append(node(name + "Name", "span"), field); return made; };
  head.append(node("title", "h2", "", "forget-title"), close);
  node("form", "form").append(label("kind", node("kind", "select", "", "forget-kind")), label("text", node("text", "textarea", "", "forget-text")), label("owner", node("owner", "select", "", "forget-owner")), ...LISTS.map((list) => label(list, node(list, "input", "", `forget-${list}`))), marks);
  Object.assign(parts.text, { rows: 3, maxLength: 100_000, autocomplete: "off", spellcheck: false });
  parts.kind.append(...["name", "grep", "record", "examples", "owner"].map((kind) => { const made = make("option"); made.value = kind; return made; }));
  for (const list of LISTS) Object.assign(parts[list], { type: "file", accept: ".jsonl,.json,.txt" });
  marks.append(node("look", "button", "main", "forget-look"));
  parts.look.type = "submit";
  parts.form.onsubmit = (e) => { e.preventDefault(); find(); };
  for (const name of ["kind", "text", "owner", ...LISTS]) parts[name].oninput = () => { found = null; drawForget(); };
  node("found", "div", "", "forget-found");
  node("ask", "form").append(label("method", node("method", "select", "", "forget-method")), node("weaker", "p", "soft"), node("adapterRow", "label", "check"), ...PUSH.map((name) => label(name, node(name, "input", "", `forget-${name}`))), label("who", node("who", "input", "", "forget-who")), label("why", node("why", "input", "", "forget-why")), node("sureRow", "label", "check"), go);
  for (const name of PUSH) Object.assign(parts[name], { type: "number", min: 0, max: name === "lr" ? 1 : 1000, step: "any" });
  for (const name of ["who", "why"]) Object.assign(parts[name], { type: "text", maxLength: 500, autocomplete: "off" });
  parts.sureRow.append(node("sure", "input", "", "forget-sure"), node("sureName", "span"));
  parts.adapterRow.append(node("adapter", "input", "", "forget-adapter"), node("adapterName", "span"));
  parts.sure.type = parts.adapter.type = "checkbox";
  parts.sure.onchange = parts.method.onchange = () => drawForget();
  parts.ask.onsubmit = (e) => { e.preventDefault(); ask(); };
  go.append(node("start", "button", "main", "forget-start"));
  parts.start.type = "submit";
  node("unfinished", "div", "trouble");
  node("trouble", "div", "trouble", "forget-trouble").setAttribute("role", "alert");
  node("status", "div", "", "forget-status").setAttribute("role", "status");
  work.append(parts.stop = button("", () => act(() => call("/v1/forget/stop", {}))), node("going", "span", "soft"));
  parts.stop.id = "forget-stop";
  node("verdict", "div", "", "forget-verdict").setAttribute("role", "status");
  parts.verify = button("", verify);
  parts.verify.id = "forget-verify";
  dialog.append(head, node("about", "p", "soft"), parts.unfinished, parts.form, parts.trouble, parts.found, parts.ask, node("stages", "ol"), node("bar", "progress"), work, parts.status, node("held", "h3"), node("entries", "div", "", "forget-entries"), parts.verify, parts.verdict);
  dialog.onclose = () => { clear(); found = null; };
  document.body.append(dialog);
  return dialog;
}

export function drawForget() {
  if (!page) return;
  const w = words(), running = seen.state === "running", step = running && stepNow();
  $("forget-open").textContent = w.open + (running ? ` · ${step ? `${step.step}/${step.of}` : "…"}` : "");
  if (!box) return;
  for (const name of ["title", "about", "start", "stop"]) parts[name].textContent = w[name];
  $("forget-close").setAttribute("aria-label", w.close);
  for (const name of ["kind", "text", "method", "who", "why", "sure", "owner", "adapter", ...PUSH, ...LISTS]) parts[name + "Name"].textContent = w[name];
  drawKind(w);
  parts.look.textContent = busy === "look" ? w.looking : w.look;
  parts.verify.textContent = busy === "verify" ? w.verifying : w.verify;
  for (const name of ["look", "verify", "stop"]) parts[name].disabled = !!busy;
  parts.form.hidden = running || seen.unfinished;
  parts.unfinished.replaceChildren(...(seen.unfinished ? [make("p", "", w.unfinished), button(w.finish, finish, "main")] : []));
  drawFound(w, running);
  drawStages(w, running, step);
  parts.trouble.replaceChildren(...trouble());
  parts.status.replaceChildren(...note());
  parts.held.textContent = w.ledger;
  parts.verdict.replaceChildren(...verdict());
  drawEntries(w);
}
function drawKind(w) {
  for (const option of parts.kind.options) {
    option.textContent = w.kinds[option.value];
    option.hidden = option.disabled = option.value === "owner" && !owners.length;
  }
  if (parts.kind.selectedOptions[0].disabled) parts.kind.value = "name"; // the last owner left
  const kind = parts.kind.value, chosen = parts.owner.value;
  parts.textRow.hidden = kind === "examples" || kind === "owner";
  parts.ownerRow.hidden = kind !== "owner";
  for (const list of LISTS) parts[list + "Row"].hidden = kind !== "examples";
  parts.owner.replaceChildren(...owners.map((o) => {
    const option = make("option", "", w.taught(o));
    option.value = o.name; option.selected = o.name === chosen;
    return option;
  }));
}
function drawFound(w, running) {
  const shown = found && !running;
  parts.found.hidden = !shown;
  parts.ask.hidden = !shown || !found.plan;
  if (!shown) return;
  const table = make("table"), nodes = found.imported && !found.examples && !asked.owner ? [make("p", "soft", w.imported)] : [];
  const row = (tag, cells) => { const made = make("tr"); made.append(...cells.map((c) => { const cell = make(tag); cell.append(c); return cell; })); return made; };
  if (found.count) {
    const says = (r) => { const made = make("span"); made.append(r.before, make("mark", "", r.said), r.after); return made; };
    table.append(row("th", w.head), ...found.records.map((r) => row("td", [w.record[r.kind], w.seen(r), says(r)])));
    nodes.push(make("p", "", w.count(found.count, found.counts)), table);
    if (found.count > found.records.length) nodes.push(make("p", "soft", w.more(found.count - found.records.length)));
  }
  if (found.unread.length) nodes.push(make("p", "soft", w.unread(found.unread)));
  if (found.refused) nodes.push(make("p", "trouble", refusal(found.refused)));
  else {
    const list = make("ul");
    if (found.examples) list.append(make("li", "", w.suppresses(found.examples)));
    list.append(...found.artifacts.map((c) => make("li", "", `${c.name}: ${w.fate[c.fate] || c.fate} (${[w.said(c.why), c.steps && w.cost(c)].filter(Boolean).join(", ")})`)));
    if (found.deleted.length) list.append(make("li", "", w.deleted(found.deleted)));
    nodes.push(make("h3", "", w.becomes), list);
    drawMethods(w);
  }
  parts.found.replaceChildren(...nodes);
}
function drawMethods(w) {
  const chosen = parts.method.value || "replay";
  parts.methodRow.hidden = !!asked.owner;
  parts.method.replaceChildren(...Object.entries(w.methods).filter(([m]) => (m === "replay" ? !found.examples : found.approximate)).map(([m, text]) => {
    const option = make("option", "", text);
    option.value = m; option.selected = m === chosen;
    return option;
  }));
  parts.weaker.textContent = parts.method.value === "replay" ? "" : w.weaker;
  for (const name of ["adapter", ...PUSH]) parts[name + "Row"].hidden = parts.method.value === "replay";
  parts.start.disabled = !parts.sure.checked || !!busy;
}
function stepNow() { // of the stage that is at work
  const at = seen.events.findLastIndex((e) => e.event === "stage");
  return seen.events.slice(at + 1).filter((e) => e.event === "step").at(-1);
}
function drawStages(w, running, step) {
  const stages = seen.events.filter((e) => e.event === "stage"), failed = last("error") || (seen.state === "failed" && (seen.gone ||= { code: "ended" }));
  parts.stages.hidden = !stages.length || seen.state === "done";
  parts.stages.replaceChildren(...stages.map((e, i) => {
    const now = i === stages.length - 1 && seen.state !== "done";
    const node = make("li", now ? (failed ? "broken" : "now") : "past", w.stages[e.stage] || e.stage);
    if (now) node.setAttribute("aria-current", "step");
    if (now && step) node.append(` ${step.step}/${step.of}`);
    return node;
  }));
  parts.bar.hidden = !running;
  if (step) Object.assign(parts.bar, { max: step.of, value: step.step }); else parts.bar.removeAttribute("value");
  parts.stop.hidden = parts.going.hidden = !running;
  parts.going.textContent = w.running;
  if (!running && failed && !busy && failed !== seen.told) { // once, in either language
    seen.told = failed;
    trouble = () => [refusal(failed)];
  }
}
function drawEntries(w) {
  const shown = new Map([...parts.entries.querySelectorAll("details")].map((n) => [n.dataset.number, n.open]));
  parts.entries.replaceChildren(...(entries.length ? entries.toReversed().map((e) => {
    const node = make("details"), r = e.records, count = r.owners ?? r.texts ?? r.documents + r.held_out + r.conversations + r.feedback;
    node.dataset.number = e.number;
    node.open = shown.get(String(e.number)) ?? last("result")?.number === e.number; // the newest is open at first
    const made = make("ul"), limits = make("ul");
    made.append(...Object.entries(e.artifacts).filter(([, t]) => t.fate && t.fate !== "kept").map(([name, t]) => make("li", "", w.made(name, w.fate[t.fate] || t.fate, t))));
    limits.append(...e.limits.map((text) => make("li", "", w.said(text))));
    const nodes = [make("p", "soft", w.by(e.who, e.why)), made];
    if (e.stale.length) nodes.push(make("p", "", w.taken(e.stale)));
    if (e.still_found.length) nodes.push(make("p", "trouble", w.left(e.still_found)));
    if (e.tokenizer?.concerned) nodes.push(make("p", "", w.vocabulary(e.tokenizer)));
    nodes.push(make("p", "", w.limits), limits, make("p", "soft", `${w.hash}: ${e.hash.slice(0, 16)}…`), button(w.certificate, () => act(() => certificate(e.number)), "certificate"));
    node.append(make("summary", "", w.entry(e, count, e.time.slice(0, 10))), ...nodes);
    return node;
  }) : [make("p", "soft", w.none)]));
}

// The server's refusal in the page's language.
function refusal(told) {
  const problem = placed(told, places);
  if (problem instanceof TypeError) return page.words.lost;
  if (problem.status === 409) return words().already;
  if ([413, 429, 503].includes(problem.status)) return page.words.complains(problem);
  return words().mistakes[problem.code]?.(problem.values || {}, problem.message) || words().other(problem.message);
}
function complain(problem) {
  trouble = () => [refusal(problem)];
  if (problem.status === 409) look().catch(() => {});
  drawForget();
}
async function act(work, name = "other") { // a press: its request, and its mistake in place
  if (busy) return;
  [busy, trouble, note] = [name, () => [], () => []];
  drawForget();
  try { await work(); } catch (problem) { complain(problem); }
  busy = "";
  drawForget();
}
async function request() {
  const kind = parts.kind.value, text = parts.text.value;
  places = {};
  if (kind === "owner") return { owner: parts.owner.value };
  if (kind === "examples") {
    const read = await readFiles(Object.fromEntries(LISTS.map((list) => [list, parts[list].files[0]])));
    places = read.places;
    return read.rows;
  }
  return { [kind]: kind === "grep" ? [text].filter((t) => t.trim()) : text.split("\n").map((t) => t.trim()).filter(Boolean) };
}
const find = () => act(async () => {
  found = null;
  parts.sure.checked = false;
  asked = await request();
  if (parts.kind.value === "examples" && !asked.examples) throw Object.assign(new Error("no file"), { code: "no_file" });
  found = await fetched("/v1/forget/find", asked);
  parts.adapter.checked = found.imported; // all weights of somebody else's model are many
}, "look");
const ask = () => act(async () => {
  const exact = !!asked.owner || parts.method.value === "replay", method = exact ? "replay" : parts.method.value;
  const push = exact ? [] : PUSH.filter((name) => parts[name].value).map((name) => [name, Number(parts[name].value)]);
  const body = { ...asked, plan: found.plan, method, lora_rank: !exact && parts.adapter.checked ? RANK : 0, ...Object.fromEntries(push), who: parts.who.value.trim(), why: parts.why.value.trim() };
  try { await call("/v1/forget", body); } catch (problem) { if (problem.code === "changed") found = null; throw problem; }
  spoken = exact ? saying(asked) : [];
  clear();
  found = null;
  seen = { state: "running", events: [], unfinished: false };
  follow();
});
function clear() { // what is to be forgotten leaves the form
  for (const name of ["text", "who", "why", ...LISTS]) parts[name].value = "";
  [asked, places] = [{}, {}];
}
const finish = () => act(async () => {
  await call("/v1/forget/finish", {});
  seen = { state: "running", events: [], unfinished: false };
  follow();
});
const verify = () => act(async () => {
  const told = await fetched("/v1/audit", {});
  verdict = () => (told.holds ? [make("p", "holds", words().holds(told.entries)), ...told.notes.map((n) => make("p", "soft", words().other(n)))] : [make("p", "trouble", words().fails), ...told.problems.map((p) => make("p", "trouble", p))]);
}, "verify");
async function certificate(number) {
  const link = make("a"), whole = await (await call(`/v1/forgotten/${number}`)).blob();
  link.href = URL.createObjectURL(whole);
  link.download = `forgotten-${number}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
// This page's conversations in which it stands, as they lie in the browser.
function saying({ name = [], grep = [] }) {
  const sides = (turn) => [turn, turn.rival, ...(turn.branches || []), ...(turn.rival?.branches || []), ...(turn.duel?.sides || [])].filter((s) => s?.tokens);
  return page.state.talks.filter((talk) => {
    const text = [talk.name, ...talk.turns.flatMap((t) => (t.role === "user" ? [t.content] : sides(t).map(textOf)))].join("\n"), low = text.toLowerCase();
    return grep.some((t) => text.includes(t)) || name.some((n) => low.includes(n.toLowerCase()));
  });
}
async function ledger() {
  try { [entries, owners] = [(await fetched("/v1/forgotten")).entries, (await fetched("/v1/owners")).owners]; } catch (problem) { return complain(problem); }
  drawForget();
}
async function look() {
  seen = await fetched("/v1/forget");
  drawForget();
  if (seen.state === "running") follow();
}
async function follow() { // until it ends; a broken line is taken up again
  if (following) return;
  following = true;
  for (;;) {
    try {
      const told = [];
      for await (const event of events(await call("/v1/forget/events"))) {
        told.push(event);
        seen = { state: "running", events: told, unfinished: false };
        drawForget();
      }
      seen = await fetched("/v1/forget");
      trouble = () => [];
      if (seen.state !== "running") break;
    } catch (problem) { trouble = () => [refusal(problem)]; }
    drawForget();
    await new Promise((done) => { setTimeout(done, 2000); });
  }
  following = false;
  const result = last("result");
  if (result) {
    note = () => [make("p", "holds", words().done(result)), ...(spoken.length ? [button(words().talks(spoken.length), () => { page.remove(spoken); spoken = []; drawForget(); }, "talks")] : [])];
    await page.refresh().catch(() => {});
  }
  drawForget();
  await ledger();
}
