// "Was this generated?": sends a text to /v1/detect, and draws what was found and the heat map: every token coloured by its
// rank, with the model's candidates on hover or focus.
import { call } from "/page/api.js";
import { $, make } from "/page/dom.js";
import { percent } from "/page/tokens.js";

const CLASSES = [1, 10, 100, 1000]; // ranks up to these have a colour each, and one is left for the rest
const WORDS = {
  en: {
    open: "Was this generated?", close: "close", text: "The text in question", look: "Look", busy: "Looking …", alpha: "Tolerate a false alarm in",
    about: "Three kinds of evidence: what this server remembers (ledger), a mark that it left (watermark), and how the text looks to the model (statistics). A person is never proved: the strongest word against is “no evidence”.",
    of: (a) => `1 of ${Math.round(1 / a)} human texts`,
    verdict: {
      generated: ["Generated", (a) => `At least one finding would be rarer than ${share(a)} among texts that were not.`],
      "no evidence": ["No evidence", () => "Nothing unusual was found. That does not say that a person wrote it."],
      abstain: ["No answer", () => "Nothing here can be compared with a known standard; the notes say why."],
    },
    head: ["Method", "p-value", "compared with", "length", "notes"], none: "–",
    kind: { ledger: "ledger", watermark: "watermark", disguise: "disguise" },
    map: "How the model sees it", mapAbout: "Colour: the place of each token among the model's candidates. Much in the first colour: the model would have written it so. Point at a token, or tab to it, to see the candidates.",
    ranks: ["1st", "2–10", "11–100", "101–1,000", "later"], info: (rank, p) => `place ${rank}, ${p}. `, weighed: "First candidates: ", longer: "Only the beginning is coloured.",
  },
  "zh-TW": {
    open: "這是生成的嗎？", close: "關閉", text: "要檢查的文字", look: "檢查", busy: "檢查中…", alpha: "容許誤判",
    about: "三種證據：伺服器記得的（帳本）、它留下的記號（浮水印），以及文字在模型眼中的樣子（統計）。永遠無法證明是人寫的，最多只能說「沒有證據」。",
    of: (a) => `每 ${Math.round(1 / a)} 篇人寫的文章誤判 1 篇`,
    verdict: {
      generated: ["是生成的", (a) => `至少有一項發現，在不是生成的文字裡出現的機率低於 ${share(a)}。`],
      "no evidence": ["沒有證據", () => "沒有發現異常，但這不代表是人寫的。"],
      abstain: ["無法回答", () => "沒有已知的標準可以比較，原因見備註。"],
    },
    head: ["方法", "p 值", "比較對象", "長度", "備註"], none: "–",
    kind: { ledger: "帳本", watermark: "浮水印", disguise: "偽裝" },
    map: "模型怎麼看這段文字", mapAbout: "顏色代表每個 token 在模型候選中的名次。第一種顏色越多，越像是模型自己會寫的。把游標移到 token 上，或用 Tab 鍵移過去，可以看到候選。",
    ranks: ["第 1 名", "2–10", "11–100", "101–1,000", "更後面"], info: (rank, p) => `第 ${rank} 名，${p}。`, weighed: "前幾個候選：", longer: "只有開頭的部分有顏色。",
  },
};
let host = null; // { state, words }: the page's
let text = "", found = null, trouble = "", looking = null; // AbortController of the request

const share = (p) => `${+(p * 100).toPrecision(2)}\u00a0%`;
const small = (p) => (p === null ? null : p < 1e-4 ? p.toExponential(0) : String(+p.toPrecision(2)));

export function drawDetect() {
  if (!host) return;
  const words = WORDS[host.state.lang];
  $("detect-open").textContent = $("detect-title").textContent = words.open;
  $("detect-about").textContent = words.about;
  $("detect-close").setAttribute("aria-label", words.close);
  $("detect-text-name").textContent = words.text;
  $("detect-alpha-name").textContent = words.alpha;
  for (const option of $("detect-alpha").options) option.textContent = words.of(+option.value);
  $("detect-look").textContent = looking ? words.busy : words.look;
  $("detect-look").disabled = !!looking;
  $("detect-trouble").textContent = trouble;
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
    const cells = [(words.kind[kind] || kind) + (id ? ` ${id}` : ""), small(e.p) ?? words.none, e.null || words.none, String(e.n), e.notes.join("; ")];
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
async function look() {
  const given = $("detect-text").value;
  if (looking || !given.trim()) return;
  looking = new AbortController();
  trouble = ""; found = null;
  drawDetect();
  try {
    const body = { text: given, alpha: +$("detect-alpha").value, tokens: true, top: 5 };
    if (host.state.model) body.model = host.state.model;
    found = await (await call("/v1/detect", body, looking.signal)).json();
    text = given;
  } catch (problem) {
    if (problem.name !== "AbortError") trouble = problem instanceof TypeError ? host.words.lost : host.words.complains(problem);
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
