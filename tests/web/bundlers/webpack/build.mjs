import { copyFileSync } from "node:fs";
import { resolve } from "node:path";
import webpack from "webpack";

webpack({ mode: "production", entry: "./main.js", output: { path: resolve("dist"), filename: "main.js" } }, (failure, stats) => {
  const failed = failure ?? (stats.hasErrors() || stats.hasWarnings() ? stats.toString("errors-warnings") : null);
  if (failed) throw new Error(failed);
  copyFileSync("index.html", "dist/index.html");
});
