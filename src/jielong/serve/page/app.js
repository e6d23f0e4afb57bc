// The page. It uses only the public HTTP API: /v1/chat/completions, /v1/models, /v1/run.
import { markdown } from "/page/markdown.js";
import { WORDS } from "/page/words.js";

const $ = (id) => document.getElementById(id);
const KEY = "jielong";
const state = load();
let running = null; // AbortController of the answer in progress
let words = WORDS[state.lang];

function load() {
  const zh = (navigator.language || "").toLowerCase().startsWith("zh");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const fresh = { lang: zh ? "zh-TW" : "en", theme: dark ? "dark" : "light", chain: false, talks: [], now: 0 };
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
  drawList(); drawLog();
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
  const node = make("div", "turn " + turn.role);
  const text = make("div", "text");
  node.append(text);
  if (turn.role === "user") { text.textContent = turn.content; return node; }
  const said = textOf(turn);
  // Markdown where there is some, else the chain itself
  if (!state.chain && /[*`[]|^\s*[-\d]/m.test(said) && turn.done) text.append(markdown(said));
  else text.append(...readable(turn.tokens).filter((g) => g.text).map((g) => drawToken(turn, at, g)));
  if (turn.error) text.append(make("div", "error", turn.error));
  if (turn.done) {
    const tools = make("div", "tools");
    const last = at === talk().turns.length - 1;
    if (last) tools.append(button("↻ " + words.again, () => again(at), "again"));
    tools.append(button(words.copy, (e) => { navigator.clipboard?.writeText(said); e.target.textContent = words.copied; }));
    if (turn.branches?.length) tools.append(button(`⇄ ${words.back} (${turn.branches.length})`, () => swap(turn), "branch"));
    if (turn.finish === "cancelled") tools.append(make("span", "", words.stopped));
    node.append(tools);
  }
  return node;
}
function drawToken(turn, at, group) {
  const token = turn.tokens[group.from];
  const p = Math.exp(Math.min(...turn.tokens.slice(group.from, group.to + 1).map((t) => t.logprob)));
  const node = make("span", "token p" + (p < 0.25 ? 0 : p < 0.5 ? 1 : p < 0.8 ? 2 : 3), group.text);
  node.tabIndex = 0;
  node.setAttribute("role", "button");
  node.title = percent(token.logprob);
  node.onclick = () => showPanel(turn, at, group.from, node);
  node.onkeydown = (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); node.onclick(); } };
  return node;
}

function showPanel(turn, at, index, node) {
  document.querySelectorAll(".token.on").forEach((n) => n.classList.remove("on"));
  node.classList.add("on");
  const token = turn.tokens[index];
  $("panel-title").textContent = words.candidates;
  $("panel-info").textContent = words.info(percent(token.logprob), token.bytes.map((b) => b.toString(16).padStart(2, "0")).join(" ") || "–");
  $("candidates").replaceChildren(...token.top_logprobs.map((c) => {
    const row = make("li");
    const choose = button("", () => branch(turn, at, index, c), c.id === token.id ? "chosen" : "");
    const bar = make("meter");
    bar.max = 1; bar.value = Math.exp(c.logprob);
    choose.append(bar, make("span", "", c.token), make("span", "", percent(c.logprob)));
    row.append(choose);
    return row;
  }));
  $("panel").hidden = false;
}
function hidePanel() { $("panel").hidden = true; }

function ask(question) {
  const t = talk();
  if (running || !question.trim()) return;
  t.name = t.name || question.slice(0, 30);
  t.turns.push({ role: "user", content: question }, { role: "assistant", tokens: [], done: false });
  answer(t, t.turns.length - 1, []);
}
function again(at) {
  const turn = talk().turns[at];
  if (running) return;
  keep(turn);
  turn.tokens = [];
  answer(talk(), at, [], 0.9);
}
function branch(turn, at, index, candidate) {
  if (running) return;
  hidePanel();
  keep(turn);
  const past = turn.tokens.slice(0, index);
  turn.tokens = [...past, { ...candidate, top_logprobs: turn.tokens[index].top_logprobs }];
  talk().turns.length = at + 1;
  answer(talk(), at, turn.tokens.map((t) => t.id));
}
function keep(turn) { (turn.branches = turn.branches || []).push(turn.tokens); turn.branches = turn.branches.slice(-5); }
function swap(turn) { const old = turn.branches.shift(); turn.branches.push(turn.tokens); turn.tokens = old; hidePanel(); save(); draw(); }
function stop() { running?.abort(); }

async function answer(t, at, prefix, temperature = 0.3) {
  const turn = t.turns[at];
  Object.assign(turn, { done: false, error: "", finish: "" });
  running = new AbortController();
  hidePanel(); draw();
  const messages = t.turns.slice(0, at).map((m) => ({ role: m.role, content: m.role === "user" ? m.content : textOf(m) }));
  const body = { messages, stream: true, logprobs: true, top_logprobs: 10, temperature, max_tokens: 200 };
  if (prefix.length) body.continue_from = prefix;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error?.message || response.statusText);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices?.[0];
      for (const token of choice?.logprobs?.content || []) turn.tokens.push(token);
      if (choice?.finish_reason) turn.finish = choice.finish_reason;
      if (talk() === t) drawLog();
    }
  } catch (problem) {
    if (problem.name === "AbortError") turn.finish = "cancelled";
    else turn.error = problem instanceof TypeError ? words.lost : problem.message;
  }
  turn.done = true;
  running = null;
  save(); draw();
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
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
for (const t of state.talks) for (const turn of t.turns) if (turn.role === "assistant") turn.done = true;
draw();
fetch("/v1/run").then((r) => r.json()).then((r) => {
  $("model").textContent = `${r.card.name || ""} · ${(r.card.parameters || 0).toLocaleString()} parameters`;
  $("report").hidden = !r.report;
}).catch(() => {});
