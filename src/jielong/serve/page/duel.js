// Two answers to one question, side by side in random order, and which of them is better. (Two models: turn.rival.)
//
// turn.duel = { sides, shown, done, error }: sides[0] is the completion's choice 0, and `shown` says which one stands left.
import { button, make } from "/page/dom.js";
import { say } from "/page/feedback.js";
import { markdown } from "/page/markdown.js";
import { named } from "/page/thumbs.js";
import { looksMarked, textOf } from "/page/tokens.js";

export const begun = (fresh) => ({ sides: [fresh(), fresh()], shown: Math.random() < 0.5 ? "answer" : "other", done: false });
const left = (duel) => (duel.shown === "answer" ? 0 : 1);
const ready = (duel) => duel.done && !duel.error && duel.sides.every((s) => s.id && s.tokens.length);

// place: left, right, tie, neither. → the side that won, null for none, undefined where nothing could be chosen
export function choose(turn, place) {
  const duel = turn.duel;
  if (!duel || !ready(duel)) return undefined;
  const [answer, other] = duel.sides;
  const won = place === "left" ? left(duel) : place === "right" ? 1 - left(duel) : -1;
  say(answer.id, "compare", { value: won < 0 ? place : won ? "other" : "answer", other: other.id, shown: duel.shown });
  delete turn.duel;
  turn.compared = { id: answer.id };
  return won < 0 ? null : duel.sides[won];
}

// `chosen(place)` and `leave()` are told what was pressed.
export function drawDuel(turn, words, chosen, leave) {
  const { duel } = turn, open = ready(duel);
  const node = make("div", "duel");
  const pair = make("div", "two");
  const ordered = left(duel) ? [duel.sides[1], duel.sides[0]] : duel.sides;
  const choice = (text, place, key, cls) => {
    const made = named(button(text, () => chosen(place), cls), text, key);
    made.disabled = !open;
    return made;
  };
  pair.append(...ordered.map((side, i) => {
    const card = make("section", "side"), text = make("div", "text"), said = textOf(side);
    const name = words.place[i];
    card.setAttribute("aria-label", name);
    if (duel.done && looksMarked(said)) text.append(markdown(said)); else text.append(make("p", "plain", said));
    const better = choice(words.better, i ? "right" : "left", i ? "2" : "1", "better");
    better.setAttribute("aria-label", `${name}: ${words.better}`);
    card.append(make("div", "who", name), text, better);
    return card;
  }));
  const row = make("div", "row");
  row.append(choice(words.tie, "tie", "0", "tie"), choice(words.neither, "neither", "9", "neither"));
  if (duel.done) row.append(button(words.cancel, leave, "leave"));
  node.append(make("p", "own", words.which), pair, row);
  if (duel.error) node.append(make("div", "error", duel.error));
  return node;
}
