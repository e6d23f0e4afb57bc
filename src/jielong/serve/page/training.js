// "Train from my feedback": starts the training on the server, and draws what its events tell (/v1/improve).
import { call, events } from "/page/api.js";
import { chart } from "/page/chart.js";
import { $, make } from "/page/dom.js";

const STAGES = ["judge", "reward", "ppo", "evaluation"];
const CURVES = ["score", "kl", "length", "repetition", "entropy"];
let host = null; // { state, words, models, save(), refresh() → after asking which models there are }
let seen = { state: "idle", events: [] }; // of the last training
let trouble = "", note = "", stats = null, following = false, busy = false;

const last = (name) => seen.events.filter((e) => e.event === name).at(-1);
const share = (v) => `${(v * 100).toFixed(0)}\u00a0%`;
const fetched = async (path, body) => (await call(path, body)).json();

export function drawTraining() {
  if (!host) return;
  const { words } = host, running = seen.state === "running", iterations = seen.events.filter((e) => e.event === "iteration");
  const now = iterations.at(-1), result = last("result"), error = last("error"), start = last("start");
  $("train").textContent = words.train + (running ? ` · ${now ? `${now.iteration}/${now.of}` : "…"}` : "");
  if (!$("training").open) return;
  $("training-title").textContent = words.train;
  $("training-about").textContent = words.trainAbout;
  $("training-close").setAttribute("aria-label", words.close);
  $("people-name").textContent = words.peopleOnly;
  $("training-start").textContent = words.start; $("training-stop").textContent = words.stop; $("training-back").textContent = words.rollback;
  $("people").disabled = running;
  $("training-start").hidden = running; $("training-stop").hidden = !running; $("training-back").hidden = running || !promoted(result);
  for (const id of ["training-start", "training-stop", "training-back"]) $(id).disabled = busy;
  $("training-counts").replaceChildren(...counts(words));
  $("training-trouble").textContent = trouble;
  $("training-note").textContent = note;
  const from = start && Object.entries(start.labels || {}).map(([k, v]) => `${words.labels[k] || k} ${v}`).join(words.comma);
  const advice = last("advice")?.text;
  $("training-from").textContent = [from && words.learns(from), advice].filter(Boolean).join(" ");
  drawStages(words, running, now, result, error);
  $("training-result").replaceChildren(...(result ? [make("b", "", sentence(words, result)), make("span", "", " " + (result.why || ""))] : []));
  $("training-error").textContent = error ? error.message : "";
  const begin = iterations[0]?.iteration ?? 1, end = now ? Math.max(now.of, now.iteration) : 1;
  $("curves").replaceChildren(...(iterations.length ? CURVES.map((key) => chart(
    words.curves[key][0], words.curves[key][1],
    iterations.filter((e) => Number.isFinite(e[key])).map((e) => [e.iteration, e[key]]), begin, end, words.iteration,
  )) : []));
  drawSamples(words, last("samples")?.pairs || []);
}
// Is the model that the last training brought still the one that answers?
function promoted(result) {
  return result?.promoted && host.state.rolled !== result.model && (!host.models.includes(result.model) || host.models[0] === result.model);
}
function counts(words) {
  if (!stats) return [];
  const counting = stats.counting || {};
  const own = [[words.counting.up, stats.up], [words.counting.down, stats.down], [words.counting.compare, counting.compare], [words.counting.teach, counting.teach]];
  const from = Object.entries(stats.sources || {}).map(([who, n]) => [words.sources[who] || words.simulated(who), n]);
  return [...own, ...from].filter(([, n]) => n !== undefined).map(([what, n]) => {
    const node = make("span", "count");
    node.append(make("b", "", String(n)), " " + what);
    return node;
  });
}
function drawStages(words, running, now, result, error) {
  const at = result ? STAGES.length : STAGES.indexOf(last("stage")?.stage);
  $("stages").hidden = !seen.events.length;
  $("stages").replaceChildren(...STAGES.map((stage, i) => {
    const node = make("li", i < at ? "past" : i > at ? "" : error ? "broken" : "now", words.stages[stage]);
    if (i === at) node.setAttribute("aria-current", "step");
    if (i === at && stage === "ppo" && now && running) node.append(` ${now.iteration}/${now.of}`);
    return node;
  }));
}
function sentence(words, result) {
  const [value, low, high] = (result.win_rate || []).map(share);
  const wins = value === undefined ? "" : words.wins(value, low, high);
  if (!result.promoted) return words.kept(result.model) + wins;
  return words.promoted(result.model) + wins + (promoted(result) ? "" : words.since);
}
function drawSamples(words, pairs) {
  $("samples").replaceChildren();
  if (!pairs.length) return;
  const table = make("table"), head = make("tr"), names = [words.question, words.before, words.after];
  head.append(...names.map((name) => { const th = make("th", "", name); th.scope = "col"; return th; }));
  table.append(make("caption", "", words.samples), head, ...pairs.map((pair) => {
    const row = make("tr");
    row.append(...[pair.prompt, pair.before, pair.after].map((text, i) => {
      const cell = make("td", "", text);
      cell.dataset.name = names[i]; // a phone shows the columns below each other
      return cell;
    }));
    return row;
  }));
  $("samples").append(table);
}

