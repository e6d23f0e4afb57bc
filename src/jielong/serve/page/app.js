// The page. It uses only the public HTTP API: /v1/chat/completions, /v1/run, /report, /feedback, /v1/improve, /v1/detect,
// /v1/prompts, /v1/edit, /v1/forget.
//
// A talk is a list of turns. An assistant's turn is a side: { id, model, tokens, done, error, finish, branches, compared };
// where two models are compared, turn.rival is the other side, and each model sees its own answers as the past. `id` is the
// answer's own at the server, under which it can be judged; branches keep theirs. turn.duel: see duel.js.
import { call, events } from "/page/api.js";
import { drawToken, hidePanel } from "/page/chain.js";
import { beginCorrect, drawCorrect, openCorrect } from "/page/correct.js";
import { CORRECT } from "/page/correct-words.js";
import { beginDetect, drawDetect } from "/page/detect.js";
import { $, button, make } from "/page/dom.js";
import { begun, choose, drawDuel } from "/page/duel.js";
import { begin, latest, say } from "/page/feedback.js";
import { beginForget, drawForget } from "/page/forget.js";
import { keys } from "/page/keys.js";
import { markdown } from "/page/markdown.js";
import { asked, drawRole, drawRoles, loadRoles, opening } from "/page/roles.js";
import * as thumbs from "/page/thumbs.js";
import { looksMarked, readable, textOf } from "/page/tokens.js";
import { beginTraining, drawTraining } from "/page/training.js";
import { WORDS } from "/page/words.js";

const KEY = "jielong";
const state = load();
let running = null; // AbortController of the answer in progress
let words = WORDS[state.lang];
let models = []; // names, the default one first
let judging = false; // does the server store feedback?
let editing = false; // may its model's facts be corrected?
let card = null; // of the model that is chosen

