// The server, by its public HTTP API. Where it wants a key, the page asks for it once and keeps it for this tab.
const PLACE = "jielong-key";
let asking = null; // one question for all who wait

export async function call(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(PLACE);
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    if (response.ok) return response;
    if (response.status !== 401) throw await complaint(response);
    if (key === sessionStorage.getItem(PLACE)) {
      asking = asking || askKey(!!key).finally(() => { asking = null; });
      if (!await asking) throw await complaint(response);
    }
  }
}
// An Error with the server's message, its `status`, and where it has them the `code` and `values` by which the page says it itself.
async function complaint(response) {
  let found = {};
  try { found = (await response.json()).error || {}; } catch { /* no JSON */ }
  return Object.assign(new Error(found.message || response.statusText), { status: response.status, code: found.code, values: found.values });
}

// → whether a key was given
function askKey(wrong) {
  const dialog = document.getElementById("key");
  dialog.classList.toggle("wrong", wrong);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => {
      const field = document.getElementById("key-input"), given = dialog.returnValue === "ok" && field.value.trim();
      field.value = "";
      if (given) sessionStorage.setItem(PLACE, given);
      done(!!given);
    };
  });
}

// The events of a streamed answer.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue; // a comment that keeps the line open
      const data = part.slice(6);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
