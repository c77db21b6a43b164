/** @type {import("next").NextConfig} */
export default { output: "export", basePath: "/built", turbopack: { root: import.meta.dirname } };