async function look() {
  seen = await fetched("/v1/improve");
  drawTraining();
  if (seen.state === "running") follow();
}
// Listen until the training ends; a broken line is taken up again.
async function follow() {
  if (following) return;
  following = true;
  for (;;) {
    try {
      const told = [];
      for await (const event of events(await call("/v1/improve/events"))) {
        told.push(event);
        seen = { state: "running", events: told };
        drawTraining();
        if (event.event === "result" && event.promoted) host.refresh().catch(() => {});
      }
      seen = await fetched("/v1/improve");
      trouble = "";
      if (seen.state !== "running") break;
    } catch (problem) { trouble = problem instanceof TypeError ? host.words.lost : host.words.complains(problem); }
    drawTraining();
    await new Promise((done) => { setTimeout(done, 2000); });
  }
  following = false;
  drawTraining();
  poll();
}
async function poll() { // which model answers now?
  try { await host.refresh(); drawTraining(); } catch { /* the next one will tell */ }
}
async function count() {
  try { stats = await fetched("/feedback/stats"); drawTraining(); } catch (problem) { trouble = host.words.complains(problem); drawTraining(); }
}
// A press on a button: its request, and its mistake in place.
async function act(work) {
  [busy, trouble, note] = [true, "", ""];
  drawTraining();
  try { await work(); } catch (problem) {
    trouble = problem instanceof TypeError ? host.words.lost : problem.status === 409 ? host.words.already : host.words.complains(problem);
    if (problem.status === 409) follow();
  }
  busy = false;
  drawTraining();
}

// run: what GET /v1/run told; an older server does not say whether it can train, then the first press shows it.
export function beginTraining(page, run) {
  host = page;
  const shown = run.feedback !== false && run.improve !== false, dialog = $("training");
  $("train").hidden = !shown;
  drawTraining();
  if (!shown) return;
  if (run.improve) look().catch(gone);
  let timer = 0;
  function gone(problem) {
    if (problem.status !== 404) return;
    $("train").hidden = true;
    dialog.close();
  }
  $("train").onclick = async () => {
    document.body.classList.remove("open");
    [trouble, note] = ["", ""];
    dialog.showModal();
    drawTraining();
    poll();
    count();
    clearInterval(timer);
    timer = setInterval(poll, 5000);
    try { await look(); } catch (problem) { gone(problem); trouble = host.words.complains(problem); drawTraining(); }
  };
  dialog.onclose = () => clearInterval(timer);
  $("training-close").onclick = () => dialog.close();
  $("training-start").onclick = () => act(async () => {
    await call("/v1/improve", $("people").checked ? { people_only: true } : {});
    seen = { state: "running", events: [] };
    follow();
  });
  $("training-stop").onclick = () => act(() => call("/v1/improve/stop", {}));
  $("training-back").onclick = () => act(async () => {
    const { model } = await fetched("/v1/rollback", {});
    host.state.rolled = last("result")?.model;
    note = host.words.rolled(model);
    host.save();
    await host.refresh();
  });
}
