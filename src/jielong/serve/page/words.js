// What the page says, in both languages.
export const WORDS = {
  en: {
    code: "en", other: "中文", new: "New conversation", send: "Send", stop: "Stop", chain: "show the chain", ask: "Ask something …",
    again: "again", copy: "copy", copied: "copied", back: "other branch", report: "report of this run", candidates: "The model weighed",
    info: (p, b) => `It chose this token with probability ${p}. Bytes: ${b}. Click another one to continue from it.`,
    hello: "What shall we talk about?", about: "I am a small model raised on this computer. I make mistakes.",
    note: "Every word is the next link of a chain: click one to see what else the model weighed.",
    rename: "New name", lost: "The server does not answer. Is it still running?", stopped: "stopped",
    model: "model", compare: "compare with", alone: "compare with …", key: "This server wants a key.", wrong: "That key is not accepted.", enter: "Enter",
    ideas: ["What is the capital of Japan?", "What language do people speak in Brazil?", "Who are you?", "法國的首都是哪裡？"],
  },
  "zh-TW": {
    code: "zh-Hant-TW", other: "English", new: "新對話", send: "送出", stop: "停止", chain: "顯示接龍", ask: "問點什麼…",
    again: "重新回答", copy: "複製", copied: "已複製", back: "換一條路", report: "這次養成的報告", candidates: "模型考慮過",
    info: (p, b) => `模型以 ${p} 的機率選了這個 token。位元組：${b}。點另一個，就從那裡接下去。`,
    hello: "想聊什麼呢？", about: "我是在這台電腦上養大的小模型，會出錯。",
    note: "每個詞都是接龍的下一環：點一下，看看模型還考慮過什麼。",
    rename: "新名稱", lost: "伺服器沒有回應，還在執行嗎？", stopped: "已停止",
    model: "模型", compare: "比較", alone: "與…比較", key: "這個伺服器需要金鑰。", wrong: "這把金鑰不被接受。", enter: "進入",
    ideas: ["日本的首都是哪裡？", "巴西的人說什麼語言？", "你是誰？", "What is the capital of France?"],
  },
};
