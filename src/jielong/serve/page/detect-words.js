// What "Was this generated?" says, in both languages. What a finding says and what it is compared with comes in English sentences, of
// which the known ones are said here in the page's language.
const ZH = [
  [/^too short: (\d+) tokens, (\d+) are needed$/, (n, least) => `太短：${n} 個 token，至少要 ${least} 個`],
  [/^too short: (\d+) tokens; the human texts in (.+) begin at (\d+)$/, (n, lang, least) => `太短：${n} 個 token，${lang} 的人寫文章從 ${least} 個起`],
  [/^too short: (\d+) words, (\d+) are needed$/, (n, least) => `太短：${n} 個詞，至少要 ${least} 個`],
  [/^too short: (\d+) (?:different )?places .+, (\d+) are needed$/, (n, least) => `太短：可看的位置只有 ${n} 個，至少要 ${least} 個`],
  [/^no human texts to compare with for (.+): `jielong detect reference` reads some$/, (model) => `${model} 還沒有人寫的文章可以比較；\`jielong detect reference\` 可以讀入`],
  [/^(.+) was measured without (\S+); (\d+) documents of a language are needed for it$/, (corpus, method, least) => `${corpus} 沒有量過 ${method}，每種語言要有 ${least} 篇才行`],
  [/^(.+) was measured without (\S+); name its observer in `jielong detect reference`$/, (corpus, method) => `${corpus} 沒有量過 ${method}；請在 \`jielong detect reference\` 指定觀察的模型`],
  [/^too few human texts for (\S+) in its language \((.+)\); (.+) has (.*)$/, (method, lang, corpus, has) => `這種語言（${lang}）人寫的文章太少，無法用 ${method}；${corpus} 有 ${has}`],
  [/^no human texts in its language \((.+)\); (.+) has (.*)$/, (lang, corpus, has) => `沒有這種語言（${lang}）的人寫文章；${corpus} 有 ${has}`],
  [/^(.+) was measured with another observer$/, (corpus) => `${corpus} 是用另一個觀察模型量的`],
  [/^(\d+) human texts of its language and length cannot give a p-value of (.+)$/, (n, p) => `同語言、同長度的人寫文章只有 ${n} 篇，給不出 ${p} 的 p 值`],
  [/^its first (\d+) of (\d+) tokens were compared$/, (n, of) => `只比較了 ${of} 個 token 的前 ${n} 個`],
  [/^the human texts were measured in (.+), this one in (.+)$/, (theirs, own) => `人寫的文章以 ${theirs} 量，這一篇以 ${own} 量`],
  [/^the ledger is empty$/, () => "帳本是空的"],
  [/^this very text in an answer of (.+) of (\S+)$/, (model, day) => `和 ${model} 在 ${day} 的一個回答完全相同`],
  [/^(.+) of its runs of five words in an answer of (.+) of (\S+)$/, (share, model, day) => `每五個詞的片段有 ${share} 出現在 ${model} 於 ${day} 的一個回答裡`],
  [/^no p-value: too few human documents of its language are at hand \((\d+); (\d+) are needed\)$/, (n, least) => `沒有 p 值：這種語言的人寫文章太少（${n} 篇，至少要 ${least} 篇）`],
  [/^(\d+) of (\d+) tokens won their race, (\d+) would by chance \(temperature (.+)\)$/, (won, of, chance, t) => `${of} 個 token 有 ${won} 個勝出，靠運氣約 ${chance} 個（溫度 ${t}）`],
  [/^disguises undone before measuring: (\d+);/, (n) => `測量前還原了 ${n} 處偽裝；從某些程式複製文字也會這樣`],
  // what a p-value refers to
  [/^human:(.+)@(.+?)(?:,(\d+) tokens)?,n=(\d+)$/, (corpus, lang, length, n) => `人寫的：${corpus}（${lang}，${length ? `${length} 個 token，` : ""}${n} 篇）`],
  [/^random-key$/, () => "隨機的金鑰"],
  [/^exact$/, () => "完全相同"],
];
const share = (p) => `${+(p * 100).toPrecision(2)}\u00a0%`;
const known = (text) => {
  for (const [form, say] of ZH) { const found = form.exec(text); if (found) return say(...found.slice(1)); }
  return text;
};
export const DETECT = {
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
    ranks: ["1st", "2–10", "11–100", "101–1,000", "later"], info: (rank, p) => `place ${rank}, ${p}. `, weighed: "First candidates: ", longer: "Only the beginning is coloured.", note: (text) => text, null: (text) => text, semicolon: "; ",
    tooLong: (n, most) => `That is too long: ${n.toLocaleString("en")} characters, and at most ${most.toLocaleString("en")} are looked at.`, noText: "There is nothing to look at: write or paste a text with letters.",
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
    ranks: ["第 1 名", "2–10", "11–100", "101–1,000", "更後面"], info: (rank, p) => `第 ${rank} 名，${p}。`, weighed: "前幾個候選：", longer: "只有開頭的部分有顏色。", note: known, null: known, semicolon: "；",
    tooLong: (n, most) => `太長了：${n.toLocaleString("en")} 個字元，最多只看 ${most.toLocaleString("en")} 個。`, noText: "沒有可以檢查的內容，請寫下或貼上有文字的內容。",
  },
};