function load() {
  const zh = (navigator.language || "").toLowerCase().startsWith("zh");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const fresh = { lang: zh ? "zh-TW" : "en", theme: dark ? "dark" : "light", chain: false, model: "", rival: "", talks: [], now: 0, user: "", consent: true };
  try { return { ...fresh, ...JSON.parse(localStorage.getItem(KEY) || "{}") }; } catch { return fresh; }
}
function save() { // where there is no room left, the oldest talk goes
  for (;;) {
    try { localStorage.setItem(KEY, JSON.stringify(state)); return; } catch (problem) {
      if (problem.name !== "QuotaExceededError" || state.talks.length < 2) return;
      const oldest = state.talks.length - 1;
      state.talks.splice(state.now === oldest ? oldest - 1 : oldest, 1);
      state.now = Math.min(state.now, state.talks.length - 1);
    }
  }
}
function talk() {
  if (!state.talks.length) state.talks.push({ name: "", turns: [] });
  state.now = Math.min(state.now, state.talks.length - 1);
  return state.talks[state.now];
}
function draw() {
  words = WORDS[state.lang];
  document.documentElement.lang = words.code;
  document.documentElement.dataset.theme = state.theme;
  document.body.classList.toggle("chain", state.chain);
  $("new").textContent = words.new; $("send").textContent = words.send; $("stop").textContent = words.stop;
  $("lang").textContent = words.other; $("chain-name").textContent = " " + words.chain; $("chain").checked = state.chain;
  $("input").placeholder = words.ask; $("note").textContent = words.note; $("report").textContent = words.report;
  $("consent-name").textContent = words.consent; $("consent").checked = state.consent; $("consent-row").hidden = !judging;
  $("key-title").textContent = words.key; $("key-wrong").textContent = words.wrong; $("key-ok").textContent = words.enter;
  for (const [id, name] of Object.entries({ list: "list", menu: "menu", theme: "theme", panel: "panel", "panel-close": "shut" })) $(id).setAttribute("aria-label", words.aria[name]);
  drawBar(); drawAbout(); drawModels(); drawList(); drawLog(); drawTraining(); drawDetect(); drawCorrect(); drawForget();
}
function drawAbout() { $("about").textContent = card ? `${card.name || ""} · ${words.size((card.parameters || 0).toLocaleString("en"))}` : ""; }
function drawBar() { $("send").hidden = !!running; $("stop").hidden = !running; }
function drawModels() {
  const several = models.length > 1;
  $("model").hidden = $("rival").hidden = !several;
  if (!several) return;
  const choices = (none, chosen, without) => [none, ...models.filter((m) => m !== without)].filter((m) => m !== null).map((m) => {
    const option = make("option", "", m || words.alone);
    option.value = m; option.selected = m === chosen;
    return option;
  });
  $("model").replaceChildren(...choices(null, state.model));
  $("rival").replaceChildren(...choices("", state.rival, state.model));
  $("model").setAttribute("aria-label", words.model); $("rival").setAttribute("aria-label", words.compare);
}
function drawList() {
  $("title").textContent = talk().name || words.new;
  $("list").replaceChildren(...state.talks.map((t, i) => {
    const row = make("div", i === state.now ? "on" : "");
    const open = button(t.name || words.new, () => { stop(); state.now = i; hidePanel(); document.body.classList.remove("open"); save(); draw(); }, "name");
    const rename = button("✎", () => { const name = prompt(words.rename, t.name); if (name) { t.name = name; save(); draw(); } }, "small");
    const remove = button("×", () => { stop(); state.talks.splice(i, 1); if (state.now >= i && state.now) state.now--; hidePanel(); save(); draw(); }, "small");
    rename.setAttribute("aria-label", words.aria.rename); remove.setAttribute("aria-label", words.aria.remove);
    row.append(open, rename, remove);
    return row;
  }));
}
function drawLog() {
  thumbs.clear();
  const turns = talk().turns;
  if (!turns.length) {
    const empty = make("div", "empty");
    const ideas = make("div", "ideas");
    ideas.append(...words.ideas.map((q) => button(q, () => ask(q))));
    empty.append(make("h2", "", words.hello), make("p", "", words.about), ideas, drawRoles(talk(), words, save));
    $("log").replaceChildren(empty);
    return;
  }
  $("log").replaceChildren(...turns.map(drawTurn));
  if (talk().role) $("log").append(drawRole(talk(), words)); // last, since turns are found by their place; the style shows it first
  $("log").scrollTop = $("log").scrollHeight;
}
function drawTurn(turn, at) {
  const node = make("div", "turn " + turn.role + (turn.rival ? " pair" : ""));
  if (turn.role === "user") node.append(make("div", "text", turn.content));
  else if (turn.duel) node.append(drawDuel(turn, words, (place) => decide(at, place), () => { delete turn.duel; save(); draw(); }));
  else node.append(...sides(turn).map((side) => drawSide(side, at)));
  return node;
}
// One side anew, or a whole turn, without disturbing the others: someone may be writing there.
function redraw(t, at, side) {
  if (talk() !== t) return;
  const log = $("log"), turn = t.turns[at], place = sides(turn).indexOf(side), old = log.children[at];
  const below = log.scrollHeight - log.scrollTop - log.clientHeight;
  if (place < 0 || turn.duel) old.replaceWith(drawTurn(turn, at)); else old.children[place].replaceWith(drawSide(side, at));
  if (below < 80) log.scrollTop = log.scrollHeight;
}
const sides = (turn) => (turn.rival ? [turn, turn.rival] : [turn]);
function drawSide(side, at) {
  const node = make("div", "side");
  const text = make("div", "text");
  if (side.model && models.length > 1) node.append(make("div", "who", side.model));
  node.append(text);
  const said = textOf(side);
  // Markdown where there is some, else the chain itself
  if (!state.chain && looksMarked(said) && side.done) text.append(markdown(said));
  else text.append(...readable(side.tokens).filter((g) => g.text).map((g) => drawToken(side, at, g, { words, chain: state.chain, branch })));
  if (side.error) text.append(make("div", "error", side.error));
  if (side.done) {
    const tools = make("div", "tools");
    if (at === talk().turns.length - 1) tools.append(button("↻ " + words.again, () => again(side, at), "again"));
    tools.append(button(words.copy, (e) => { navigator.clipboard?.writeText(said); e.target.textContent = words.copied; }));
    if (side.branches?.length) tools.append(button(`⇄ ${words.back} (${side.branches.length})`, () => swap(side), "branch"));
    if (judging && side.id && side.tokens.length) {
      const { buttons, box } = thumbs.judged(side, words, () => undoCompare(side));
      tools.append(...buttons);
      if (at === talk().turns.length - 1 && !talk().turns[at].rival) tools.append(thumbs.named(button(words.duel, () => compare(at), "compare"), words.duel, "c"));
      node.append(box);
    }
    if (editing && said.trim() && (!side.model || side.model === models[0])) tools.append(button(CORRECT[state.lang].open, () => openCorrect(said), "correct"));
    if (side.finish === "cancelled") tools.append(make("span", "", words.stopped));
    text.after(tools);
  }
  return node;
}
const fresh = (model) => ({ model, tokens: [], done: false });
function ask(question) {
  const t = talk();
  if (running || !question.trim()) return;
  t.name = t.name || question.slice(0, 30);
  thumbs.close();
  delete t.turns[t.turns.length - 1]?.duel;
  const turn = { role: "assistant", ...fresh(state.model) };
  if (state.rival) turn.rival = fresh(state.rival);
  t.turns.push({ role: "user", content: question }, turn);
  answer(t, t.turns.length - 1, sides(turn).map((side) => [[side], []]));
}
function again(side, at) {
  if (running) return;
  keep(side);
  side.tokens = [];
  delete side.compared;
  if (side === talk().turns[at] && !side.rival) side.model = state.model;
  answer(talk(), at, [[[side], []]], 0.9);
}
function branch(side, at, index, candidate) {
  if (running) return;
  hidePanel();
  keep(side);
  delete side.compared;
  const past = side.tokens.slice(0, index);
  side.tokens = [...past, { ...candidate, top_logprobs: side.tokens[index].top_logprobs }];
  talk().turns.length = at + 1;
  answer(talk(), at, [[[side], side.tokens.map((t) => t.id)]]);
}
// Answers of a side that are not shown: { tokens, id, model, finish }
const answerOf = ({ tokens, id, model, finish }) => ({ tokens, id, model, finish });
function keep(side) { if (side.tokens.length) side.branches = [...(side.branches || []), answerOf(side)].slice(-5); }
function show(side, other) { Object.assign(side, { id: undefined, finish: "", error: "" }, other); }
function swap(side, to = side.branches[0]) {
  side.branches = [...side.branches.filter((b) => b !== to), answerOf(side)];
  show(side, to);
  hidePanel(); save(); draw();
}
function compare(at) {
  const t = talk(), turn = t.turns[at];
  if (running || turn?.rival || !turn?.id) return;
  thumbs.close();
  turn.duel = begun(() => fresh(state.model));
  answer(t, at, [[turn.duel.sides, []]], 1);
}
function decide(at, place) {
  const turn = talk().turns[at], winner = choose(turn, place);
  if (winner === undefined) return false;
  if (winner) {
    turn.compared.old = turn.id;
    keep(turn);
    show(turn, answerOf(winner));
  }
  save(); draw();
  return true;
}
function undoCompare(side) { // and back to the answer that stood there before
  const { id, old } = side.compared, former = old && side.branches?.find((b) => b.id === old);
  say(id, "compare", null);
  if (former && side.id?.startsWith(id)) swap(side, former);
}
function stop() { running?.abort(); }

