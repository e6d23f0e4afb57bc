// The chain: each token of an answer, coloured by its probability, and what else the model weighed there.
import { $, button, make } from "/page/dom.js";
import { percent } from "/page/tokens.js";

// page: { words, chain, branch(side, at, index, candidate) }
export function drawToken(side, at, group, page) {
  const token = side.tokens[group.from];
  const p = Math.exp(Math.min(...side.tokens.slice(group.from, group.to + 1).map((t) => t.logprob)));
  const node = make("span", "token p" + (p < 0.25 ? 0 : p < 0.5 ? 1 : p < 0.8 ? 2 : 3), page.chain ? group.text.replace(/\n/g, "↵\n") : group.text);
  node.tabIndex = 0;
  node.setAttribute("role", "button");
  node.title = percent(token.logprob);
  node.onclick = () => showPanel(side, at, group.from, node, page);
  node.onkeydown = (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); node.onclick(); } };
  return node;
}
function showPanel(side, at, index, node, { words, branch }) {
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
export function hidePanel() { $("panel").hidden = true; }
