// What a person says about answers, and its way to POST /feedback.
//
// Under an answer's id lies a record { thumb, teach, compare } in localStorage. Each of these is a word { want, have, ids }:
// what shall be stored (null: nothing), what the server has stored, and under which numbers. A word is sent until both are
// the same: a press that finds no server is sent later, and what the server refuses falls back to what it has.
import { call } from "/page/api.js";

const PLACE = "jielong-feedback:";
const PATIENCE = 30_000; // ms for the server to answer
const memory = new Map(); // where localStorage is full or forbidden
let state = null, watcher = () => {}, timer = 0, sending = false;
export let away = false; // the server did not answer the last time

function read(id) {
  let text = memory.get(id);
  try { text = text ?? localStorage.getItem(PLACE + id); } catch { /* forbidden */ }
  return JSON.parse(text || "{}");
}
function write(id, record) {
  const text = JSON.stringify(record);
  try { localStorage.setItem(PLACE + id, text); memory.delete(id); } catch { memory.set(id, text); }
}
function known() {
  let stored = [];
  try { stored = Object.keys(localStorage).filter((k) => k.startsWith(PLACE)).map((k) => k.slice(PLACE.length)); } catch { /* forbidden */ }
  return [...new Set([...stored, ...memory.keys()])];
}
const differs = (w) => JSON.stringify(w.want) !== JSON.stringify(w.have);
function pending() {
  for (const id of known()) for (const [kind, w] of Object.entries(read(id))) if (differs(w)) return [id, kind];
  return null;
}

export const word = (id, kind) => ({ want: null, have: null, ids: [], ...read(id)[kind] });
export const waits = (w) => away && differs(w);
function put(id, kind, change) {
  write(id, { ...read(id), [kind]: { ...word(id, kind), ...change } });
  watcher();
}

// want: { value, reasons, text } of a thumb, { text } of a lesson, { value, other, shown } of a comparison; null undoes.
export function say(id, kind, want, pause = 0) {
  put(id, kind, { want: want && { ...want, consent: state.consent }, at: Date.now(), trouble: null, lost: null });
  clearTimeout(timer);
  timer = setTimeout(deliver, pause);
}
// What was refused is given up, and spoken of no more.
export const settle = (id, kind) => put(id, kind, { trouble: null, lost: null });
// The last word about these answers that stands: [id, kind].
export function latest(ids) {
  let found = null, when = 0;
  for (const id of ids) for (const [kind, w] of Object.entries(read(id))) if (w.want && w.at > when) [found, when] = [[id, kind], w.at];
  return found;
}

export async function deliver() {
  if (sending) return;
  sending = true;
  let reached = true;
  const all = async () => { for (let next; reached && (next = pending());) reached = await send(...next); };
  try { await (navigator.locks ? navigator.locks.request(PLACE, all) : all()); } finally { sending = false; }
  if (away === reached) { away = !reached; watcher(); }
  if (reached && pending()) deliver(); // pressed meanwhile
}
async function post(event) { // → its number
  const response = await call("/feedback", { ...event, user: state.user }, AbortSignal.timeout?.(PATIENCE));
  return (await response.json()).id;
}

// → whether the server answered
async function send(id, kind) {
  const { want, ids } = word(id, kind), sent = [];
  try {
    if (want) sent.push(...ids, await post({ kind, answer: id, ...want }));
    else for (const undoes of ids) await post({ kind: "undo", undoes }); // the newest last: until then it counts
    put(id, kind, { have: want, ids: sent });
    return true;
  } catch (problem) {
    if (problem instanceof TypeError || problem.name === "TimeoutError" || [502, 503, 504].includes(problem.status)) return false;
    put(id, kind, { want: word(id, kind).have, lost: want, trouble: { status: problem.status, message: problem.message } });
    return true;
  }
}

// mine: ids of the answers that the page still has; of others only what waits is kept.
export function begin(settings, mine, onChange) {
  [state, watcher] = [settings, onChange];
  for (const id of known()) {
    if (mine.has(id) || Object.values(read(id)).some(differs)) continue;
    try { localStorage.removeItem(PLACE + id); } catch { /* forbidden */ }
  }
  const retry = () => { if (pending()) deliver(); };
  setInterval(retry, 10_000);
  addEventListener("online", retry);
  addEventListener("storage", (e) => e.key?.startsWith(PLACE) && watcher()); // another tab
  retry();
}
