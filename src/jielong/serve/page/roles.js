// Prompts before a talk ("hypnosis"): one is picked while the talk is empty, and stays with it.
//
// talk.role = { title, opening, ask }: the messages before the first question, and the form of each of the user's texts.
import { call } from "/page/api.js";
import { make } from "/page/dom.js";

const VARIABLE = /\{\{\s*([\p{L}_][\p{L}\p{N}_]*)\s*\}\}/gu;
let prompts = [];

export const filled = (text, values) => text.replace(VARIABLE, (whole, name) => values[name] ?? whole);
export const opening = (talk) => talk.role?.opening || [];
export const asked = (talk, text) => (talk.role ? filled(talk.role.ask, { input: text }) : text);

// What the server has; an older one has none.
export async function loadRoles(model) {
  try { prompts = (await (await call("/v1/prompts" + (model ? "?model=" + encodeURIComponent(model) : ""))).json()).data; } catch { prompts = []; }
}
// The choice, for an empty talk.
export function drawRoles(talk, words, changed) {
  const box = make("div", "roles"), choice = make("select"), fields = make("div", "fields"), text = make("p", "role-text"), note = make("p", "role-note");
  if (!prompts.length) return box;
  choice.id = "role";
  choice.setAttribute("aria-label", words.role);
  const none = make("option", "", words.noRole);
  none.value = "";
  const mine = (p) => (p.lang === words.code || (p.lang === "zh-TW") === (words.code !== "en") ? 0 : 1); // this page's language first
  const sorted = prompts.map((p, n) => [p, n]).sort((a, b) => mine(a[0]) - mine(b[0]) || a[1] - b[1]);
  choice.append(none, ...sorted.map(([p, n]) => {
    const option = make("option", "", p.title);
    option.value = String(n);
    option.lang = p.lang;
    option.selected = talk.role?.name === p.name && talk.role.lang === p.lang;
    return option;
  }));
  let values = {};
  const take = (prompt) => {
    if (prompt) {
      const system = filled(prompt.system, values);
      const shots = prompt.shots.flatMap(([said, answer]) => [{ role: "user", content: said }, { role: "assistant", content: answer }]);
      const ask = filled(prompt.ask, values); // {{input}} stays
      talk.role = { name: prompt.name, lang: prompt.lang, title: prompt.title, values, opening: [...(system ? [{ role: "system", content: system }] : []), ...shots], ask };
      text.textContent = system;
      note.textContent = words.roleNote;
    } else {
      delete talk.role;
      text.textContent = note.textContent = "";
    }
    changed();
  };
  const show = (prompt, known = {}) => {
    values = Object.fromEntries((prompt?.variables || []).map((v) => [v.name, known[v.name] ?? v.default ?? ""]));
    fields.replaceChildren(...(prompt?.variables || []).map((v) => {
      const label = make("label", "", v.name + " "), field = make("input");
      field.value = values[v.name];
      field.oninput = () => { values[v.name] = field.value; take(prompt); };
      label.append(field);
      return label;
    }));
    if (prompt) text.title = prompt.purpose;
    take(prompt);
  };
  choice.onchange = () => show(prompts[choice.value]);
  box.append(make("p", "", words.role), choice, fields, text, note);
  if (talk.role) show(prompts[choice.value], talk.role.values);
  return box;
}
// Above a talk that has one.
export function drawRole(talk, words) {
  const node = make("details", "role-shown"), first = talk.role.opening[0];
  node.append(make("summary", "", words.roleIs(talk.role.title)), make("p", "role-text", first ? first.content : talk.role.ask));
  return node;
}
