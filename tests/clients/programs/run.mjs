// `node run.mjs <client>`: holds that client's talk as the JSON on stdin says, and prints what it heard as JSON.
import { text } from "node:stream/consumers";

const { talk } = await import(`./${process.argv[2]}.mjs`);
console.log(JSON.stringify(await talk(JSON.parse(await text(process.stdin)))));
