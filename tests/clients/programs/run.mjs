// `node run.mjs <client>`: holds that client's talk as the JSON on stdin says, and prints what it heard as JSON, or how
// it failed; with several `keys`, a talk and a report for each.
import { text } from "node:stream/consumers";

const { talk } = await import(`./${process.argv[2]}.mjs`);
const setup = JSON.parse(await text(process.stdin));

const reports = [];
for (const key of setup.keys ?? [setup.key]) {
  reports.push(await talk({ ...setup, key }).catch(asFailure));
}
console.log(JSON.stringify(setup.keys ? reports : reports[0]));

/** The client's own error, as an application would look at it. */
function asFailure({ constructor, message, status = null, code = null }) {
  return { failure: { name: constructor.name, message, status, code } };
}
