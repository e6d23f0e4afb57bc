// Tokens, as the API's `logprobs.content` gives them → what a person can read.

// Half a character joins the token that completes it; what is no character at all becomes �.
export function readable(tokens) {
  const groups = [];
  let held = [], first = 0;
  tokens.forEach((t, i) => {
    if (!held.length) first = i;
    held.push(...t.bytes);
    if (halfCharacter(held) && i < tokens.length - 1) return;
    groups.push({ text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(held)), from: first, to: i });
    held = [];
  });
  return groups;
}
function halfCharacter(bytes) {
  for (let n = 1; n <= Math.min(3, bytes.length); n++) {
    const byte = bytes[bytes.length - n];
    if (byte < 0x80) return false;
    if (byte >= 0xc0) return (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2) > n;
  }
  return false;
}
export const textOf = (side) => readable(side.tokens.filter((t) => t.bytes.length)).map((g) => g.text).join("");
export const looksMarked = (text) => /[*`[]|^\s*[-\d]/m.test(text);
export const percent = (logprob) => { const p = Math.exp(logprob) * 100; return p >= 9.95 ? p.toFixed(0) + " %" : p >= 0.095 ? p.toFixed(1) + " %" : "< 0.1 %"; };
