// Examples of what an imported model learnt elsewhere: JSONL files, read in the browser and sent as rows. Nothing of them is kept.
const MOST = 1000; // rows of a list, as the server takes them
const wrong = (code, values) => Object.assign(new Error(code), { code, values });

// { examples: File, … } → { rows: { examples: […], … }, places: { examples: { file, lines: [of each row] }, … } }. Throws an Error with
// `code` and `values` that name file and line.
export async function readFiles(files) {
  const rows = {}, places = {};
  for (const [list, file] of Object.entries(files).filter(([, f]) => f)) {
    const [found, lines] = [rows[list], places[list]] = [[], { file: file.name, lines: [] }];
    const text = decoded(await file.arrayBuffer(), file.name);
    text.split("\n").forEach((line, n) => { // not at U+2028, which may stand in a JSON text
      if (!line.trim()) return;
      found.push(parsed(line, file.name, n + 1));
      lines.lines.push(n + 1);
    });
    if (!found.length) throw wrong("no_texts", { file: file.name });
    if (found.length > MOST) throw wrong("many", { file: file.name, most: MOST });
  }
  return { rows, places };
}
function decoded(bytes, file) {
  try { return new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { throw wrong("unreadable", { file }); }
}
function parsed(line, file, number) {
  let row = null;
  try { row = JSON.parse(line); } catch { /* said below */ }
  if (row === null || typeof row !== "object" || Array.isArray(row)) throw wrong("row", { file, line: number });
  return row;
}

// A refusal that names a list and a row → the same about file and line.
export function placed(problem, places) {
  const [, list, index] = /^(examples|retain|others)\.(\d+)\b/.exec(problem.message) || []; // of the form, counted from 0
  const at = list ? { list, row: Number(index) + 1 } : problem.values || {}, place = places[at.list];
  if (!list && (!["row", "no_texts"].includes(problem.code) || at.file)) return problem;
  if (!place) return { message: problem.message }; // the files are gone
  return { code: list ? "row" : problem.code, message: problem.message, values: { file: place.file, line: place.lines[at.row - 1] } };
}
