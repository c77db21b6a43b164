import { copyFileSync } from "node:fs";
import { build } from "esbuild";

await build({ entryPoints: ["main.js"], outdir: "dist", bundle: true, minify: true, format: "esm" });
// It leaves `new URL("./worklets.js", import.meta.url)` as it is: the file has to be beside the bundle.
copyFileSync("node_modules/voice-session/audio/worklets.js", "dist/worklets.js");
copyFileSync("index.html", "dist/index.html");
