// Runs client programs, one after another. Each line of stdin is a request, `{"program", "setup"}`; each line of stdout
// is its report, or an array of reports where the setup has several `keys`. Ends when stdin does.
import { createInterface } from "node:readline";

for await (const line of createInterface({ input: process.stdin })) {
  const { program, setup } = JSON.parse(line);
  const { talk } = await import(`./${program}`);
  const reports = [];
  for (const key of setup.keys ?? [setup.key]) {
    reports.push(await talk({ ...setup, key }).catch(asFailure));
  }
  // Warnings are written in a later turn of the event loop. The caller reads stderr once it has the report.
  await new Promise((resolve) => setTimeout(resolve));
  console.log(JSON.stringify(setup.keys ? reports : reports[0]));
}

/** The client's own error, with the properties that an application reads. */
function asFailure({ constructor, message, status = null, code = null }) {
  return { failure: { name: constructor.name, message, status, code } };
}
