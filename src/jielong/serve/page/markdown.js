// A small Markdown: everything is built as DOM nodes, so that no text ever becomes markup.
const INLINE = /(`[^`]+`)|(\*\*[^*]+\*\*)|(\*[^*\s][^*]*\*)|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

function inline(parent, text) {
  while (text) {
    const found = INLINE.exec(text);
    if (!found) { parent.append(text); return; }
    parent.append(text.slice(0, found.index));
    let node;
    if (found[1]) { node = document.createElement("code"); node.textContent = found[1].slice(1, -1); }
    else if (found[2]) { node = document.createElement("b"); node.textContent = found[2].slice(2, -2); }
    else if (found[3]) { node = document.createElement("i"); node.textContent = found[3].slice(1, -1); }
    else { node = document.createElement("a"); node.textContent = found[4]; node.href = found[5]; node.rel = "noopener noreferrer"; node.target = "_blank"; }
    parent.append(node);
    text = text.slice(found.index + found[0].length);
  }
}

export function markdown(text) {
  const out = document.createDocumentFragment();
  const blocks = text.split(/```/);
  blocks.forEach((block, i) => {
    if (i % 2) {
      const pre = document.createElement("pre");
      pre.textContent = block.replace(/^\w*\n/, "");
      out.append(pre);
      return;
    }
    let list = null, paragraph = null;
    for (const line of block.split("\n")) {
      const item = /^\s*(?:[-*]|(\d+)\.)\s+(.*)/.exec(line);
      if (item) {
        paragraph = null;
        const kind = item[1] ? "OL" : "UL";
        if (!list || list.tagName !== kind) { list = document.createElement(kind); out.append(list); }
        const li = document.createElement("li");
        inline(li, item[2]);
        list.append(li);
      } else if (!line.trim()) { list = paragraph = null; }
      else {
        list = null;
        if (paragraph) paragraph.append(document.createElement("br"));
        else { paragraph = document.createElement("p"); out.append(paragraph); }
        inline(paragraph, line.replace(/^#+\s+/, ""));
      }
    }
  });
  return out;
}
