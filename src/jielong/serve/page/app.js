// The page. It uses only the public HTTP API: /v1/chat/completions, /v1/run, /report.
//
// A talk is a list of turns. An assistant's turn is a side: { model, tokens, done, error, finish, branches }; where two
// models are compared, turn.rival is the other side, and each model sees its own answers as the past.
import { call, events } from "/page/api.js";
import { markdown } from "/page/markdown.js";
import { WORDS } from "/page/words.js";

const $ = (id) => document.getElementById(id);
const KEY = "jielong";
const state = load();
let running = null; // AbortController of the answer in progress
let words = WORDS[state.lang];
let models = []; // names

function load() {
  const zh = (navigator.language || "").toLowerCase().startsWith("zh");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const fresh = { lang: zh ? "zh-TW" : "en", theme: dark ? "dark" : "light", chain: false, model: "", rival: "", talks: [], now: 0 };
  try { return { ...fresh, ...JSON.parse(localStorage.getItem(KEY) || "{}") }; } catch { return fresh; }
}
function save() {
  try { localStorage.setItem(KEY, JSON.stringify(state)); } catch { state.talks.splice(0, Math.ceil(state.talks.length / 2)); }
}
function talk() {
  if (!state.talks.length) state.talks.push({ name: "", turns: [] });
  state.now = Math.min(state.now, state.talks.length - 1);
  return state.talks[state.now];
}
function make(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}
function button(text, action, cls) {
  const node = make("button", cls, text);
  node.type = "button";
  node.onclick = action;
  return node;
}

// Bytes of consecutive tokens → what a person can read; half a character joins the token that completes it.
function readable(tokens) {
  const groups = [];
  let held = [], first = 0;
  tokens.forEach((t, i) => {
    if (!held.length) first = i;
    held.push(...t.bytes);
    let text = null;
    try { text = new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(held)); } catch { /* half a character */ }
    if (text !== null || held.length > 6 || i === tokens.length - 1) {
      groups.push({ text: text ?? "�", from: first, to: i });
      held = [];
    }
  });
  return groups;
}
const percent = (logprob) => { const p = Math.exp(logprob) * 100; return p >= 9.95 ? p.toFixed(0) + " %" : p >= 0.095 ? p.toFixed(1) + " %" : "< 0.1 %"; };
const textOf = (turn) => readable(turn.tokens.filter((t) => t.bytes.length)).map((g) => g.text).join("");