// jobs: [[sides, token ids they begin with]]; several sides are several answers to one request
async function answer(t, at, jobs, temperature = 0.3) {
  const mine = running = new AbortController();
  for (const [into] of jobs) for (const side of into) Object.assign(side, { id: undefined, done: false, error: "", finish: "" });
  hidePanel(); draw();
  await Promise.all(jobs.map(([into, prefix]) => stream(t, at, into, prefix, temperature, mine.signal)));
  if (running === mine) running = null;
  save(); drawBar();
}
async function stream(t, at, into, prefix, temperature, signal) {
  const turn = t.turns[at], rival = turn.rival === into[0], duel = turn.duel;
  const said = (past) => textOf(rival && past.rival ? past.rival : past);
  const turns = t.turns.slice(0, at).map((m) => ({ role: m.role, content: m.role === "user" ? asked(t, m.content) : said(m) }));
  const messages = [...opening(t), ...turns];
  const body = { messages, stream: true, logprobs: true, top_logprobs: 10, temperature, max_tokens: 200, user: state.user };
  if (into[0].model) body.model = into[0].model;
  if (prefix.length) body.continue_from = prefix;
  if (into.length > 1) body.n = into.length;
  let error = "";
  try {
    for await (const event of events(await call("/v1/chat/completions", body, signal))) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices || []) {
        const side = into[choice.index];
        side.id = choice.index ? `${event.id}:${choice.index}` : event.id;
        side.tokens.push(...(choice.logprobs?.content || []));
        if (choice.finish_reason) side.finish = choice.finish_reason;
        redraw(t, at, side);
      }
    }
  } catch (problem) {
    if (problem.status === 404) refresh().catch(() => {}); // the model was taken away: the next question goes to the new one
    if (problem.name !== "AbortError") error = problem instanceof TypeError ? words.lost : words.complains(problem);
    else if (duel) delete turn.duel; // half a comparison is none
    else into[0].finish = "cancelled";
  }
  for (const side of into) Object.assign(side, { done: true, error });
  if (duel) Object.assign(duel, { done: true, error });
  redraw(t, at, into[0]);
}

