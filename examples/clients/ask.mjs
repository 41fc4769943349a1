// Asks a bank over HTTP with plain JSON: node ask.mjs [http://127.0.0.1:8000] [text] [expert]
// No package is needed: fetch is part of Node.js from 18 on.

const [url = 'http://127.0.0.1:8000', text = 'a wonderful film', expert = 'movie'] =
  process.argv.slice(2);

const bytes = (name, value) => ({ name, shape: [1, 1], datatype: 'BYTES', data: [value] });

const response = await fetch(`${url}/v2/models/pidep_bank/infer`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({
    inputs: [bytes('TEXT', text), bytes('EXPERT', expert)],
    outputs: ['SCORES', 'LABELS', 'LABEL', 'DIGEST'].map((name) => ({ name })),
  }),
  signal: AbortSignal.timeout(30_000),
});
const answer = await response.json();
if (!response.ok) {
  // 400: a wrong row; 404: no such expert; 503: the server sheds load, ask again later.
  console.error(`${response.status}: ${answer.error}`);
  process.exit(1);
}
const output = Object.fromEntries(answer.outputs.map(({ name, data }) => [name, data]));
const scores = Object.fromEntries(output.LABELS.map((name, at) => [name, output.SCORES[at]]));
console.log(JSON.stringify({ label: output.LABEL[0], scores, digest: output.DIGEST[0] }));
