// "Was this generated?": sends a text to /v1/detect, and draws what was found and the heat map: every token coloured by its
// rank, with the model's candidates on hover or focus.
import { call } from "/page/api.js";
import { DETECT } from "/page/detect-words.js";
import { $, make } from "/page/dom.js";
import { percent } from "/page/tokens.js";

const LONGEST = 100_000; // characters (code points) that the server looks at
const CLASSES = [1, 10, 100, 1000]; // ranks up to these have a colour each, and one is left for the rest
let host = null; // { state, words }: the page's
let text = "", found = null, looking = null; // AbortController of the request
let trouble = () => ""; // said anew in the other language

const small = (p) => (p === null ? null : p < 1e-4 ? p.toExponential(0) : String(+p.toPrecision(2)));

export function drawDetect() {
  if (!host) return;
  const words = DETECT[host.state.lang];
  $("detect-open").textContent = $("detect-title").textContent = words.open;
  $("detect-about").textContent = words.about;
  $("detect-close").setAttribute("aria-label", words.close);
  $("detect-text-name").textContent = words.text;
  $("detect-alpha-name").textContent = words.alpha;
  for (const option of $("detect-alpha").options) option.textContent = words.of(+option.value);
  $("detect-look").textContent = looking ? words.busy : words.look;
  $("detect-look").disabled = !!looking;
  $("detect-trouble").textContent = trouble(words);
  $("detect-found").hidden = !found;
  if (!found) return;
  const [name, meaning] = words.verdict[found.verdict];
  $("detect-verdict").replaceChildren(make("b", found.verdict === "generated" ? "yes" : "", name), make("span", "", " " + meaning(found.alpha)));
  drawTable(words);
  drawMap(words);
}
function drawTable(words) {
  const head = make("tr");
  head.append(...words.head.map((h) => make("th", "", h)));
  const rows = found.evidence.map((e) => {
    const row = make("tr", (found.adjusted[e.method] ?? 1) <= found.alpha ? "yes" : "");
    const [kind, id] = e.method.split(":");
    const cells = [(words.kind[kind] || kind) + (id ? ` ${id}` : ""), small(e.p) ?? words.none, words.null(e.null) || words.none, String(e.n), e.notes.map(words.note).join(words.semicolon)];
    row.append(...cells.map((c, i) => { const cell = make("td", "", c); cell.dataset.name = words.head[i]; return cell; }));
    return row;
  });
  $("detect-table").replaceChildren(head, ...rows);
}
function drawMap(words) {
  $("detect-map-title").textContent = words.map;
  $("detect-map-about").textContent = words.mapAbout;
  $("detect-legend").replaceChildren(...words.ranks.map((r, i) => make("li", `r${i}`, r)));
  const parts = [], letters = [...text].length === text.length ? null : offsets(text); // the server counts characters, not UTF-16 units
  const at = (n) => (letters ? letters[n] : n);
  let end = 0;
  for (const group of grouped(found.tokens)) {
    if (group.start > end) parts.push(document.createTextNode(text.slice(at(end), at(group.start))));
    parts.push(drawToken(group, text.slice(at(group.start), at(group.end)), words));
    end = group.end;
  }
  const rest = text.slice(at(end));
  if (rest) parts.push(make("span", "rest", rest));
  $("detect-map").replaceChildren(...parts);
  $("detect-token").textContent = rest.trim() ? words.longer : "";
}
// Tokens that are parts of one character become one, as rare as the rarest.
function grouped(tokens) {
  const groups = [];
  for (const token of tokens) {
    const last = groups.at(-1);
    if (last && token.start < last.end) {
      last.end = Math.max(last.end, token.end);
      last.worst = Math.max(last.worst, token.rank);
    } else groups.push({ ...token, worst: token.rank });
  }
  return groups;
}
function drawToken(group, said, words) {
  const level = CLASSES.findIndex((most) => group.worst <= most);
  const node = make("span", `seen r${level < 0 ? CLASSES.length : level}`, said);
  const candidates = group.top.map((c) => `${c.token.trim() || "␣"} ${percent(c.logprob)}`).join(" · ");
  const told = words.info(group.rank.toLocaleString(), percent(group.logprob)) + words.weighed + candidates;
  node.tabIndex = 0;
  node.title = told;
  node.setAttribute("aria-label", `${said}: ${told}`);
  node.setAttribute("role", "img");
  node.onmouseenter = node.onfocus = () => { $("detect-token").textContent = `“${said.trim()}”: ${told}`; };
  return node;
}
function offsets(string) { // place of each character (code point) in UTF-16 units
  const places = [];
  let n = 0;
  for (const letter of string) { places.push(n); n += letter.length; }
  return [...places, n];
}
// Why a text is not sent; null where it is.
function mistake(given) {
  const length = [...given].length;
  if (length > LONGEST) return (words) => words.tooLong(length, LONGEST);
  return /[\p{L}\p{N}]/u.test(given) ? null : (words) => words.noText;
}
async function look() {
  if (looking) return;
  const given = $("detect-text").value, wrong = mistake(given);
  found = null;
  trouble = wrong || (() => "");
  if (wrong) return drawDetect();
  looking = new AbortController();
  drawDetect();
  try {
    const body = { text: given, alpha: +$("detect-alpha").value, tokens: true, top: 5 };
    if (host.state.model) body.model = host.state.model;
    found = await (await call("/v1/detect", body, looking.signal)).json();
    text = given;
  } catch (problem) {
    if (problem.name !== "AbortError") trouble = () => (problem instanceof TypeError ? host.words.lost : host.words.complains(problem));
  }
  looking = null;
  drawDetect();
}
export function beginDetect(page) {
  host = page;
  $("detect-open").onclick = () => { $("detect").showModal(); document.body.classList.remove("open"); };
  $("detect-close").onclick = () => $("detect").close();
  $("detect").onclose = () => looking?.abort();
  $("detect-form").onsubmit = (e) => { e.preventDefault(); look(); };
  drawDetect();
}