$("form").onsubmit = (e) => { e.preventDefault(); const q = $("input").value; if (!running && q.trim()) { $("input").value = ""; ask(q); } };
$("input").onkeydown = (e) => { if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); $("form").requestSubmit(); } };
$("stop").onclick = stop;
$("new").onclick = () => { stop(); if (talk().turns.length) state.talks.unshift({ name: "", turns: [] }); state.now = 0; hidePanel(); document.body.classList.remove("open"); save(); draw(); $("input").focus(); };
$("lang").onclick = () => { state.lang = state.lang === "en" ? "zh-TW" : "en"; hidePanel(); save(); draw(); };
$("theme").onclick = () => { state.theme = state.theme === "dark" ? "light" : "dark"; save(); draw(); };
$("chain").onchange = (e) => { state.chain = e.target.checked; save(); draw(); };
$("menu").onclick = () => document.body.classList.toggle("open");
$("panel-close").onclick = hidePanel;
document.onkeydown = (e) => {
  if (e.key !== "Escape") return;
  hidePanel(); document.body.classList.remove("open");
  if (e.target === $("input")) $("input").blur(); // then keys give feedback
};
const final = () => talk().turns[talk().turns.length - 1];
const judged = () => (judging && final()?.done && final().id && !final().duel ? final() : null); // what the keys speak of
keys({
  thumb: (value) => judged() && thumbs.press(judged().id, value),
  teach: () => judged() && thumbs.teach(judged().id),
  compare: () => judged() && compare(talk().turns.length - 1),
  choose: (place) => final()?.duel && decide(talk().turns.length - 1, place),
  undo: () => {
    const all = talk().turns.flatMap((turn) => (turn.role === "assistant" ? sides(turn) : []));
    const found = judging && latest(all.flatMap((side) => [side.id, side.compared?.id]).filter(Boolean));
    if (!found) return;
    const [id, kind] = found, side = all.find((s) => s.compared?.id === id);
    if (kind === "compare" && side) undoCompare(side); else say(id, kind, null);
  },
});
$("consent").onchange = (e) => { state.consent = e.target.checked; save(); };
$("model").onchange = (e) => { state.model = e.target.value; if (state.rival === state.model) state.rival = ""; about(); save(); draw(); };
$("rival").onchange = (e) => { state.rival = e.target.value; save(); draw(); };
$("report").onclick = async (e) => { // a link cannot carry a key: then the report comes as a file
  if (!sessionStorage.getItem("jielong-key")) return;
  e.preventDefault();
  const link = make("a");
  link.href = URL.createObjectURL(await (await call($("report").getAttribute("href"))).blob());
  link.download = "report.html";
  link.click();
};
async function about() {
  const of = state.model ? "?model=" + encodeURIComponent(state.model) : "";
  const run = await (await call("/v1/run" + of)).json();
  card = run.card;
  drawAbout();
  $("report").hidden = !run.report;
  $("report").href = "/report" + of;
  await loadRoles(state.model);
  if (!talk().turns.length) drawLog();
}
// Which models there are now; who talked to the default one talks to the new default one.
async function refresh() {
  const run = await (await call("/v1/run")).json();
  if (run.models.join() === models.join()) return run;
  const former = models[0] || state.default;
  models = run.models;
  if (!models.includes(state.model) || state.model === former) state.model = models[0];
  if (!models.includes(state.rival) || state.rival === state.model) state.rival = "";
  state.default = models[0];
  save(); drawModels();
  await about();
  return run;
}
function remove(talks) {
  stop();
  state.talks = state.talks.filter((t) => !talks.includes(t));
  state.now = 0;
  hidePanel(); save(); draw();
}
function restore() { // → ids of all answers that this page still has
  const mine = new Set();
  for (const side of state.talks.flatMap((t) => t.turns).filter((turn) => turn.role === "assistant").flatMap(sides)) {
    side.done = true;
    side.branches = side.branches?.map((b) => (Array.isArray(b) ? { tokens: b } : b)); // as they once were kept
    if (side.duel && !side.duel.done) delete side.duel;
    for (const { id } of [side, ...(side.branches || []), ...(side.duel?.sides || [])]) mine.add(id);
    mine.add(side.compared?.id);
  }
  return mine;
}
// The model may have been changed from another window, or from a terminal.
addEventListener("focus", () => { if (models.length) refresh().catch(() => {}); });
if (!state.user) {
  state.user = "user-" + [...crypto.getRandomValues(new Uint8Array(4))].map((b) => b.toString(16).padStart(2, "0")).join("");
  save();
}
const mine = restore();
draw();
beginDetect({ state, get words() { return words; } });
beginCorrect({ refresh, get lang() { return state.lang; } });
refresh().then((run) => {
  judging = run.feedback !== false;
  editing = run.edit === true;
  if (judging) begin(state, mine, thumbs.update);
  beginTraining({ state, save, refresh, get words() { return words; }, get models() { return models; } }, run);
  beginForget({ state, refresh, remove, get words() { return words; } }, run);
  draw();
}).catch(() => {});