function draw() {
  words = WORDS[state.lang];
  document.documentElement.lang = words.code;
  document.documentElement.dataset.theme = state.theme;
  document.body.classList.toggle("chain", state.chain);
  $("new").textContent = words.new; $("send").textContent = words.send; $("stop").textContent = words.stop;
  $("lang").textContent = words.other; $("chain-name").textContent = " " + words.chain; $("chain").checked = state.chain;
  $("input").placeholder = words.ask; $("note").textContent = words.note; $("report").textContent = words.report;
  $("send").hidden = !!running; $("stop").hidden = !running;
  $("key-title").textContent = words.key; $("key-wrong").textContent = words.wrong; $("key-ok").textContent = words.enter;
  drawModels(); drawList(); drawLog();
}
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
    rename.setAttribute("aria-label", "rename"); remove.setAttribute("aria-label", "delete");
    row.append(open, rename, remove);
    return row;
  }));
}
function drawLog() {
  const turns = talk().turns;
  if (!turns.length) {
    const empty = make("div", "empty");
    const ideas = make("div", "ideas");
    ideas.append(...words.ideas.map((q) => button(q, () => ask(q))));
    empty.append(make("h2", "", words.hello), make("p", "", words.about), ideas);
    $("log").replaceChildren(empty);
    return;
  }
  $("log").replaceChildren(...turns.map(drawTurn));
  $("log").scrollTop = $("log").scrollHeight;
}
function drawTurn(turn, at) {
  const node = make("div", "turn " + turn.role + (turn.rival ? " pair" : ""));
  if (turn.role === "user") node.append(make("div", "text", turn.content));
  else node.append(...sides(turn).map((side) => drawSide(side, at)));
  return node;
}
const sides = (turn) => (turn.rival ? [turn, turn.rival] : [turn]);
function drawSide(side, at) {
  const node = make("div", "side");
  const text = make("div", "text");
  if (side.model && models.length > 1) node.append(make("div", "who", side.model));
  node.append(text);
  const said = textOf(side);
  // Markdown where there is some, else the chain itself
  if (!state.chain && /[*`[]|^\s*[-\d]/m.test(said) && side.done) text.append(markdown(said));
  else text.append(...readable(side.tokens).filter((g) => g.text).map((g) => drawToken(side, at, g)));
  if (side.error) text.append(make("div", "error", side.error));
  if (side.done) {
    const tools = make("div", "tools");
    if (at === talk().turns.length - 1) tools.append(button("↻ " + words.again, () => again(side, at), "again"));
    tools.append(button(words.copy, (e) => { navigator.clipboard?.writeText(said); e.target.textContent = words.copied; }));
    if (side.branches?.length) tools.append(button(`⇄ ${words.back} (${side.branches.length})`, () => swap(side), "branch"));
    if (side.finish === "cancelled") tools.append(make("span", "", words.stopped));
    node.append(tools);
  }
  return node;
}
function drawToken(side, at, group) {
  const token = side.tokens[group.from];
  const p = Math.exp(Math.min(...side.tokens.slice(group.from, group.to + 1).map((t) => t.logprob)));
  const node = make("span", "token p" + (p < 0.25 ? 0 : p < 0.5 ? 1 : p < 0.8 ? 2 : 3), state.chain ? group.text.replace(/\n/g, "↵\n") : group.text);
  node.tabIndex = 0;
  node.setAttribute("role", "button");
  node.title = percent(token.logprob);
  node.onclick = () => showPanel(side, at, group.from, node);
  node.onkeydown = (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); node.onclick(); } };
  return node;
}

function showPanel(side, at, index, node) {
  document.querySelectorAll(".token.on").forEach((n) => n.classList.remove("on"));
  node.classList.add("on");
  const token = side.tokens[index];
  $("panel-title").textContent = words.candidates;
  $("panel-info").textContent = words.info(percent(token.logprob), token.bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ") || "–");
  $("candidates").replaceChildren(...token.top_logprobs.map((c) => {
    const row = make("li");
    const choose = button("", () => branch(side, at, index, c), c.id === token.id ? "chosen" : "");
    const bar = make("meter");
    bar.max = 1; bar.value = Math.exp(c.logprob);
    choose.append(bar, make("span", "", c.token), make("span", "", percent(c.logprob)));
    row.append(choose);
    return row;
  }));
  $("panel").hidden = false;
}
function hidePanel() { $("panel").hidden = true; }

const fresh = (model) => ({ model, tokens: [], done: false });
function ask(question) {
  const t = talk();
  if (running || !question.trim()) return;
  t.name = t.name || question.slice(0, 30);
  const turn = { role: "assistant", ...fresh(state.model) };
  if (state.rival) turn.rival = fresh(state.rival);
  t.turns.push({ role: "user", content: question }, turn);
  answer(t, t.turns.length - 1, sides(turn).map((side) => [side, []]));
}
function again(side, at) {
  if (running) return;
  keep(side);
  side.tokens = [];
  if (side === talk().turns[at] && !side.rival) side.model = state.model;
  answer(talk(), at, [[side, []]], 0.9);
}
function branch(side, at, index, candidate) {
  if (running) return;
  hidePanel();
  keep(side);
  const past = side.tokens.slice(0, index);
  side.tokens = [...past, { ...candidate, top_logprobs: side.tokens[index].top_logprobs }];
  talk().turns.length = at + 1;
  answer(talk(), at, [[side, side.tokens.map((t) => t.id)]]);
}
function keep(side) { (side.branches = side.branches || []).push(side.tokens); side.branches = side.branches.slice(-5); }
function swap(side) { const old = side.branches.shift(); side.branches.push(side.tokens); side.tokens = old; hidePanel(); save(); draw(); }
function stop() { running?.abort(); }

// jobs: [[side, token ids it begins with]]
async function answer(t, at, jobs, temperature = 0.3) {
  const mine = running = new AbortController();
  for (const [side] of jobs) Object.assign(side, { done: false, error: "", finish: "" });
  hidePanel(); draw();
  await Promise.all(jobs.map(([side, prefix]) => stream(t, at, side, prefix, temperature, mine.signal)));
  if (running === mine) running = null;
  save(); draw();
}
async function stream(t, at, side, prefix, temperature, signal) {
  const rival = t.turns[at].rival === side;
  const said = (turn) => textOf(rival && turn.rival ? turn.rival : turn);
  const messages = t.turns.slice(0, at).map((m) => ({ role: m.role, content: m.role === "user" ? m.content : said(m) }));
  const body = { messages, stream: true, logprobs: true, top_logprobs: 10, temperature, max_tokens: 200 };
  if (side.model) body.model = side.model;
  if (prefix.length) body.continue_from = prefix;
  try {
    for await (const event of events(await call("/v1/chat/completions", body, signal))) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices?.[0];
      for (const token of choice?.logprobs?.content || []) side.tokens.push(token);
      if (choice?.finish_reason) side.finish = choice.finish_reason;
      if (talk() === t) drawLog();
    }
  } catch (problem) {
    if (problem.name === "AbortError") side.finish = "cancelled";
    else side.error = problem instanceof TypeError ? words.lost : problem.message;
  }
  side.done = true;
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
document.onkeydown = (e) => { if (e.key === "Escape") { hidePanel(); document.body.classList.remove("open"); } };
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
  $("about").textContent = `${run.card.name || ""} · ${(run.card.parameters || 0).toLocaleString()} parameters`;
  $("report").hidden = !run.report;
  $("report").href = "/report" + of;
}
for (const t of state.talks) for (const turn of t.turns) if (turn.role === "assistant") for (const side of sides(turn)) side.done = true;
draw();
call("/v1/run").then((r) => r.json()).then((run) => {
  models = run.models;
  if (!models.includes(state.model)) state.model = models[0];
  if (!models.includes(state.rival) || state.rival === state.model) state.rival = "";
  draw();
  return about();
}).catch(() => {});
